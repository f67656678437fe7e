#include "fixed.h"

#include <cstring>

namespace {

using namespace lanes;
using fixed::bundle;
using fixed::segment;
using fixed::SEGMENT;

constexpr int PAIRS = SEGMENT/2;
constexpr int STRIP = 64;            // rows of y that a panel of W is for
constexpr int SPAN = LARGEST_BLOCK;  // elements of a row of W that are expanded together
constexpr int SEGMENTS = SPAN/SEGMENT;
constexpr int64_t COLUMNS = 512;     // most whose sums stay in the caches

// ---- rounding -----------------------------------------------------------------------

// The bits of |x| are ordered as numbers are, with infinity and NaN above all.
inline ivec magnitude(vec x) { return (ivec) x & 0x7fffffff; }

// for elements of at most this magnitude: their scale, and its inverse
inline void scale_of(ivec most, vec & scale, vec & inverse) {
    const vec m = (vec) most;
    const ivec finite = most < 0x7f800000, tiny = m < all(1e-33f); // whose inverse might be infinite
    scale = (vec) (((ivec) (m*all(1.0f/fixed::MOST)) & ~tiny & finite) | (~finite & 0x7fc00000));
    inverse = (vec) ((ivec) (all((float) fixed::MOST)/m) & ~tiny & finite);
}

// x*by as an integer in the low half of each lane: this sum has its unit in the last place
inline ivec rounded(vec x, vec by) { return (ivec) multiply_add(x, by, all(12582912.0f)); }

inline ivec pair(ivec low, ivec high) { return (low & 0xffff) | (high << 16); }

// the pairs in which n elements have part
int n_pairs_of(int64_t n) { return n >= SEGMENT ? PAIRS : (int) (n/(2*W)*W + std::min<int64_t>(n % (2*W), W)); }

// the greatest lane, in all lanes
inline ivec greatest(ivec v) {
#pragma GCC unroll 4
    for (int n = W/2; n > 0; n /= 2) {
        ivec lane;
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            lane[i] = (i + n) % W;
        }
        v = max(v, (ivec) shuffle((vec) v, (vec) v, lane));
    }
    return v;
}

inline ivec greatest_magnitude(const float * x) {
    ivec most = {};
#pragma GCC unroll 8
    for (int i = 0; i < SEGMENT; i += W) {
        most = max(most, magnitude(load(x + i)));
    }
    return most;
}

inline void round_segment(const float * x, vec inverse, segment & to) {
#pragma GCC unroll 8
    for (int p = 0; p < PAIRS; p += W) {
        store((float *) to.pairs + p, (vec) pair(rounded(load(x + 2*p), inverse), rounded(load(x + 2*p + W), inverse)));
    }
}

// ---- tiles --------------------------------------------------------------------------

#if defined(__AVX512F__) || defined(__aarch64__) // 32 registers
constexpr int VECTORS = 4; // most vectors of a tile
constexpr int rows_of(int vectors) { return vectors <= 2 ? 12 : vectors == 3 ? 8 : 6; } // most rows of a tile
#else // 16
constexpr int VECTORS = 2;
constexpr int rows_of(int vectors) { return vectors == 1 ? 12 : 6; }
#endif

