#include "exact.h"

#include "lanes.h"

#include <cstring>

namespace {

using namespace lanes;

// Both products are made in tiles whose sums stay in registers. A panel of W is
// dequantized into the caches, once for all columns.
#if defined(__AVX512F__) || defined(__aarch64__) // 32 registers
constexpr int MR = 4, NR = 6; // rows and columns of a forward tile, a vector of sums each
constexpr int KV = 4, CT = 6; // vectors and columns of a backward tile
#else // 16
constexpr int MR = 3, NR = 4;
constexpr int KV = 2, CT = 6;
#endif
constexpr int HEIGHT = 16*MR; // most rows of a forward panel
constexpr int DEPTH = 1024;   // most elements in each
constexpr int PANELS = 16;    // most forward panels over which part of x stays in the caches
constexpr int BATCH = 128;    // rows of a backward panel
constexpr int WIDTH = LARGEST_BLOCK; // most elements in each
constexpr int TILE = KV*W;

// from row to row; a power of two apart they would compete for the same cache lines
constexpr int FORWARD_PITCH = DEPTH + 16, BACKWARD_PITCH = WIDTH + 16;
constexpr int PANEL = std::max(HEIGHT*FORWARD_PITCH, BATCH*BACKWARD_PITCH);

// ---- forward: y[m,t] = sum_k W[k,m] x[k,t] ------------------------------------------

// from each four lanes of a (0 to 3) and of b (4 to 7), those four
template <int I, int J, int K, int L> inline vec mix(vec a, vec b) {
    const int pick[] = {I, J, K, L};
    ivec lane;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        lane[i] = i/4*4 + pick[i % 4] % 4 + pick[i % 4]/4*W;
    }
    return shuffle(a, b, lane);
}

// v and v turned by N lanes
template <int N> inline vec fold(vec v) {
    ivec lane;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        lane[i] = (i + N) % W;
    }
    return v + shuffle(v, v, lane);
}

// lanes 0 to 3: the sums over all lanes of v[0] to v[3]
inline vec sum_lanes(const vec * v) {
    const vec a = mix<0, 4, 1, 5>(v[0], v[1]) + mix<2, 6, 3, 7>(v[0], v[1]);
    const vec b = mix<0, 4, 1, 5>(v[2], v[3]) + mix<2, 6, 3, 7>(v[2], v[3]);
    vec s = mix<0, 1, 4, 5>(a, b) + mix<2, 3, 6, 7>(a, b);
    if constexpr (W > 8) {
        s = fold<8>(s);
    }
    if constexpr (W > 4) {
        s = fold<4>(s);
    }
    return s;
}

// Rows w times columns x, both of n elements, set or added to y[column][row]. (Loops
// over a tile are unrolled by decree: not unrolled, it would live in memory.)
template <int R, int C> __attribute__((noinline))
void dot_tile(const float * const * w, const float * const * x, int64_t n, float * const * y, bool add) {
    vec sum[C][4] = {};
    const auto accumulate = [&](auto at) {
        vec a[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            a[r] = at(w[r]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const vec b = at(x[c]);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                sum[c][r] = multiply_add(a[r], b, sum[c][r]);
            }
        }
    };
    int64_t k = 0;
    for (; k + W <= n; k += W) {
        accumulate([k](const float * p) { return load(p + k); });
    }
    if (k < n) {
        accumulate([k, n](const float * p) { return load(p + k, (int) (n - k)); });
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        const vec s = sum_lanes(sum[c]);
        float before[4] = {}, total[4];
        if (add) {
            memcpy(before, y[c], R*sizeof(float));
        }
        memcpy(total, &s, sizeof(total));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            total[r] += before[r];
        }
        memcpy(y[c], total, R*sizeof(float));
    }
}

// Rows of a panel for so many columns: the fewer use it, the more it should stay in
// the first-level cache; the more, the fewer times they should come by.
int64_t panel_rows(int64_t n_columns) { return MR*std::clamp<int64_t>(divide_up(n_columns, 4*NR), 1, HEIGHT/MR); }

} // namespace

int64_t exact::forward_part(int64_t n_columns) {
    return panel_rows(n_columns)*std::clamp<int64_t>(divide_up(n_columns, NR), 1, PANELS);
}

