#include "products.h"

#include "exact.h"
#include "fixed.h"
#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "tiles.h"

namespace {

bool is_backward(const ggml_tensor * node) { return node->op == GGML_OP_OUT_PROD; }

// A product that asks for no precision, of many columns with quantized weights: ggml would
// round the columns to 8 bits, and take longer.
bool is_prompt(const ggml_tensor * node) {
#if defined(__AVX512BW__)
    constexpr int64_t MANY = 32;
    const ggml_tensor * w = node->src[0];
    return node->op == GGML_OP_MUL_MAT && node->op_params[0] == GGML_PREC_DEFAULT && node->ne[1] >= MANY && ggml_is_quantized(w->type) &&
        w->buffer && ggml_backend_buffer_get_usage(w->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
#else
    return false;
#endif
}

// What computes a node.
enum kernel { EXACT, FIXED, TILES };

kernel kernel_of(const ggml_tensor * node) {
    return node->op_params[0] != GGML_PREC_FIXED && !is_prompt(node) ? EXACT : tiles::in_use() ? TILES : FIXED;
}

// ---- columns ------------------------------------------------------------------------

// All columns of x (or g), numbered: expert ids and batch dimensions choose among them.
struct all_columns {
    int64_t n, length;       // how many, and elements of each
    size_t stride;           // bytes from element to element
    size_t nb1, nb2, nb3;    // from column to column
    int64_t ne1, ne2;
    const char * data;

    explicit all_columns(const ggml_tensor * node) {
        const ggml_tensor * x = node->src[1];
        const bool turned = is_backward(node) && !node->src[2];
        length = x->ne[turned ? 1 : 0];
        stride = x->nb[turned ? 1 : 0];
        ne1 = x->ne[turned ? 0 : 1];
        nb1 = x->nb[turned ? 0 : 1];
        ne2 = x->ne[2];
        nb2 = x->nb[2];
        nb3 = x->nb[3];
        n = ne1*ne2*x->ne[3];
        data = (const char *) x->data;
    }

    const char * at(int64_t number) const { return data + number % ne1*nb1 + number/ne1 % ne2*nb2 + number/ne1/ne2*nb3; }
};

// the most columns that a matrix can have
int64_t max_columns(const ggml_tensor * node) { return node->src[2] ? ggml_nrows(node) : node->ne[1]; }

// Lists the tokens' uses of an expert; x(number) is a column's address.
template <typename X> void list_columns(const ggml_tensor * node, int64_t expert, X x, columns & cols) {
    const ggml_tensor * ids = node->src[2];
    const int64_t ne1 = node->src[1]->ne[1];
    cols.n = 0;
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            const int32_t id = *(const int32_t *) ((const char *) ids->data + i*ids->nb[0] + t*ids->nb[1]);
            GGML_ASSERT(id >= 0 && id < node->src[0]->ne[2]);
            if (id == expert) {
                cols.x[cols.n] = x(i % ne1 + t*ne1); // MUL_MAT_ID broadcasts x over the experts of a token
                cols.y[cols.n] = (char *) node->data + i*node->nb[1] + t*node->nb[2];
                ++cols.n;
            }
        }
    }
}

// Lists the columns of a pair of batch dimensions.
template <typename X> void list_columns(const ggml_tensor * node, int64_t i2, int64_t i3, X x, columns & cols) {
    cols.n = node->ne[1];
    for (int64_t t = 0; t < cols.n; ++t) {
        cols.x[t] = x(t + cols.n*(i2 + node->ne[2]*i3));
        cols.y[t] = (char *) node->data + t*node->nb[1] + i2*node->nb[2] + i3*node->nb[3];
    }
}

// ---- matrices -----------------------------------------------------------------------

