#include "tiles.h"

#include "lanes.h"

#include <cstring>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

#include "slices.h"

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

constexpr int64_t CHUNK = slices::CHUNK;       // elements along the sum for which a panel of W is
constexpr int64_t STEPS = CHUNK/DEPTH;
constexpr int64_t STRIP = 2*ROWS;              // elements of y for which a panel of W is
constexpr size_t PANEL = STEPS*2*TILE;
using slices::SLICES;
static_assert(DEPTH == slices::SLICE && STRIP == slices::SLICE && CHUNK == 2*slices::PAIRS);
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

inline void store(void * to, __m512i v) { _mm512_store_si512(to, v); }

// the first n of v's numbers
inline void put(float * y, vec v, int64_t n) { _mm512_mask_storeu_ps(y, (__mmask16) (n < W ? (1u << n) - 1 : ~0u), (__m512) v); }

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
    return slices::rounded((__m512) gather(x, stride, n), (__m512) gather(x + W*stride, stride, n - W));
}

// ---- panels of W ------------------------------------------------------------------------
// A panel is two tiles for each step along the sum. A call goes through panels. While one is multiplied, the next one is
// expanded into the other buffer, and one behind it is fetched, some slices between each two tile products: all at once would
// keep the processor waiting.

// Where W has a panel: rows of n elements, at most CHUNK, of which a right panel takes the i-th slices, of [first, end).
struct source {
    const char * data = nullptr;
    size_t stride = 0; // bytes from row to row
    int64_t n_rows = 0, n = 0, first = 0, i = 0, end = 0;

    const char * row(int64_t r) const { return data + std::min(r, n_rows - 1)*stride; }
};

// A unit of expanding: a row of a left tile, from a row of W, or of two right tiles, from two.
struct unit {
    const char * x;
    char * to;
    const char * prepared;
    int64_t later; // bytes from x to what is fetched meanwhile
};

template <class T> struct left_panel {
    static constexpr bool LEFT = true;
    static constexpr int64_t UNITS = STRIP; // of a step
    static constexpr int AHEAD = 3;         // panels, for fetching
    static int64_t n_steps(const source & s) { return divide_up(s.n, DEPTH); }

    static void prepare(const matrix & w, const source & s, int64_t step, int64_t first, int64_t n, char * prepared) {
        if (step == 0) {
            for (int64_t r = first; r < first + n; ++r) {
                T::prepare_row(w, s.row(r), s.n, prepared + r*T::ROW);
            }
        }
    }
    // Meanwhile the line comes near in which the same slice of a later panel ends.
    static unit at(const matrix & w, const source & s, const source & later, int64_t step, int64_t r, char * panel, const char * prepared) {
        return {s.row(r), panel + step*2*TILE + r*LINE, T::of_rows(prepared, step) + r*T::ROW,
            later.data ? later.data - s.data + (step + 1)*T::chunk_bytes(w)/STEPS - 1 : 0};
    }
    static void expand(const source & s, int64_t step, unit & u) {
        store(u.to, T::row(u.x, step, s.n, u.prepared));
        __builtin_prefetch(u.x + u.later, 0, 2);
        u.x += s.stride;
        u.to += LINE;
        u.prepared += T::ROW;
    }
    static void finish(const source &, char *) {}
};

