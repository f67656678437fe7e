#include "tiles.h"

#include "blocks.h"
#include "lanes.h"

#include <cstring>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

using namespace lanes;

// A tile has 16 rows of 16 pairs of bfloat16, or of 16 sums. In memory it is contiguous. The
// product of a left and a right tile adds to row i, column j of the sums
// the dot product of row i of the left one with the pairs j of the right one's rows.
constexpr int64_t ROWS = 16;
constexpr int64_t DEPTH = 32;                  // elements along the sum, 16 pairs
constexpr size_t TILE = ROWS*DEPTH*2;          // bytes
static_assert(ROWS == W && ROWS == tiles::COLUMNS);

constexpr int64_t PANEL = LARGEST_BLOCK;       // elements of a row of W that are expanded together
constexpr int64_t CHUNK = 256;                 // elements along the sum for which a panel of W is
constexpr int64_t STEPS = CHUNK/DEPTH;
constexpr int64_t STRIP = 2*ROWS;              // rows of W in a forward panel
constexpr int64_t GROUP = 256;                 // most columns for which W is expanded once
constexpr int64_t NEAR = 768 << 10;            // bytes of x, or of sums, that stay in the second-level cache

int64_t bundles_of(int64_t n_columns) { return divide_up(n_columns, tiles::COLUMNS); }
int64_t depth_of(int64_t length) { return std::max<int64_t>(1, divide_up(length, DEPTH)); } // in tiles

// While it lives, this thread's tile registers are of full size.
struct registers {
    registers() {
        struct alignas(LINE) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; ++i) {
            shape.bytes[i] = LINE;
            shape.rows[i] = ROWS;
        }
        _tile_loadconfig(&shape);
    }
    ~registers() { _tile_release(); }
};

// ---- rounding -------------------------------------------------------------------------

inline __m512i rounded(vec low, vec high) { return (__m512i) _mm512_cvtne2ps_pbh((__m512) high, (__m512) low); }

inline void store(void * to, __m512i v) { _mm512_store_si512(to, v); }

// x[0..n) and zeros, stride bytes apart
inline vec gather(const char * x, size_t stride, int64_t n) {
    if (stride == sizeof(float)) {
        return n >= W ? load((const float *) x) : n > 0 ? load((const float *) x, (int) n) : vec {};
    }
    vec v = {};
    for (int64_t i = 0; i < std::min<int64_t>(n, W); ++i) {
        v[i] = *(const float *) (x + i*stride);
    }
    return v;
}

// the next DEPTH elements of n
inline __m512i round_row(const char * x, size_t stride, int64_t n) {
    return rounded(gather(x, stride, n), gather(x + W*stride, stride, n - W));
}

// ---- rows of W --------------------------------------------------------------------------
// A row of left tiles is n elements in order; one of right tiles has pairs of two rows. They end with
// zeros, up to a multiple of DEPTH.

// first and second, lane by lane
inline __m512i paired(vec first, vec second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, rounded(first, second));
}

// What a row is expanded to, W elements after the others: a row of left tiles.
struct left_row {
    char * to;
    vec * low; // the first W elements of DEPTH, until the others come
    int half;  // 0, 1: which of them is next

    left_row operator+(int n) const { return {to + (half*W + n)/DEPTH*TILE, low, (half + n/W)%2}; }
};
inline void write(left_row y, vec v) {
    if (y.half) {
        store(y.to, rounded(*y.low, v));
    } else {
        *y.low = v;
    }
}

// A block of the first row of a pair.
struct first_row {
    vec * to;

    first_row operator+(int n) const { return {to + n/W}; }
};
inline void write(first_row y, vec v) { *y.to = v; }

// A row of right tiles, from the second row of a pair.
struct right_row {
    char * to;
    const vec * first;

    right_row operator+(int n) const { return {to + n/ROWS*STEPS*TILE, first + n/W}; }
};
inline void write(right_row y, vec v) { store(y.to, paired(*y.first, v)); }

