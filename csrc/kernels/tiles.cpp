#include "tiles.h"

#include "lanes.h"

#include <cstring>

#if defined(__AVX512BF16__) && defined(__linux__)

#if defined(__AMX_BF16__)
#include "multiply_amx.h"
#else
#include "multiply_avx512.h"
#endif

namespace {

using namespace tiles;

constexpr int64_t GROUP = 256;      // most columns for which W is expanded once
constexpr int64_t NEAR = 768 << 10; // bytes of x, or of sums, that stay in the second-level cache

// ---- rounding -------------------------------------------------------------------------

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
            multiply(panel, {x + at.k/DEPTH*TILE, next}, group.n, at.n_steps(), sums, n_bundles*TILE, TILE, at.k > 0, also);
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
            multiply(panel, {g + at.m/DEPTH*TILE, next}, group.n, at.n_steps(), work + (at.k - k0)/ROWS*TILE, TILE, n_tiles*TILE, at.m > 0, also);
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
    static const bool available = possible();
    return available;
}

bool & tiles::in_use() {
    static bool in_use = available() && faster_than_fixed_point();
    return in_use;
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
    const registers set_up;
    in_slices(w, [&](auto t) { forward_in<decltype(t)>(w, m0, m1, n_k, cols, x, work); });
}

void tiles::backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, const char * g, char * work) {
    const registers set_up;
    in_slices(w, [&](auto t) { backward_in<decltype(t)>(w, k0, k1, n_m, cols, g, work); });
}

#else

bool tiles::available() { return false; }
bool & tiles::in_use() { static bool no = false; return no; }
size_t tiles::bundle_bytes(int64_t) { GGML_ABORT("no tiles"); }
size_t tiles::work(int64_t) { GGML_ABORT("no tiles"); }
int64_t tiles::part(int64_t, int64_t, int) { GGML_ABORT("no tiles"); }
void tiles::round_forward(const columns &, size_t, int64_t, int64_t, char *) { GGML_ABORT("no tiles"); }
void tiles::round_backward(const columns &, size_t, int64_t, int64_t, char *) { GGML_ABORT("no tiles"); }
void tiles::forward(const matrix &, int64_t, int64_t, int64_t, columns, const char *, char *) { GGML_ABORT("no tiles"); }
void tiles::backward(const matrix &, int64_t, int64_t, int64_t, columns, const char *, char *) { GGML_ABORT("no tiles"); }

#endif