template <class T> struct right_panel {
    static constexpr bool LEFT = false;
    static constexpr int64_t UNITS = ROWS;
    static constexpr int AHEAD = SLICES + 2;
    static int64_t n_steps(const source & s) { return divide_up(s.n_rows, DEPTH); }
    static int64_t row(int64_t step, int64_t r) { return step*DEPTH + 2*r; }

    static void prepare(const matrix & w, const source & s, int64_t step, int64_t first, int64_t n, char * prepared) {
        if (s.i == s.first) {
            for (int64_t r = first; r < first + n; ++r) {
                T::prepare_pair(w, s.row(row(step, r)), s.row(row(step, r) + 1), s.n, prepared + (step*ROWS + r)*T::PAIR);
            }
        }
    }
    static unit at(const matrix &, const source & s, const source &, int64_t step, int64_t r, char * panel, const char * prepared) {
        return {s.row(row(step, r)), panel + step*2*TILE + r*LINE, T::of_pairs(prepared, s.i) + (step*ROWS + r)*T::PAIR, 0};
    }
    static void expand(const source & s, int64_t, unit & u) {
        const slices::pairs v = T::pair(u.x, u.x + s.stride, s.i, s.n, u.prepared);
        store(u.to, v.first);
        store(u.to + TILE, v.second);
        u.x += 2*s.stride;
        u.to += LINE;
        u.prepared += T::PAIR;
    }

    // What n units fetch. Memory likes to be read in order: the panels of the same rows share them out, and fetch them whole.
    static void fetch(const matrix & w, const source & s, int64_t step, int64_t first, int64_t n) {
        const int64_t rows = divide_up(CHUNK, std::max<int64_t>(1, s.end - s.first)), row = (s.i - s.first)*rows;
        const int64_t begin = row + (step*ROWS + first)*rows/slices::PAIRS, end = row + (step*ROWS + first + n)*rows/slices::PAIRS;
        const int64_t bytes = T::chunk_bytes(w);
        const char * p = s.data + begin*s.stride;
        for (int64_t r = begin; r < end; ++r, p += s.stride) {
#pragma GCC unroll 16
            for (int64_t i = 0; i < bytes; i += LINE) {
                __builtin_prefetch(p + i, 0, 2);
            }
            __builtin_prefetch(p + bytes - 1, 0, 2);
        }
        __asm__ volatile(""); // or GCC leaves calls out, as in matrix.h
    }

    // zeros in place of rows beyond the last
    static void finish(const source & s, char * panel) {
        for (int64_t r = s.n_rows; r < divide_up(s.n_rows, DEPTH)*DEPTH; ++r) {
            for (int64_t i = 0; i < STRIP; ++i) {
                ((uint16_t *) (panel + r/DEPTH*2*TILE + i/ROWS*TILE))[r % DEPTH/2*DEPTH + i % ROWS*2 + r % 2] = 0;
            }
        }
    }
};

// A panel that comes while another one is multiplied.
template <class P> struct coming {
    const matrix & w;
    source next, later; // what is expanded, what is fetched
    char * panel, * prepared;
    int64_t n_steps = next.n_rows % DEPTH == 0 ? P::n_steps(next) : 0; // for which expanding goes along
    int64_t n_done = 0;                                                // of these

    // what is left
    void finish() {
        for (int64_t i = n_done; i < P::n_steps(next); ++i) {
            P::prepare(w, next, i, 0, P::UNITS, prepared);
            for (int64_t r = 0; r < P::UNITS; ++r) {
                unit u = P::at(w, next, later, i, r, panel, prepared);
                P::expand(next, i, u);
            }
        }
        P::finish(next, panel);
    }
};

// ---- multiplying ----------------------------------------------------------------------

constexpr int64_t SLOTS = 4; // units that go along with a step, or a multiple

// Tiles beside each other, bytes apart.
struct operand {
    const char * data;
    size_t next;
};

#define MULTIPLY(sum, w, x) do { if constexpr (P::LEFT) _tile_dpbf16ps(sum, w, x); else _tile_dpbf16ps(sum, x, w); } while (0)