template <class block, int N> struct of_blocks {
    static void left(const matrix &, const char * x, int64_t n, char * to) {
        vec low;
        blocks::expand_row<block, N>(x, left_row{to, &low, 0}, n);
    }
    static void right(const matrix &, const char * x, const char * next, int64_t n, char * to) {
        const block * a = (const block *) x, * b = (const block *) next;
        for (; n > 0; n -= N, ++a, ++b, to += N/ROWS*STEPS*TILE) {
            vec first[N/W];
            blocks::expand(*a, first_row{first});
            blocks::expand(*b, right_row{to, first});
        }
    }
};

struct of_bfloats {
    static __m512i load(const char * x, int64_t n) { return _mm512_maskz_loadu_epi16((__mmask32) (n < DEPTH ? (1ull << n) - 1 : ~0ull), x); }
    static void left(const matrix &, const char * x, int64_t n, char * to) {
        for (; n > 0; n -= DEPTH, x += 2*DEPTH, to += TILE) {
            store(to, load(x, n));
        }
    }
    static void right(const matrix &, const char * x, const char * next, int64_t n, char * to) {
        const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
        const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(W));
        for (; n > 0; n -= DEPTH, x += 2*DEPTH, next += 2*DEPTH, to += 2*STEPS*TILE) {
            const __m512i a = load(x, n), b = load(next, n);
            store(to,              _mm512_permutex2var_epi16(a, low, b));
            store(to + STEPS*TILE, _mm512_permutex2var_epi16(a, high, b));
        }
    }
};

// Of any type; no row counts as zeros.
struct of_floats {
    static void expand(const matrix & w, const char * x, int64_t n, float * to) {
        float * const end = to + divide_up(n, DEPTH)*DEPTH;
        if (!x) {
            n = 0;
        } else if (w.to_float) {
            w.to_float(x, to, n);
        } else {
            memcpy(to, x, n*sizeof(float));
        }
        std::fill(to + n, end, 0.0f);
    }
    static void left(const matrix & w, const char * x, int64_t n, char * to) {
        alignas(LINE) float row[PANEL];
        expand(w, x, n, row);
        for (int64_t i = 0; i < n; i += DEPTH, to += TILE) {
            store(to, rounded(load(row + i), load(row + i + W)));
        }
    }
    static void right(const matrix & w, const char * x, const char * next, int64_t n, char * to) {
        alignas(LINE) float first[PANEL], second[PANEL];
        expand(w, x, n, first);
        expand(w, next, n, second);
        for (int64_t i = 0; i < n; i += ROWS, to += STEPS*TILE) {
            store(to, paired(load(first + i), load(second + i)));
        }
    }
};

struct expander {
    void (* left)(const matrix & w, const char * x, int64_t n, char * to);
    void (* right)(const matrix & w, const char * x, const char * next, int64_t n, char * to);
};
template <class T> constexpr expander expander_of = {T::left, T::right};

const expander & expander_for(const matrix & w) {
    switch (w.type) {
        case GGML_TYPE_BF16:   return expander_of<of_bfloats>;
        case GGML_TYPE_Q4_0:   return expander_of<of_blocks<block_q4_0,   QK4_0>>;
        case GGML_TYPE_Q4_1:   return expander_of<of_blocks<block_q4_1,   QK4_1>>;
        case GGML_TYPE_Q5_0:   return expander_of<of_blocks<block_q5_0,   QK5_0>>;
        case GGML_TYPE_Q5_1:   return expander_of<of_blocks<block_q5_1,   QK5_1>>;
        case GGML_TYPE_Q8_0:   return expander_of<of_blocks<block_q8_0,   QK8_0>>;
        case GGML_TYPE_Q2_K:   return expander_of<of_blocks<block_q2_K,   QK_K>>;
        case GGML_TYPE_Q3_K:   return expander_of<of_blocks<block_q3_K,   QK_K>>;
        case GGML_TYPE_Q4_K:   return expander_of<of_blocks<block_q4_K,   QK_K>>;
        case GGML_TYPE_Q5_K:   return expander_of<of_blocks<block_q5_K,   QK_K>>;
        case GGML_TYPE_Q6_K:   return expander_of<of_blocks<block_q6_K,   QK_K>>;
        case GGML_TYPE_IQ4_NL: return expander_of<of_blocks<block_iq4_nl, QK4_NL>>;
        case GGML_TYPE_IQ4_XS: return expander_of<of_blocks<block_iq4_xs, QK_K>>;
        case GGML_TYPE_MXFP4:  return expander_of<of_blocks<block_mxfp4,  QK_MXFP4>>;
        default:               return expander_of<of_floats>;
    }
}