// The products of C vectors' segments with LV bundles, set or added to y[vector].
template <int LV, int C> __attribute__((noinline))
void tile(const bundle * b, const segment * const * x, int n_pairs, float * const * y, bool add) {
    ivec sum[C][LV] = {};
    for (int p = 0; p < n_pairs; ++p) {
        ivec a[LV];
#pragma GCC unroll 8
        for (int v = 0; v < LV; ++v) {
            a[v] = b[v].pairs[p];
        }
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
            for (int v = 0; v < LV; ++v) {
                sum[c][v] = dot_pairs(a[v], x[c]->pairs[p], sum[c][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
        const vec scale = all(x[c]->scale);
#pragma GCC unroll 8
        for (int v = 0; v < LV; ++v) {
            const vec before = add ? load(y[c] + v*W) : vec {};
            store(y[c] + v*W, multiply_add(__builtin_convertvector(sum[c][v], vec), scale*b[v].scales, before));
        }
    }
}

// Rows of W that are needed soon, [begin, end), elements [k, k + n). They are fetched a few with
// each tile: all at once would keep the processor waiting.
struct upcoming {
    const matrix & w;
    int64_t begin, end, k, n;
    int64_t fetched = 0;

    // so that after all parts all rows are
    void fetch_until(int64_t part, int64_t parts) {
        for (; fetched < (end - begin)*part/parts; ++fetched) {
            fetch(w.at(begin + fetched, k), w.bytes(n));
        }
    }
};

// All products of n vectors' segments, segment_of(i), with n_bundles bundles, set or added to y, [n][pitch].
template <typename F> void multiply(const bundle * b, int64_t n_bundles, int64_t n, F segment_of, int n_pairs, float * y, int64_t pitch, bool add, upcoming next) {
    each_tile<VECTORS>(n_bundles, [&](auto vectors, int64_t v) {
        constexpr int LV = decltype(vectors)::value;
        each_tile<rows_of(LV)>(n, [&](auto size, int64_t first) {
            constexpr int C = decltype(size)::value;
            next.fetch_until(v*n + (first + C)*LV, n_bundles*n);
            const segment * x[C];
            float * to[C];
            for (int c = 0; c < C; ++c) {
                x[c] = segment_of(first + c);
                to[c] = y + (first + c)*pitch + v*W;
            }
            tile<LV, C>(b + v, x, n_pairs, to, add);
        });
    });
}

// ---- forward: the lanes are columns of x ----------------------------------------------

constexpr int PITCH = SPAN + W; // from row to row of float32, which a power of two would crowd into few cache lines

// Elements [k, k + n) of a row as float32, and zeros to the end of the segment.
inline void expand(const matrix & w, int64_t row, int64_t k, int64_t n, float * to) {
    if (w.to_float) {
        w.to_float(w.at(row, k), to, n);
    } else {
        memcpy(to, w.at(row, k), n*sizeof(float));
    }
    std::fill(to + n, to + divide_up(n, SEGMENT)*SEGMENT, 0.0f);
}

struct forward_memory {
    segment w[SEGMENTS][STRIP];
    alignas(LINE) float rows[W][PITCH];
};

// Segment s of W rows.
void round_rows(const float (* rows)[PITCH], int s, segment * to) {
    ivec mosts[W], most = {};
    for (int i = 0; i < W; ++i) {
        mosts[i] = greatest_magnitude(rows[i] + s*SEGMENT);
    }
    transpose(mosts);
    for (const ivec & m : mosts) {
        most = max(most, m);
    }
    vec scales, inverses;
    scale_of(most, scales, inverses);
    for (int i = 0; i < W; ++i) {
        to[i].scale = scales[i];
        round_segment(rows[i] + s*SEGMENT, all(inverses[i]), to[i]);
    }
}

// Elements [k, k + n) of rows [m0, m1).
void round_rows(const matrix & w, int64_t m0, int64_t m1, int64_t k, int64_t n, forward_memory & memory) {
    for (int64_t m = m0; m < m1; m += W) {
        for (int i = 0; i < W; ++i) {
            expand(w, std::min(m + i, m1 - 1), k, n, memory.rows[i]); // nobody reads what is beyond m1
        }
        for (int s = 0; s*SEGMENT < n; ++s) {
            round_rows(memory.rows, s, &memory.w[s][m - m0]);
        }
    }
}

// What follows a span of these rows, its first half with the first segment: the next span, or the next rows.
upcoming next_rows(const matrix & w, int64_t m0, int64_t m1, int64_t k, int64_t n_k, int64_t s) {
    const int64_t half = (m1 - m0)/2, next = k + SPAN < n_k ? k + SPAN : 0, first = next ? m0 : m1;
    return {w, first + (s ? half : 0), first + (s ? m1 - m0 : half), next, std::min<int64_t>(SPAN, n_k - next)};
}

// ---- backward: the lanes are columns of W ---------------------------------------------

struct backward_memory {
    bundle w[STRIP/W];
    alignas(LINE) float rows[SEGMENT][PITCH];
};

// Columns [k, k + STRIP) of the first n_rows rows, behind which there are zeros.
void round_columns(backward_memory & memory, int64_t k, int n_rows) {
    for (int i = 0; i < STRIP/W; ++i) {
        bundle & to = memory.w[i];
        const auto row = [&](int r) { return load(memory.rows[r] + k + i*W); };
        ivec most = {};
        for (int r = 0; r < n_rows; ++r) {
            most = max(most, magnitude(row(r)));
        }
        vec inverse;
        scale_of(most, to.scales, inverse);
        for (int p = 0; p < n_pairs_of(n_rows); ++p) {
            const int r = p/W*2*W + p % W;
            to.pairs[p] = arranged(pair(rounded(row(r), inverse), rounded(row(r + W), inverse)));
        }
    }
}

size_t sums_bytes(int64_t n) { return divide_up(n*sizeof(float), LINE)*LINE; }
int64_t forward_pitch(int64_t n_columns) { return divide_up(n_columns, W)*W + W; }

} // namespace

void fixed::round(const char * x, size_t stride, int64_t n, segment * to, int64_t distance) {
    for (int64_t i = 0; i < n; i += SEGMENT, to += distance) {
        alignas(LINE) float buffer[SEGMENT];
        const char * from = x + i*stride;
        if (stride != sizeof(float) || n - i < SEGMENT) {
            for (int64_t j = 0; j < SEGMENT; ++j) {
                buffer[j] = i + j < n ? *(const float *) (from + j*stride) : 0.0f;
            }
            from = (const char *) buffer;
        }
        vec scale, inverse;
        scale_of(greatest(greatest_magnitude((const float *) from)), scale, inverse);
        to->scale = scale[0];
        round_segment((const float *) from, inverse, *to);
    }
}

void fixed::round(const columns & x, int64_t k, int64_t n, bundle & to) {
    segment s[W] = {};
    for (int64_t i = 0; i < x.n; ++i) {
        round(x.x[i] + k*sizeof(float), sizeof(float), std::min<int64_t>(n - k, SEGMENT), &s[i], 1);
    }
    for (int i = 0; i < W; ++i) {
        to.scales[i] = s[i].scale;
    }
    for (int p = 0; p < PAIRS; p += W) {
        ivec v[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            v[i] = (ivec) load((const float *) s[i].pairs + p);
        }
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            to.pairs[p + i] = arranged(v[i]);
        }
    }
}

size_t fixed::work(int64_t n_columns) {
    const int64_t n = std::min(n_columns, COLUMNS);
    return std::max(sums_bytes(STRIP*forward_pitch(n)) + sizeof(forward_memory), sums_bytes(n*SPAN) + sizeof(backward_memory));
}

int64_t fixed::forward_part() { return STRIP; }

void fixed::forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, const bundle * x, int64_t distance, char * work) {
    float * sums = (float *) work; // [rows][pitch]
    for (int64_t t0 = 0; t0 < cols.n; t0 += COLUMNS) {
        const int64_t t1 = std::min(t0 + COLUMNS, cols.n), n_bundles = divide_up(t1 - t0, W), pitch = forward_pitch(t1 - t0);
        forward_memory & memory = *(forward_memory *) (work + sums_bytes(STRIP*pitch));
        for (int64_t k = 0; k == 0 || k < n_k; k += SPAN) {
            const int64_t n = std::min<int64_t>(SPAN, n_k - k);
            round_rows(w, m0, m1, k, n, memory);
            for (int64_t s = 0; s == 0 || s*SEGMENT < n; ++s) {
                multiply(x + t0/W + (k/SEGMENT + s)*distance, n_bundles, m1 - m0, [&](int64_t r) { return &memory.w[s][r]; },
                    n_pairs_of(n - s*SEGMENT), sums, pitch, k + s > 0, next_rows(w, m0, m1, k, n_k, s));
            }
        }
        for (int64_t r = 0; r < m1 - m0; r += W) {
            for (int64_t t = t0; t < t1; t += W) {
                ivec v[W];
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) {
                    v[i] = (ivec) load(sums + (r + i)*pitch + t - t0);
                }
                transpose(v);
                for (int i = 0; i < W && t + i < t1; ++i) {
                    memcpy((float *) cols.y[t + i] + m0 + r, &v[i], std::min<int64_t>(W, m1 - m0 - r)*sizeof(float));
                }
            }
        }
    }
}