// f(W's matrix, its columns) for all matrices in turn; x(number) is the address of a column.
template <typename X, typename F> void each_matrix(const ggml_tensor * node, X x, columns cols, F f) {
    const ggml_tensor * w = node->src[0];
    if (node->src[2]) {
        for (int64_t i = 0; i < w->ne[2]; ++i) {
            list_columns(node, i, x, cols);
            f(matrix(w, i, 0), cols);
        }
        return;
    }
    for (int64_t i3 = 0; i3 < node->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < node->ne[2]; ++i2) {
            list_columns(node, i2, i3, x, cols);
            f(matrix(w, i2/(node->ne[2]/w->ne[2]), i3/(node->ne[3]/w->ne[3])), cols);
        }
    }
}

// Columns of a matrix that lie side by side, rounded.
int64_t bundle_of(kernel in) { return in == TILES ? tiles::COLUMNS : lanes::W; }

// the most bundles that the columns of all matrices can make
int64_t max_bundles(const ggml_tensor * node) {
    const int64_t size = bundle_of(kernel_of(node));
    if (node->src[2]) {
        const int64_t n_uses = ggml_nrows(node);
        return n_uses/size + std::min(n_uses, node->src[0]->ne[2]);
    }
    return divide_up(node->ne[1], size)*node->ne[2]*node->ne[3];
}

// ---- work memory: rounded columns for all threads, then for each panels and lists -------

size_t whole_lines(size_t bytes) { return divide_up(bytes, LINE)*LINE; } // no two threads write to one

size_t shared_bytes(const ggml_tensor * node) {
    const all_columns x(node);
    const int64_t n_segments = divide_up(x.length, fixed::SEGMENT);
    switch (kernel_of(node)) {
        case FIXED: return whole_lines(n_segments*(is_backward(node) ? x.n*sizeof(fixed::segment) : max_bundles(node)*sizeof(fixed::bundle)));
        case TILES: return max_bundles(node)*tiles::bundle_bytes(x.length);
        default:    return 0;
    }
}

size_t panel_bytes(const ggml_tensor * node) {
    switch (kernel_of(node)) {
        case FIXED: return whole_lines(fixed::work(max_columns(node)));
        case TILES: return whole_lines(tiles::work(max_columns(node)));
        default:    return whole_lines(exact::WORK*sizeof(float));
    }
}

size_t thread_bytes(const ggml_tensor * node) {
    return panel_bytes(node) + whole_lines(2*max_columns(node)*sizeof(char *));
}

} // namespace

bool llsteer_product_takes(const ggml_tensor * node) {
    const bool product = node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID;
    if (!is_backward(node) && !(product && (node->op_params[0] == GGML_PREC_EXACT || kernel_of(node) != EXACT))) {
        return false;
    }
    const ggml_tensor * w = node->src[0], * x = node->src[1];
    return (w->type == GGML_TYPE_F32 || ggml_get_type_traits(w->type)->to_float) && w->nb[0] == ggml_type_size(w->type) &&
        x->type == GGML_TYPE_F32 && (is_backward(node) || x->nb[0] == sizeof(float)) &&
        node->type == GGML_TYPE_F32 && node->nb[0] == sizeof(float);
}

size_t llsteer_product_work_size(const ggml_tensor * node, int n_threads) {
    return shared_bytes(node) + thread_bytes(node)*n_threads + LINE;
}