// ---- multiplying ----------------------------------------------------------------------

// Tiles along the sum, one behind the other, of several rows (left) or columns (right), next bytes apart.
struct operand {
    const char * data;
    size_t next;
    int64_t n;
};

// Loads a tile of W, which the first-level cache holds, or of x, which had better not take its room.
#define LOAD(tile, of_w, from) do { if constexpr (of_w) _tile_loadd(tile, from, LINE); else _tile_stream_loadd(tile, from, LINE); } while (0)

// The products of A left with B right operands, one of which is of W, set or added to the sums, tiles below
// and beside bytes apart; meanwhile() is called with each step along the sum.
template <bool W_LEFT, int A, int B, typename F>
inline void multiply(const char * left, size_t left_next, const char * right, size_t right_next, int64_t steps, char * sums, size_t below, size_t beside, bool add, F meanwhile) {
    char * const s0 = sums, * const s1 = sums + beside, * const s2 = sums + below, * const s3 = s2 + beside;
    if (add) {
        _tile_loadd(0, s0, LINE);
        if constexpr (B > 1) _tile_loadd(1, s1, LINE);
        if constexpr (A > 1) _tile_loadd(2, s2, LINE);
        if constexpr (A > 1 && B > 1) _tile_loadd(3, s3, LINE);
    } else {
        _tile_zero(0);
        if constexpr (B > 1) _tile_zero(1);
        if constexpr (A > 1) _tile_zero(2);
        if constexpr (A > 1 && B > 1) _tile_zero(3);
    }
    for (int64_t i = 0; i < steps; ++i, left += TILE, right += TILE) {
        LOAD(4, W_LEFT, left);
        LOAD(6, !W_LEFT, right);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (B > 1) {
            LOAD(7, !W_LEFT, right + right_next);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (A > 1) {
            LOAD(5, W_LEFT, left + left_next);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (B > 1) _tile_dpbf16ps(3, 5, 7);
        }
        meanwhile();
    }
    _tile_stored(0, s0, LINE);
    if constexpr (B > 1) _tile_stored(1, s1, LINE);
    if constexpr (A > 1) _tile_stored(2, s2, LINE);
    if constexpr (A > 1 && B > 1) _tile_stored(3, s3, LINE);
}

// ---- panels of W ------------------------------------------------------------------------
// A call goes through panels of W. While one is multiplied, the next one is expanded into the
// other buffer, and the one behind that is fetched, some of it with each step: all at once would
// keep the processor waiting.

// A panel as W has it.
struct source {
    const char * data = nullptr;
    size_t stride = 0, bytes = 0; // from row to row; of a row
    int64_t n_rows = 0, n = 0;    // n elements of each
};

// A row of left tiles from a row of W, the i-th of a panel.
struct left_panel {
    static constexpr bool LEFT = true;
    static int64_t size(const source & s) { return s.n_rows; }
    static void expand(const matrix & w, const expander & of, const source & s, int64_t i, char * panel) {
        of.left(w, s.data + i*s.stride, s.n, panel + i/ROWS*STEPS*TILE + i%ROWS*LINE);
    }
    static void fetch(const source & s, int64_t i) {
        if (i < s.n_rows) {
            ::fetch(s.data + i*s.stride, s.bytes);
        }
    }
};

// A row of right tiles from a pair of rows of W, zeros beyond the last.
struct right_panel {
    static constexpr bool LEFT = false;
    static int64_t size(const source & s) { return divide_up(s.n_rows, DEPTH)*ROWS; }
    static void expand(const matrix & w, const expander & of, const source & s, int64_t i, char * panel) {
        const char * row = s.data + 2*i*s.stride;
        char * to = panel + i/ROWS*TILE + i%ROWS*LINE;
        if (2*i + 1 < s.n_rows) {
            of.right(w, row, row + s.stride, s.n, to);
        } else {
            of_floats::right(w, 2*i < s.n_rows ? row : nullptr, nullptr, s.n, to);
        }
    }
    static void fetch(const source & s, int64_t i) {
        left_panel::fetch(s, 2*i);
        left_panel::fetch(s, 2*i + 1);
    }
};

// What is done besides multiplying, spread evenly over steps.
template <class P> struct meanwhile {
    const matrix & w;
    const expander & of;
    const source & coming, & later;
    char * panel; // for what is coming
    uint32_t n, steps, credit = 0, done = 0;

    meanwhile(const matrix & w, const expander & of, const source & coming, const source & later, char * panel, int64_t steps) :
        w(w), of(of), coming(coming), later(later), panel(panel), n(P::size(coming)), steps(steps) {}

    void step() {
        for (credit += n; credit >= steps; credit -= steps) {
            next();
        }
    }

    __attribute__((noinline)) void next() {
        P::expand(w, of, coming, done, panel);
        P::fetch(later, done);
        ++done;
    }
};

// All products of left with right operands, over steps tiles.
template <class P> void multiply(operand left, operand right, int64_t steps, char * sums, size_t below, size_t beside, bool add, meanwhile<P> & also) {
    for (int64_t j = 0; j < right.n; j += 2) {
        for (int64_t i = 0; i < left.n; i += 2) {
            const auto some = [&](auto a, auto b) {
                multiply<P::LEFT, decltype(a)::value, decltype(b)::value>(left.data + i*left.next, left.next, right.data + j*right.next, right.next,
                    steps, sums + i*below + j*beside, below, beside, add, [&] { also.step(); });
            };
            constexpr std::integral_constant<int, 1> one;
            constexpr std::integral_constant<int, 2> two;
            if (i + 1 < left.n) {
                j + 1 < right.n ? some(two, two) : some(two, one);
            } else {
                j + 1 < right.n ? some(one, two) : some(one, one);
            }
        }
    }
}

int64_t pairs_of(int64_t n) { return divide_up(n, 2); }

// ---- forward: W is the left operand -------------------------------------------------------

// The panels of rows [m0, m1) in order: strips within parts of depth elements along the sum.
struct forward_walk {
    int64_t m0, m1, n_k, depth;
    int64_t begin = 0, m = m0, k = 0; // begin of the part; the panel's first row and element

    bool ended() const { return begin > 0 && begin >= n_k; }
    int64_t end() const { return std::min(begin + depth, n_k); }
    int64_t n_rows() const { return std::min(STRIP, m1 - m); }
    int64_t n() const { return std::min(CHUNK, end() - k); }
    source panel(const matrix & w) const { return ended() ? source() : source{w.at(m, k), w.stride, (size_t) w.bytes(n()), n_rows(), n()}; }
    void advance() {
        if (ended()) {
            return;
        }
        k += CHUNK;
        if (k >= end()) {
            k = begin;
            m += STRIP;
        }
        if (m >= m1) {
            m = m0;
            k = begin = begin + depth;
        }
    }
};

constexpr size_t FORWARD_PANEL = STRIP*CHUNK*2;

size_t sums_bytes(int64_t n_rows, int64_t n_columns) { return divide_up(n_rows, STRIP)*2*bundles_of(n_columns)*TILE; }

// The sums of rows [m, m + n_rows), a tile for each bundle, as elements of y.
void hand_out(const char * sums, int64_t m, int64_t n_rows, columns cols) {
    for (int64_t t = 0; t < cols.n; t += W, sums += TILE) {
        ivec v[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            v[i] = (ivec) load((const float *) sums + i*W);
        }
        transpose(v);
        for (int i = 0; i < W && t + i < cols.n; ++i) {
            memcpy((float *) cols.y[t + i] + m, &v[i], std::min<int64_t>(W, n_rows)*sizeof(float));
        }
    }
}

// ---- backward: W is the right operand -----------------------------------------------------

// The panels of columns [k0, k1) in order: CHUNK rows, PANEL columns.
struct backward_walk {
    int64_t k0, k1, n_m;
    int64_t m = 0, k = k0;

    bool ended() const { return m > 0 && m >= n_m; }
    int64_t n_rows() const { return std::min(CHUNK, n_m - m); }
    int64_t n() const { return std::min(PANEL, k1 - k); }
    source panel(const matrix & w) const { return ended() ? source() : source{w.at(m, k), w.stride, (size_t) w.bytes(n()), n_rows(), n()}; }
    void advance() {
        if (ended()) {
            return;
        }
        k += PANEL;
        if (k >= k1) {
            k = k0;
            m += CHUNK;
        }
    }
};

constexpr size_t BACKWARD_PANEL = CHUNK*PANEL*2;

int64_t most_rows(int64_t n_columns) { return std::clamp<int64_t>(NEAR/4/std::clamp<int64_t>(n_columns, 1, GROUP)/PANEL, 1, 8)*PANEL; }

} // namespace

