#include "exact.h"

#include "dequantize.h"
#include "ggml-cpu-impl.h"
#include "lanes.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

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
constexpr int WIDTH = 256;    // most elements in each; no type has larger blocks
constexpr int TILE = KV*W;

// from row to row; a power of two apart they would compete for the same cache lines
constexpr int FORWARD_PITCH = DEPTH + 16, BACKWARD_PITCH = WIDTH + 16;
constexpr int PANEL = std::max(HEIGHT*FORWARD_PITCH, BATCH*BACKWARD_PITCH);
constexpr size_t LINE = 64; // bytes of a cache line

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1)/by; }

// Parts of this size, a multiple of unit, share n evenly; most is a multiple, too.
int64_t even_part(int64_t n, int64_t most, int64_t unit) {
    const int64_t parts = std::max<int64_t>(1, divide_up(n, most));
    return std::max<int64_t>(1, divide_up(n, parts*unit))*unit;
}

// f(C, first) for even tiles of C <= MOST columns, C a std::integral_constant
template <int C, typename F> inline void sized_tile(int64_t n, int64_t first, F f) {
    if (n == C) {
        f(std::integral_constant<int, C>(), first);
    } else if constexpr (C > 1) {
        sized_tile<C - 1>(n, first, f);
    }
}

template <int MOST, typename F> inline void each_tile(int64_t n_columns, F f) {
    const int64_t tiles = divide_up(n_columns, MOST);
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t first = n_columns*i/tiles;
        sized_tile<MOST>(n_columns*(i + 1)/tiles - first, first, f);
    }
}

// brings n bytes near the processor, for use soon
inline void fetch(const char * p, int64_t n) {
    for (const char * end = p + n; p < end; p += LINE) {
        __builtin_prefetch(p, 0, 2);
    }
}

// a matrix of W
struct matrix {
    const char * data; // row r at data + r*stride
    size_t stride;
    ggml_to_float_t to_float; // null: float32 already
    int64_t block;            // elements that are dequantized together
    size_t block_bytes;

    matrix(const ggml_tensor * t, int64_t i2, int64_t i3) :
        data((const char *) t->data + i2*t->nb[2] + i3*t->nb[3]), stride(t->nb[1]),
        to_float(llsteer_to_float(t->type)), block(ggml_blck_size(t->type)), block_bytes(ggml_type_size(t->type)) {}

    int64_t bytes(int64_t n) const { return n/block*block_bytes; } // of n elements
    const char * at(int64_t row, int64_t k) const { return data + row*stride + bytes(k); }
};

// the columns of x (or g) and of y that a matrix has part in
struct columns {
    const char ** x;
    char ** y;
    int64_t n;
};

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

// Elements [m0, m1) of the columns of y.
void forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, float * panel) {
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

// Elements [k0, k1), at most WIDTH, of the columns of y.
void backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, size_t g_stride, float * panel) {
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

// ---- nodes --------------------------------------------------------------------------

// the most columns that a matrix can have
int64_t max_columns(const ggml_tensor * node) { return node->src[2] ? ggml_nrows(node) : node->ne[1]; }

// whole cache lines: no two threads write to one
size_t thread_bytes(const ggml_tensor * node) {
    return divide_up(PANEL*sizeof(float) + 2*max_columns(node)*sizeof(char *), LINE)*LINE;
}

// the tokens' uses of an expert
void list_columns(const ggml_tensor * node, int64_t expert, columns & cols) {
    const ggml_tensor * x = node->src[1], * ids = node->src[2];
    cols.n = 0;
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            const int32_t id = *(const int32_t *) ((const char *) ids->data + i*ids->nb[0] + t*ids->nb[1]);
            GGML_ASSERT(id >= 0 && id < node->src[0]->ne[2]);
            if (id == expert) {
                // MUL_MAT_ID broadcasts x over the experts of a token
                cols.x[cols.n] = (const char *) x->data + i % x->ne[1]*x->nb[1] + t*x->nb[2];
                cols.y[cols.n] = (char *) node->data + i*node->nb[1] + t*node->nb[2];
                ++cols.n;
            }
        }
    }
}