// The products of a panel with B columns of tiles of x, set or added to the sums: those of its second tiles and of
// the second column are bytes apart from the first. Between each two products, n units of the coming panel are expanded.
template <class P, int B>
inline void multiply(const char * panel, const char * x, size_t x_next, int64_t n_steps, char * sums, size_t below, size_t beside, bool add, const coming<P> & also, int64_t first, int64_t n) {
    char * const s[] = {sums, sums + beside, sums + below, sums + below + beside};
    if (add) {
        _tile_stream_loadd(0, s[0], LINE);
        if constexpr (B > 1) _tile_stream_loadd(1, s[1], LINE);
        _tile_stream_loadd(2, s[2], LINE);
        if constexpr (B > 1) _tile_stream_loadd(3, s[3], LINE);
    } else {
        _tile_zero(0);
        if constexpr (B > 1) _tile_zero(1);
        _tile_zero(2);
        if constexpr (B > 1) _tile_zero(3);
    }
    for (int64_t i = 0; i < n_steps; ++i, panel += 2*TILE, x += TILE) {
        const int64_t m = i < also.n_steps ? n : 0;
        P::prepare(also.w, also.next, i, first, SLOTS*m, also.prepared);
        unit u = P::at(also.w, also.next, also.later, i, first, also.panel, also.prepared);
        const auto meanwhile = [&] {
            for (int64_t j = m; j > 0; --j) {
                P::expand(also.next, i, u);
            }
        };
        _tile_loadd(4, panel, LINE);
        _tile_stream_loadd(6, x, LINE); // from the second-level cache: x had better not take the room of the panel
        MULTIPLY(0, 4, 6);
        meanwhile();
        if constexpr (B > 1) {
            _tile_stream_loadd(7, x + x_next, LINE);
            MULTIPLY(1, 4, 7);
        }
        meanwhile();
        _tile_loadd(5, panel + TILE, LINE);
        MULTIPLY(2, 5, 6);
        if constexpr (!P::LEFT) P::fetch(also.w, also.later, i, first, SLOTS*m);
        meanwhile();
        if constexpr (B > 1) MULTIPLY(3, 5, 7);
        meanwhile();
    }
    _tile_stored(0, s[0], LINE);
    if constexpr (B > 1) _tile_stored(1, s[1], LINE);
    _tile_stored(2, s[2], LINE);
    if constexpr (B > 1) _tile_stored(3, s[3], LINE);
}

// The products of a panel with n columns of tiles.
template <class P> void multiply(const char * panel, operand x, int64_t n, int64_t n_steps, char * sums, size_t below, size_t beside, bool add, coming<P> & also) {
    const int64_t n_pairs = divide_up(n, 2);
    for (int64_t i = 0; i < n_pairs; ++i, x.data += 2*x.next, sums += 2*beside) {
        const int64_t begin = P::UNITS/SLOTS*i/n_pairs, end = P::UNITS/SLOTS*(i + 1)/n_pairs;
        if (2*i + 1 < n) {
            multiply<P, 2>(panel, x.data, x.next, n_steps, sums, below, beside, add, also, begin*SLOTS, end - begin);
        } else {
            multiply<P, 1>(panel, x.data, x.next, n_steps, sums, below, beside, add, also, begin*SLOTS, end - begin);
        }
    }
    also.n_done = std::min(n_steps, also.n_steps);
    also.finish();
}

// ---- walks through W --------------------------------------------------------------------

// Forward, the panels of rows [m0, m1): strips within parts of depth elements along the sum.
struct forward_walk {
    int64_t m0, m1, n_k, depth;
    int64_t begin = 0, m = m0, k = 0; // begin of the part; the panel's first row and element

    bool ended() const { return begin > 0 && begin >= n_k; }
    int64_t end() const { return std::min(begin + depth, n_k); }
    int64_t n_rows() const { return std::min(STRIP, m1 - m); }
    int64_t n() const { return std::min(CHUNK, end() - k); }
    int64_t n_steps() const { return divide_up(n(), DEPTH); }
    source panel(const matrix & w) const { return ended() ? source() : source{w.at(m, k), w.stride, n_rows(), n()}; }
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

// Backward, the panels of columns [k0, k1): CHUNK rows, STRIP columns.
struct backward_walk {
    int64_t k0, k1, n_m;
    int64_t m = 0, k = k0;