bool tiles::available() {
    static const bool available = [] {
        unsigned a, b, c, d;
        constexpr unsigned AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24; // in d
        constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18; // of Linux's asm/prctl.h
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE) &&
            syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    }();
    return available;
}

size_t tiles::bundle_bytes(int64_t length) { return depth_of(length)*TILE; }

void tiles::round_forward(const columns & x, size_t stride, int64_t k, int64_t length, char * bundle) {
    for (const int64_t end = std::min(k + SPAN, length); k < end; k += DEPTH) {
        ivec v[W];
        for (int i = 0; i < W; ++i) {
            v[i] = i < x.n ? (ivec) round_row(x.x[i] + k*stride, stride, length - k) : ivec {};
        }
        transpose(v);
        for (int i = 0; i < W; ++i) {
            store(bundle + k/DEPTH*TILE + i*LINE, (__m512i) v[i]);
        }
    }
}

void tiles::round_backward(const columns & x, size_t stride, int64_t k, int64_t length, char * bundle) {
    for (const int64_t end = std::min(k + SPAN, length); k < end; k += DEPTH) {
        for (int i = 0; i < W; ++i) {
            store(bundle + k/DEPTH*TILE + i*LINE, i < x.n ? round_row(x.x[i] + k*stride, stride, length - k) : __m512i {});
        }
    }
}