// the columns of a pair of batch dimensions
void list_columns(const ggml_tensor * node, int64_t i2, int64_t i3, columns & cols) {
    const ggml_tensor * x = node->src[1];
    const size_t x_stride = x->nb[node->op == GGML_OP_OUT_PROD ? 0 : 1];
    cols.n = node->ne[1];
    for (int64_t t = 0; t < cols.n; ++t) {
        cols.x[t] = (const char *) x->data + t*x_stride + i2*x->nb[2] + i3*x->nb[3];
        cols.y[t] = (char *) node->data + t*node->nb[1] + i2*node->nb[2] + i3*node->nb[3];
    }
}

} // namespace

bool llsteer_exact_takes(const ggml_tensor * node) {
    const bool back = node->op == GGML_OP_OUT_PROD;
    const bool product = node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID;
    if (!back && !(product && node->op_params[0] == GGML_PREC_EXACT)) {
        return false;
    }
    const ggml_tensor * w = node->src[0], * x = node->src[1];
    return (w->type == GGML_TYPE_F32 || ggml_get_type_traits(w->type)->to_float) && w->nb[0] == ggml_type_size(w->type) &&
        x->type == GGML_TYPE_F32 && (back || x->nb[0] == sizeof(float)) &&
        node->type == GGML_TYPE_F32 && node->nb[0] == sizeof(float);
}

size_t llsteer_exact_work_size(const ggml_tensor * node, int n_threads) {
    return thread_bytes(node)*n_threads + LINE;
}

void llsteer_exact_compute(const ggml_compute_params * params, ggml_tensor * node) {
    GGML_ASSERT(params->wsize >= llsteer_exact_work_size(node, params->nth));
    const ggml_tensor * w = node->src[0], * x = node->src[1], * ids = node->src[2];
    const bool back = node->op == GGML_OP_OUT_PROD;

    float * panel = (float *) (((uintptr_t) params->wdata + LINE - 1)/LINE*LINE + params->ith*thread_bytes(node));
    columns cols;
    cols.x = (const char **) (panel + PANEL);
    cols.y = (char **) (cols.x + max_columns(node));

    // The elements of y are numbered matrix by matrix, in each by parts of the
    // columns, and shared out: each thread takes a run, rounded to whole columns of
    // a part. So it walks through W, and few panels are made by two threads.
    const int64_t total = ggml_nelements(node), size = node->ne[0];
    const int64_t begin = total*params->ith/params->nth, end = total*(params->ith + 1)/params->nth;

    const int64_t n_matrices = ids ? w->ne[2] : node->ne[2]*node->ne[3];
    int64_t at = 0; // the number of the next element
    for (int64_t i = 0; i < n_matrices && at < end; ++i) {
        const int64_t i2 = i % node->ne[2], i3 = i/node->ne[2]; // without ids
        cols.n = node->ne[1];
        if (ids) {
            list_columns(node, i, cols);
        } else if (at + size*cols.n > begin) {
            list_columns(node, i2, i3, cols);
        }
        const matrix m = ids ? matrix(w, i, 0) : matrix(w, i2/(node->ne[2]/w->ne[2]), i3/(node->ne[3]/w->ne[3]));
        const int64_t part = back ? even_part(size, WIDTH, std::max<int64_t>(TILE, m.block)) :
            panel_rows(cols.n)*std::clamp<int64_t>(divide_up(cols.n, NR), 1, PANELS);
        for (int64_t first = 0; first < size; first += part) {
            const int64_t n = std::min(part, size - first);
            const auto column = [&](int64_t number) { return std::clamp<int64_t>(divide_up(number - at, n), 0, cols.n); };
            const int64_t c0 = column(begin), c1 = column(end);
            if (c0 < c1) {
                const columns mine = {cols.x + c0, cols.y + c0, c1 - c0};
                if (back) {
                    backward(m, first, first + n, w->ne[1], mine, x->nb[ids ? 0 : 1], panel);
                } else {
                    forward(m, first, first + n, w->ne[0], mine, panel);
                }
            }
            at += n*cols.n;
        }
    }
}