int64_t fixed::backward_part(int64_t block) { return std::max<int64_t>(4*STRIP, block); }

void fixed::backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, int64_t distance, char * work) {
    float * sums = (float *) work; // [columns][SPAN]
    const int64_t n = k1 - k0;
    for (int64_t t0 = 0; t0 < cols.n; t0 += COLUMNS) {
        const int64_t t1 = std::min(t0 + COLUMNS, cols.n);
        backward_memory & memory = *(backward_memory *) (work + sums_bytes((t1 - t0)*SPAN));
        for (int64_t m = 0; m == 0 || m < n_m; m += SEGMENT) {
            const int n_rows = (int) std::min<int64_t>(SEGMENT, n_m - m), n_whole = (int) divide_up(n_rows, 2*W)*2*W;
            for (int r = 0; r < n_rows; ++r) {
                expand(w, m + r, k0, n, memory.rows[r]);
            }
            const int64_t next = m + n_rows, n_next = std::min<int64_t>(SEGMENT, n_m - next);
            for (int r = n_rows; r < n_whole; ++r) { // what fills up pairs counts as zero
                std::fill(memory.rows[r], memory.rows[r] + n, 0.0f);
            }
            for (int64_t i = 0; i < n; i += STRIP) {
                const int64_t n_here = std::min<int64_t>(STRIP, n - i);
                round_columns(memory, i, n_rows);
                multiply(memory.w, divide_up(n_here, W), t1 - t0, [&](int64_t t) { return (const segment *) cols.x[t0 + t] + m/SEGMENT*distance; },
                    n_pairs_of(n_rows), sums + i, SPAN, m > 0, upcoming{w, next + n_next*i/n, next + n_next*(i + n_here)/n, k0, n});
            }
        }
        for (int64_t t = t0; t < t1; ++t) {
            memcpy((float *) cols.y[t] + k0, sums + (t - t0)*SPAN, n*sizeof(float));
        }
    }
}