size_t tiles::work(int64_t n_columns) {
    return sums_bytes(most_rows(n_columns), std::min(n_columns, GROUP)) + 2*std::max(FORWARD_PANEL, BACKWARD_PANEL);
}

int64_t tiles::part(int64_t n_rows, int64_t n_columns, int64_t block, int n_threads) {
    const int64_t unit = std::max(STRIP, block), least = divide_up(n_rows, most_rows(n_columns));
    return divide_up(n_rows, divide_up(least, n_threads)*n_threads*unit)*unit;
}

void tiles::forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, const char * x, char * work) {
    const registers in_use;
    const expander & of = expander_for(w);
    for (int64_t t0 = 0; t0 < cols.n; t0 += GROUP) {
        const columns group = {cols.x + t0, cols.y + t0, std::min(GROUP, cols.n - t0)};
        const int64_t n_bundles = bundles_of(group.n);
        const size_t next = bundle_bytes(n_k);
        char * panel = work + sums_bytes(m1 - m0, group.n), * other = panel + FORWARD_PANEL;
        forward_walk now{m0, m1, n_k, even_part(n_k, std::max<int64_t>(CHUNK, NEAR/(2*COLUMNS*n_bundles)/CHUNK*CHUNK), CHUNK)}, after = now;
        source coming = now.panel(w);
        for (int64_t i = 0; i < coming.n_rows; ++i) {
            left_panel::expand(w, of, coming, i, panel);
        }
        after.advance();
        coming = after.panel(w);
        while (!now.ended()) {
            after.advance();
            const source later = after.panel(w);
            const int64_t n_tiles = divide_up(now.n_rows(), ROWS), steps = divide_up(now.n(), DEPTH);
            char * sums = work + (now.depth < n_k ? (now.m - m0)/ROWS*n_bundles*TILE : 0);
            meanwhile<left_panel> also(w, of, coming, later, other, pairs_of(n_tiles)*pairs_of(n_bundles)*steps);
            multiply({panel, STEPS*TILE, n_tiles}, {x + now.k/DEPTH*TILE, next, n_bundles}, steps, sums, n_bundles*TILE, TILE, now.k > 0, also);
            if (now.k + now.n() >= n_k) {
                for (int64_t i = 0; i < now.n_rows(); i += ROWS) {
                    hand_out(sums + i/ROWS*n_bundles*TILE, now.m + i, now.n_rows() - i, group);
                }
            }
            now.advance();
            coming = later;
            std::swap(panel, other);
        }
        x += n_bundles*next;
    }
}