    bool ended() const { return m > 0 && m >= n_m; }
    int64_t n_rows() const { return std::min(CHUNK, n_m - m); }
    int64_t n_steps() const { return divide_up(n_rows(), DEPTH); }
    source panel(const matrix & w) const {
        const int64_t chunk = k/CHUNK*CHUNK, end = std::min(CHUNK, divide_up(k1, w.block)*w.block - chunk);
        return ended() ? source() : source{w.at(m, chunk), w.stride, n_rows(), end,
            std::max<int64_t>(0, k0 - chunk)/STRIP, (k - chunk)/STRIP, divide_up(std::min(CHUNK, k1 - chunk), STRIP)};
    }
    void advance() {
        if (ended()) {
            return;
        }
        k += STRIP;
        if (k >= k1) {
            k = k0;
            m += CHUNK;
        }
    }
};

// f(panel, a walk to it, the panel that comes) for all panels from a walk's on
template <class P, class walk, typename F> void each_panel(const matrix & w, walk now, char * buffers, F f) {
    char * panel = buffers, * other = panel + PANEL, * const prepared = other + PANEL;
    walk next = now, later = now;
    for (int i = 0; i < P::AHEAD; ++i) {
        later.advance();
    }
    coming<P> first{w, now.panel(w), later.panel(w), panel, prepared};
    first.finish();
    while (!now.ended()) {
        next.advance();
        later.advance();
        coming<P> also{w, next.panel(w), later.panel(w), other, prepared};
        f(panel, now, also);
        now = next;
        std::swap(panel, other);
    }
}

constexpr size_t BUFFERS = 2*PANEL + CHUNK*slices::of_any::ROW;

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
            put((float *) cols.y[t + i] + m, (vec) v[i], n_rows);
        }
    }
}

// The columns from t on for which W is expanded once.
columns group_of(const columns & cols, int64_t t) { return {cols.x + t, cols.y + t, std::min(GROUP, cols.n - t)}; }

template <class T> void forward_in(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, const char * x, char * work) {
    for (int64_t t0 = 0; t0 < cols.n; t0 += GROUP) {
        const columns group = group_of(cols, t0);
        const int64_t n_bundles = bundles_of(group.n);
        const size_t next = tiles::bundle_bytes(n_k);
        const forward_walk start{m0, m1, n_k, even_part(n_k, std::max<int64_t>(CHUNK, NEAR/(2*tiles::COLUMNS*n_bundles)/CHUNK*CHUNK), CHUNK)};
        each_panel<left_panel<T>>(w, start, work + sums_bytes(m1 - m0, group.n), [&](const char * panel, const forward_walk & at, auto & also) {
            // the lines of y that the strip will be written to, some with each panel
            for (int64_t t = group.n*at.k/n_k; t < group.n*(at.k + at.n())/n_k; ++t) {
                __builtin_prefetch((float *) group.y[t] + at.m, 1);
                __builtin_prefetch((float *) group.y[t] + at.m + ROWS, 1);
            }
            char * sums = work + (at.depth < n_k ? (at.m - m0)/ROWS*n_bundles*TILE : 0);
            multiply(panel, {x + at.k/DEPTH*TILE, next}, n_bundles, at.n_steps(), sums, n_bundles*TILE, TILE, at.k > 0, also);
            if (at.k + at.n() >= n_k) {
                for (int64_t i = 0; i < at.n_rows(); i += ROWS) {
                    hand_out(sums + i/ROWS*n_bundles*TILE, at.m + i, at.n_rows() - i, group);
                }
            }
        });
        x += n_bundles*next;
    }
}

template <class T> void backward_in(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, const char * g, char * work) {
    for (int64_t t0 = 0; t0 < cols.n; t0 += GROUP) {
        const columns group = group_of(cols, t0);
        const int64_t n_bundles = bundles_of(group.n), n_tiles = 2*divide_up(k1 - k0, STRIP);
        const size_t next = tiles::bundle_bytes(n_m);
        each_panel<right_panel<T>>(w, backward_walk{k0, k1, n_m}, work + sums_bytes(k1 - k0, group.n), [&](const char * panel, const backward_walk & at, auto & also) {
            multiply(panel, {g + at.m/DEPTH*TILE, next}, n_bundles, at.n_steps(), work + (at.k - k0)/ROWS*TILE, TILE, n_tiles*TILE, at.m > 0, also);
        });
        for (int64_t t = 0; t < group.n; ++t) {
            const char * from = work + t/ROWS*n_tiles*TILE + t%ROWS*LINE;
            for (int64_t k = k0; k < k1; k += ROWS, from += TILE) {
                put((float *) group.y[t] + k, load((const float *) from), k1 - k);
            }
        }
        g += n_bundles*next;
    }
}