void exact::forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, float * panel) {
    const int64_t depth = even_part(n_k, DEPTH, WIDTH), height = panel_rows(cols.n);
    for (int64_t k0 = 0; k0 == 0 || k0 < n_k; k0 += depth) {
        const int64_t n = std::min(depth, n_k - k0);
        for (int64_t m = m0; m < m1; m += height) {
            const int64_t n_rows = std::min(height, m1 - m);
            const float * rows[HEIGHT];
            for (int64_t r = 0; r < n_rows; ++r) {
                rows[r] = (const float *) w.at(m + r, k0);
                if (w.to_float) {
                    w.to_float(rows[r], panel + r*FORWARD_PITCH, n);
                    rows[r] = panel + r*FORWARD_PITCH;
                }
            }
            // the next panel, perhaps past the end: nothing is read
            const char * next = m + height < m1 ? w.at(m + height, k0) : k0 + depth < n_k ? w.at(m0, k0 + depth) : w.at(m1, 0);
            each_tile<NR>(cols.n, [&](auto size, int64_t t) {
                constexpr int C = decltype(size)::value;
                // a share of it with each tile: all at once would keep the processor waiting
                const int64_t from = w.bytes(n)*t/cols.n, to = w.bytes(n)*(t + C)/cols.n;
                for (int64_t r = 0; r < height; ++r) {
                    fetch(next + r*w.stride + from, to - from);
                }
                const float * x[C];
                float * y[C];
                for (int c = 0; c < C; ++c) {
                    x[c] = (const float *) cols.x[t + c] + k0;
                }
                for (int64_t r = 0; r < n_rows; ) {
                    for (int c = 0; c < C; ++c) {
                        y[c] = (float *) cols.y[t + c] + m + r;
                    }
                    if (r + MR <= n_rows) {
                        dot_tile<MR, C>(rows + r, x, n, y, k0 > 0);
                        r += MR;
                    } else {
                        dot_tile<1, C>(rows + r, x, n, y, k0 > 0);
                        r += 1;
                    }
                }
            });
        }
    }
}

namespace {

// ---- backward: y[k,t] = sum_m W[k,m] g[t,m] -----------------------------------------

// The sum over rows of a panel times g[c], read every g_stride bytes, set or added to
// the first width elements of y[c].
template <int C> __attribute__((noinline))
void outer_tile(const float * panel, const char * const * g, size_t g_stride, int64_t n_rows, float * const * y, int64_t width, bool add) {
    vec sum[C][KV] = {};
    for (int64_t r = 0; r < n_rows; ++r) {
        vec a[KV];
#pragma GCC unroll 8
        for (int v = 0; v < KV; ++v) {
            a[v] = load(panel + r*BACKWARD_PITCH + v*W);
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const vec b = all(*(const float *) (g[c] + r*g_stride));
#pragma GCC unroll 8
            for (int v = 0; v < KV; ++v) {
                sum[c][v] = multiply_add(a[v], b, sum[c][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        if (width >= TILE) {
#pragma GCC unroll 8
            for (int v = 0; v < KV; ++v) {
                store(y[c] + v*W, add ? load(y[c] + v*W) + sum[c][v] : sum[c][v]);
            }
        } else {
            float s[TILE];
            memcpy(s, sum[c], sizeof(s));
            for (int64_t i = 0; i < width; ++i) {
                y[c][i] = add ? y[c][i] + s[i] : s[i];
            }
        }
    }
}

} // namespace

int64_t exact::backward_part(int64_t n_k, int64_t block) { return even_part(n_k, WIDTH, std::max<int64_t>(TILE, block)); }

void exact::backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, size_t g_stride, float * panel) {
    const int64_t n = k1 - k0;
    for (int64_t m0 = 0; m0 == 0 || m0 < n_m; m0 += BATCH) {
        const int64_t n_rows = std::min<int64_t>(BATCH, n_m - m0);
        for (int64_t r = 0; r < n_rows; ++r) {
            if (m0 + r + BATCH < n_m) {
                fetch(w.at(m0 + r + BATCH, k0), w.bytes(n));
            }
            if (w.to_float) {
                w.to_float(w.at(m0 + r, k0), panel + r*BACKWARD_PITCH, n);
            } else {
                memcpy(panel + r*BACKWARD_PITCH, w.at(m0 + r, k0), n*sizeof(float));
            }
        }
        each_tile<CT>(cols.n, [&](auto size, int64_t t) {
            constexpr int C = decltype(size)::value;
            const char * g[C];
            float * y[C];
            for (int c = 0; c < C; ++c) {
                g[c] = cols.x[t + c] + m0*g_stride;
            }
            for (int64_t k = 0; k < n; k += TILE) {
                for (int c = 0; c < C; ++c) {
                    y[c] = (float *) cols.y[t + c] + k0 + k;
                }
                // what lies beyond n in the panel is stale, and no sum of it is kept
                outer_tile<C>(panel + k, g, g_stride, n_rows, y, n - k, m0 > 0);
            }
        });
    }
}

const size_t exact::WORK = PANEL;