void tiles::backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, const char * g, char * work) {
    const registers in_use;
    const expander & of = expander_for(w);
    for (int64_t t0 = 0; t0 < cols.n; t0 += GROUP) {
        const columns group = {cols.x + t0, cols.y + t0, std::min(GROUP, cols.n - t0)};
        const int64_t n_bundles = bundles_of(group.n), n_tiles = divide_up(k1 - k0, ROWS);
        const size_t next = bundle_bytes(n_m);
        char * panel = work + sums_bytes(k1 - k0, group.n), * other = panel + BACKWARD_PANEL;
        backward_walk now{k0, k1, n_m}, after = now;
        source coming = now.panel(w);
        for (int64_t i = 0; i < right_panel::size(coming); ++i) {
            right_panel::expand(w, of, coming, i, panel);
        }
        after.advance();
        coming = after.panel(w);
        while (!now.ended()) {
            after.advance();
            const source later = after.panel(w);
            const int64_t n_here = divide_up(now.n(), ROWS), steps = divide_up(now.n_rows(), DEPTH);
            meanwhile<right_panel> also(w, of, coming, later, other, pairs_of(n_bundles)*pairs_of(n_here)*steps);
            multiply({g + now.m/DEPTH*TILE, next, n_bundles}, {panel, STEPS*TILE, n_here}, steps, work + (now.k - k0)/ROWS*TILE, n_tiles*TILE, TILE, now.m > 0, also);
            now.advance();
            coming = later;
            std::swap(panel, other);
        }
        for (int64_t t = 0; t < group.n; ++t) {
            const char * from = work + t/ROWS*n_tiles*TILE + t%ROWS*LINE;
            for (int64_t k = k0; k < k1; k += ROWS, from += TILE) {
                memcpy((float *) group.y[t] + k, from, std::min(ROWS, k1 - k)*sizeof(float));
            }
        }
        g += n_bundles*next;
    }
}

#else

bool tiles::available() { return false; }
size_t tiles::bundle_bytes(int64_t) { GGML_ABORT("no tiles"); }
size_t tiles::work(int64_t) { GGML_ABORT("no tiles"); }
int64_t tiles::part(int64_t, int64_t, int64_t, int) { GGML_ABORT("no tiles"); }
void tiles::round_forward(const columns &, size_t, int64_t, int64_t, char *) { GGML_ABORT("no tiles"); }
void tiles::round_backward(const columns &, size_t, int64_t, int64_t, char *) { GGML_ABORT("no tiles"); }
void tiles::forward(const matrix &, int64_t, int64_t, int64_t, columns, const char *, char *) { GGML_ABORT("no tiles"); }
void tiles::backward(const matrix &, int64_t, int64_t, int64_t, columns, const char *, char *) { GGML_ABORT("no tiles"); }

#endif