void llsteer_product_compute(const ggml_compute_params * params, ggml_tensor * node) {
    GGML_ASSERT(params->wsize >= llsteer_product_work_size(node, params->nth));
    const ggml_tensor * w = node->src[0];
    const bool back = is_backward(node);
    const kernel in = kernel_of(node);
    const all_columns x(node);
    const int ith = params->ith, nth = params->nth;

    char * const shared = (char *) whole_lines((size_t) params->wdata);
    char * const own = shared + shared_bytes(node) + ith*thread_bytes(node);
    columns lists;
    lists.x = (const char **) (own + panel_bytes(node));
    lists.y = (char **) (lists.x + max_columns(node));
    const auto column_of_x = [&](int64_t number) { return x.at(number); };

    // Columns are rounded by all threads, in turn. In fixed point backward they stay apart, as
    // segments; else they are in bundles, in the matrices' order.
    fixed::segment * const segments = (fixed::segment *) shared; // [segments][x.n]
    fixed::bundle * const bundles = (fixed::bundle *) shared;    // [segments][n_bundles]
    const bool bundled = in == TILES || (in == FIXED && !back);
    const int64_t bundle_size = bundled ? bundle_of(in) : 1, n_bundles = bundled ? max_bundles(node) : 0;
    const auto tiled = [&](int64_t number) { return shared + number*tiles::bundle_bytes(x.length); };
    if (bundled) {
        const int64_t span = in == TILES ? tiles::SPAN : fixed::SEGMENT;
        int64_t number = 0, turn = 0;
        each_matrix(node, column_of_x, lists, [&](const matrix &, columns cols) {
            for (int64_t t = 0; t < cols.n; t += bundle_size, ++number) {
                const columns some = {cols.x + t, nullptr, std::min(bundle_size, cols.n - t)};
                for (int64_t k = 0; k == 0 || k < x.length; k += span) {
                    if (turn++ % nth != ith) {
                        continue;
                    }
                    if (in == FIXED) {
                        fixed::round(some, k, x.length, bundles[k/span*n_bundles + number]);
                    } else if (back) {
                        tiles::round_backward(some, x.stride, k, x.length, tiled(number));
                    } else {
                        tiles::round_forward(some, x.stride, k, x.length, tiled(number));
                    }
                }
            }
        });
    } else if (in == FIXED) {
        for (int64_t i = x.n*ith/nth; i < x.n*(ith + 1)/nth; ++i) {
            fixed::round(x.at(i), x.stride, x.length, segments + i, x.n);
        }
    }
    if (in != EXACT) {
        ggml_barrier(params->threadpool);
    }
    const auto column = [&](int64_t number) {
        return in == FIXED && back ? (const char *) (segments + number) : x.at(number);
    };

    // The elements of y are numbered matrix by matrix, in each by parts of the
    // columns, and shared out: each thread takes a run, rounded to whole columns of
    // a part, or bundles of them. So it walks through W, and few panels are made by two threads.
    const int64_t total = ggml_nelements(node), size = node->ne[0];
    const int64_t begin = total*ith/nth, end = total*(ith + 1)/nth;

    int64_t at = 0, bundle = 0; // the numbers of the next element and bundle
    each_matrix(node, column, lists, [&](const matrix & m, columns cols) {
        const int64_t part =
            in == TILES ? tiles::part(size, cols.n, nth) :
            in == FIXED ? (back ? fixed::backward_part(m.block) : fixed::forward_part()) :
            back ? exact::backward_part(size, m.block) : exact::forward_part(cols.n);
        for (int64_t first = 0; first < size; first += part) {
            const int64_t n = std::min(part, size - first);
            const auto column_at = [&](int64_t number) { return std::clamp<int64_t>(divide_up(number - at, n*bundle_size)*bundle_size, 0, cols.n); };
            const int64_t c0 = column_at(begin), c1 = column_at(end);
            if (c0 < c1) {
                const columns mine = {cols.x + c0, cols.y + c0, c1 - c0};
                const int64_t first_bundle = bundle + c0/bundle_size;
                if (in == TILES && back) {
                    tiles::backward(m, first, first + n, w->ne[1], mine, tiled(first_bundle), own);
                } else if (in == TILES) {
                    tiles::forward(m, first, first + n, w->ne[0], mine, tiled(first_bundle), own);
                } else if (in == FIXED && back) {
                    fixed::backward(m, first, first + n, w->ne[1], mine, x.n, own);
                } else if (in == FIXED) {
                    fixed::forward(m, first, first + n, w->ne[0], mine, bundles + first_bundle, n_bundles, own);
                } else if (back) {
                    exact::backward(m, first, first + n, w->ne[1], mine, x.stride, (float *) own);
                } else {
                    exact::forward(m, first, first + n, w->ne[0], mine, (float *) own);
                }
            }
            at += n*cols.n;
        }
        bundle += divide_up(cols.n, bundle_size);
    });
}