// f(T()), T of slices.h for a matrix
template <typename F> void in_slices(const matrix & w, F f) {
    switch (w.type) {
        case GGML_TYPE_F32:    return f(slices::of_numbers<float>());
        case GGML_TYPE_F16:    return f(slices::of_numbers<ggml_half>());
        case GGML_TYPE_BF16:   return f(slices::of_bfloats());
        case GGML_TYPE_Q4_0:   return f(slices::of_slices<block_q4_0>());
        case GGML_TYPE_Q4_1:   return f(slices::of_slices<block_q4_1>());
        case GGML_TYPE_Q5_0:   return f(slices::of_slices<block_q5_0>());
        case GGML_TYPE_Q5_1:   return f(slices::of_slices<block_q5_1>());
        case GGML_TYPE_Q8_0:   return f(slices::of_q8_0());
        case GGML_TYPE_IQ4_NL: return f(slices::of_slices<block_iq4_nl>());
        case GGML_TYPE_MXFP4:  return f(slices::of_slices<block_mxfp4>());
        case GGML_TYPE_IQ4_XS: return f(slices::of_blocks<slices::of_nibbles<slices::iq4_xs>>());
        case GGML_TYPE_Q2_K:   return f(slices::of_q2_K());
        case GGML_TYPE_Q3_K:   return f(slices::of_blocks<slices::of_bytes<slices::q3_K>>());
        case GGML_TYPE_Q4_K:   return f(slices::of_blocks<slices::of_nibbles<slices::q4_K>>());
        case GGML_TYPE_Q5_K:   return f(slices::of_blocks<slices::of_bytes<slices::q5_K>>());
        case GGML_TYPE_Q6_K:   return f(slices::of_blocks<slices::of_bytes<slices::q6_K>>());
        default:               return f(slices::of_any());
    }
}

int64_t most_rows(int64_t n_columns) { return std::clamp<int64_t>(NEAR/4/std::clamp<int64_t>(n_columns, 1, GROUP)/CHUNK, 1, 8)*CHUNK; }

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

// (A tile more: two bundles' tiles are not the same sets of a cache, then.)
size_t tiles::bundle_bytes(int64_t length) { return (depth_of(length) + 1)*TILE; }

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

size_t tiles::work(int64_t n_columns) { return sums_bytes(most_rows(n_columns), std::min(n_columns, GROUP)) + BUFFERS; }

int64_t tiles::part(int64_t n_rows, int64_t n_columns, int n_threads) {
    const int64_t least = divide_up(n_rows, most_rows(n_columns));
    return divide_up(n_rows, divide_up(least, n_threads)*n_threads*STRIP)*STRIP;
}

void tiles::forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, const char * x, char * work) {
    const registers in_use;
    in_slices(w, [&](auto t) { forward_in<decltype(t)>(w, m0, m1, n_k, cols, x, work); });
}

void tiles::backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, const char * g, char * work) {
    const registers in_use;
    in_slices(w, [&](auto t) { backward_in<decltype(t)>(w, k0, k1, n_m, cols, g, work); });
}

#else

bool tiles::available() { return false; }
size_t tiles::bundle_bytes(int64_t) { GGML_ABORT("no tiles"); }
size_t tiles::work(int64_t) { GGML_ABORT("no tiles"); }
int64_t tiles::part(int64_t, int64_t, int) { GGML_ABORT("no tiles"); }
void tiles::round_forward(const columns &, size_t, int64_t, int64_t, char *) { GGML_ABORT("no tiles"); }
void tiles::round_backward(const columns &, size_t, int64_t, int64_t, char *) { GGML_ABORT("no tiles"); }
void tiles::forward(const matrix &, int64_t, int64_t, int64_t, columns, const char *, char *) { GGML_ABORT("no tiles"); }
void tiles::backward(const matrix &, int64_t, int64_t, int64_t, columns, const char *, char *) { GGML_ABORT("no tiles"); }

#endif
