// Tests of the kernels against sums in double precision:  test
// and their speed, on as many threads as given or 2:       test --bench [THREADS [TYPE]]
#include "dequantize.h"
#include "fixed.h"
#include "functions.h"
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "lanes.h"
#include "products.h"
#include "runs.h"
#include "tiles.h"
#include "dots.h"
#include "ggml-quants.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <pthread.h>
#if defined(__linux__) && defined(__x86_64__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#endif
#include <random>
#include <string>
#include <thread>
#include <time.h>
#include <vector>

// what ggml's CPU backend has for the kernels
struct ggml_threadpool {
    pthread_barrier_t barrier;
    explicit ggml_threadpool(int n_threads) { pthread_barrier_init(&barrier, nullptr, n_threads); }
    ~ggml_threadpool() { pthread_barrier_destroy(&barrier); }
};
void ggml_barrier(ggml_threadpool * pool) { pthread_barrier_wait(&pool->barrier); }

namespace {

int passed = 0, failed = 0;

void check(bool ok, const std::string & what) {
    ++(ok ? passed : failed);
    if (!ok) {
        printf("FAIL %s\n", what.c_str());
    }
}

// ---- tensors ------------------------------------------------------------------------

std::mt19937 generator(1);

float normal() { return std::normal_distribution<float>()(generator); }

struct context {
    ggml_context * c;
    explicit context(size_t bytes = 64 << 20, bool no_alloc = false) : c(ggml_init({bytes, nullptr, no_alloc})) {}
    ~context() { ggml_free(c); }
    operator ggml_context *() const { return c; }
};

uint8_t byte() { return std::uniform_int_distribution<int>(0, 255)(generator); }

// A block of any bytes that makes numbers of about the size of normal ones.
void random_block(ggml_type type, char * to) {
    std::vector<float> values(ggml_blck_size(type));
    float most;
    do {
        std::generate(to, to + ggml_type_size(type), byte);
        ggml_get_type_traits(type)->to_float(to, values.data(), values.size());
        most = 0;
        for (float v : values) {
            most = std::isfinite(v) ? std::max(most, std::fabs(v)) : INFINITY;
        }
    } while (!(most > 0.5f && most < 8.0f));
}

// to quantize, these would sort large tables for many seconds
bool is_slow(ggml_type type) {
    return type == GGML_TYPE_IQ1_S || type == GGML_TYPE_IQ1_M || type == GGML_TYPE_IQ2_XXS || type == GGML_TYPE_IQ2_XS || type == GGML_TYPE_IQ2_S;
}

// normal numbers, in the type's precision
ggml_tensor * random_tensor(ggml_context * c, ggml_type type, int64_t n0, int64_t n1, int64_t n2 = 1, int64_t n3 = 1) {
    ggml_tensor * t = ggml_new_tensor_4d(c, type, n0, n1, n2, n3);
    if (is_slow(type)) {
        for (size_t i = 0; i < ggml_nbytes(t); i += ggml_type_size(type)) {
            random_block(type, (char *) t->data + i);
        }
        return t;
    }
    std::vector<float> row(n0);
    for (int64_t r = 0; r < ggml_nrows(t); ++r) {
        std::generate(row.begin(), row.end(), normal);
        ggml_quantize_chunk(type, row.data(), (char *) t->data + r*t->nb[1], 0, 1, n0, nullptr);
    }
    return t;
}

float & number(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2 = 0, int64_t i3 = 0) {
    return *(float *) ((char *) t->data + i0*t->nb[0] + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]);
}

// row i1 of a matrix of any type, as ggml dequantizes it
std::vector<float> row(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    std::vector<float> r(t->ne[0]);
    const char * from = (const char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3];
    if (t->type == GGML_TYPE_F32) {
        memcpy(r.data(), from, r.size()*sizeof(float));
    } else {
        ggml_get_type_traits(t->type)->to_float(from, r.data(), t->ne[0]);
    }
    return r;
}

ggml_tensor * in(ggml_prec precision, ggml_tensor * node) {
    node->op_params[0] = precision;
    return node;
}
ggml_tensor * exact(ggml_tensor * node) { return in(GGML_PREC_EXACT, node); }

// the node that ggml's backward pass makes of a MUL_MAT_ID
ggml_tensor * out_prod_id(ggml_context * c, ggml_tensor * w, ggml_tensor * g, ggml_tensor * ids) {
    ggml_tensor * node = ggml_new_tensor_3d(c, GGML_TYPE_F32, w->ne[0], g->ne[1], g->ne[2]);
    node->op = GGML_OP_OUT_PROD;
    node->src[0] = w;
    node->src[1] = g;
    node->src[2] = ids;
    return node;
}

// All threads' parts of a node.
void run(ggml_tensor * node, int n_threads, std::vector<char> & work, size_t size, const std::function<void(std::vector<std::function<void()>>)> & at_once) {
    ggml_threadpool pool(n_threads);
    std::vector<std::function<void()>> parts;
    for (int i = 0; i < n_threads; ++i) {
        parts.push_back([&, i] {
            ggml_compute_params params = {};
            params.ith = i;
            params.nth = n_threads;
            params.wsize = size;
            params.wdata = work.data();
            params.threadpool = &pool;
            llsteer_product_compute(&params, node);
        });
    }
    at_once(parts);
}

// The node's result, by n_threads; what is not written stays NaN.
void compute(ggml_tensor * node, int n_threads) {
    for (int64_t i = 0; i < ggml_nelements(node); ++i) {
        ((float *) node->data)[i] = NAN;
    }
    const size_t size = llsteer_product_work_size(node, n_threads), guard = 64;
    std::vector<char> work(size + guard, 'x');
    run(node, n_threads, work, size, [](auto parts) {
        std::vector<std::thread> threads;
        for (const auto & part : parts) {
            threads.emplace_back(part);
        }
        for (std::thread & t : threads) {
            t.join();
        }
    });
    check(std::all_of(work.begin() + size, work.end(), [](char b) { return b == 'x'; }), "writes beyond the work buffer");
}

std::vector<float> result(const ggml_tensor * node) {
    const float * p = (const float *) node->data;
    return std::vector<float>(p, p + ggml_nelements(node));
}

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size()*sizeof(float)) == 0;
}

// ---- products against sums in double ------------------------------------------------

// An element of a result: the sum of its terms w x, and how far the kernels may be from it.
struct sum_of_products {
    enum { EXACT, FIXED, TILES } kernel;
    double sum = 0, bound = 0;

    // the terms of a run of at most fixed::SEGMENT
    int64_t n = 0;
    double w_most = 0, x_most = 0, w_size = 0, x_size = 0;
    double size = 0; // of all terms
    double squares = 0;
    int64_t n_terms = 0;

    void add(double w, double x) {
        sum += w*x;
        size += std::fabs(w*x);
        squares += w*w*x*x;
        w_size += std::fabs(w);
        x_size += std::fabs(x);
        w_most = std::max(w_most, std::fabs(w));
        x_most = std::max(x_most, std::fabs(x));
        ++n_terms;
        if (++n == fixed::SEGMENT) {
            end_segment();
        }
    }

    // In fixed point either operand is rounded to half its scale; the third term is both errors at once.
    // In bfloat16 it errs by 2^-8 of itself, and by 2^-126 at most if it counts as 0.
    void end_segment() {
        const double w_error = w_most/fixed::MOST/2, x_error = x_most/fixed::MOST/2;
        if (kernel == FIXED) {
            bound += w_error*x_size + x_error*w_size + n*w_error*x_error;
        } else if (kernel == TILES) {
            bound += TINY*(w_size + x_size + n);
        }
        n = 0;
        w_most = x_most = w_size = x_size = 0;
    }

    // In float32 a sum of n products rounds no term oftener than this. Forward: blocks of
    // at most 1024 elements are summed in four lanes or more, the lanes (16 at most) in
    // pairs, then the blocks in turn. Backward: blocks of 128 in turn, then those in turn.
    // One more for the product itself. In fixed point: the segments in turn, each with
    // its scales, their product and the conversion of its sum. In AMX's tiles: 16 pairs in turn, the sums of their
    // first and second halves, then the tiles of 32 in turn; in vectors all in turn. Each rounding errs by at
    // most UNIT times the sum of the terms' magnitudes (of the rounded
    // terms, which exceed the terms by at most the bound so far); the factor 1.01 covers products of these errors.
    static constexpr double UNIT = 0x1p-24, BFLOAT = 0x1p-8, TINY = 0x1p-126;
    double allowed() {
        end_segment();
        const double n_float = std::min<double>((double) n_terms, 1024/4 + 4 + (double) n_terms/128 + 1) + 1;
        const double n_fixed = (double) n_terms/fixed::SEGMENT + 1 + 7;
#if defined(__AMX_BF16__)
        const double n_tiles = 2*16 + 1 + (double) n_terms/32 + 1;
#else
        const double n_tiles = (double) n_terms + 1;
#endif
        switch (kernel) {
            case FIXED: return 1.01*(bound + UNIT*n_fixed*(size + bound));
            case TILES: return 1.01*(bound + (2*BFLOAT + BFLOAT*BFLOAT + UNIT*n_tiles)*size);
            default:    return 1.01*UNIT*n_float*size;
        }
    }

    // The square of the error that is to be expected in tiles, if the terms err by chance: the error of a number
    // of the least mantissa is spread evenly up to BFLOAT of itself, of others less.
    double expected_square() const { return 2*BFLOAT*BFLOAT/3*squares; }
};

// What the node should be: each element as its terms say.
void check_product(ggml_tensor * node, const std::string & what) {
    const ggml_tensor * w = node->src[0], * x = node->src[1], * ids = node->src[2];
    const bool back = node->op == GGML_OP_OUT_PROD;
    const auto kernel = node->op_params[0] != GGML_PREC_FIXED ? sum_of_products::EXACT : tiles::in_use() ? sum_of_products::TILES : sum_of_products::FIXED;

    check(llsteer_product_takes(node), what + ": not taken");
    compute(node, 1);
    const std::vector<float> one = result(node);
    for (int n_threads : {2, 3, 7}) {
        compute(node, n_threads);
        check(same_bits(one, result(node)), what + ": other bits with " + std::to_string(n_threads) + " threads");
    }

    double worst = 0, squares = 0, expected = 0;
    for (int64_t i3 = 0; i3 < node->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < node->ne[2]; ++i2) {
            for (int64_t i1 = 0; i1 < node->ne[1]; ++i1) {
                const int64_t w2 = ids ? *(int32_t *) ((char *) ids->data + i1*ids->nb[0] + i2*ids->nb[1]) : i2*w->ne[2]/node->ne[2];
                const int64_t w3 = ids ? 0 : i3*w->ne[3]/node->ne[3];
                const auto x_at = [&](int64_t i) {
                    return back && !ids ? number(x, i1, i, i2, i3) : number(x, i, i1 % x->ne[1], i2, i3);
                };
                std::vector<sum_of_products> sums(node->ne[0], sum_of_products{kernel});
                for (int64_t m = 0; m < w->ne[1]; ++m) {
                    const std::vector<float> r = row(w, m, w2, w3);
                    for (int64_t k = 0; k < w->ne[0]; ++k) {
                        sums[back ? k : m].add(r[k], x_at(back ? m : k));
                    }
                }
                for (int64_t i = 0; i < node->ne[0]; ++i) {
                    const double error = std::fabs(number(node, i, i1, i2, i3) - sums[i].sum), bound = sums[i].allowed();
                    squares += error*error;
                    expected += sums[i].expected_square();
                    if (!(error <= bound)) {
                        worst = std::max(worst, error/bound);
                        worst = std::isnan(error) ? INFINITY : worst;
                    }
                }
            }
        }
    }
    check(worst == 0, what + ": error " + std::to_string(worst) + " times its bound");
    // Errors in one direction, as of numbers that are cut and not rounded, add up.
    if (kernel == sum_of_products::TILES && ggml_nelements(node) >= 90) {
        check(squares <= expected, what + ": mean square error " + std::to_string(squares/expected) + " times what chance would make");
    }
}

std::string shape(const char * op, const ggml_tensor * w, int64_t columns) {
    return std::string(op) + " " + ggml_type_name(w->type) + " " + std::to_string(w->ne[0]) + "x" + std::to_string(w->ne[1]) + ", " + std::to_string(columns) + " columns";
}

constexpr ggml_prec PRECISIONS[] = {GGML_PREC_EXACT, GGML_PREC_FIXED};

// a node that the kernels compute, in both precisions
void check_products(ggml_tensor * node, const std::string & what) {
    for (const ggml_prec precision : PRECISIONS) {
        check_product(in(precision, node), what + (precision == GGML_PREC_FIXED ? tiles::in_use() ? ", tiles" : ", fixed" : ""));
    }
}

void check_both_ways(ggml_type type, int64_t k, int64_t m, int64_t n) {
    context c;
    ggml_tensor * w = random_tensor(c, type, k, m);
    check_products(ggml_mul_mat(c, w, random_tensor(c, GGML_TYPE_F32, k, n)), shape("mul_mat", w, n));
    check_products(ggml_out_prod(c, w, ggml_transpose(c, random_tensor(c, GGML_TYPE_F32, m, n))), shape("out_prod", w, n));
}

void test_types_and_sizes() {
    for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        const ggml_type type = (ggml_type) t;
        if (type != GGML_TYPE_F32 && !ggml_get_type_traits(type)->to_float) {
            continue;
        }
        for (int64_t k : {1, 3, 32, 33, 96, 256, 640, 2304}) {
            if (k % ggml_blck_size(type) == 0) {
                check_both_ways(type, k, 7, 13);
            }
        }
        check_both_ways(type, 512, 131, 1);
        check_both_ways(type, 768, 320, 40); // several panels of full size
    }
    for (int64_t n = 1; n <= 14; ++n) {
        check_both_ways(GGML_TYPE_F16, 67, n, 15 - n);
        check_both_ways(GGML_TYPE_Q8_0, 1056, 60 + n, n);
    }
    check_both_ways(GGML_TYPE_Q8_0, 9216, 5, 8);
    check_both_ways(GGML_TYPE_Q8_0, 1024, 67, 400); // panels as large as they can be
    check_both_ways(GGML_TYPE_F32, 10, 9216, 8);
    check_both_ways(GGML_TYPE_BF16, 1000, 300, 90);
}

void test_strides_and_broadcasts() {
    context c;
    // W: rows 32 to 95 of two of three matrices; x: permuted, so that columns are not neighbors
    ggml_tensor * all = random_tensor(c, GGML_TYPE_Q8_0, 320, 128, 3, 2);
    ggml_tensor * w = ggml_view_4d(c, all, 256, 64, 2, 2, all->nb[1], all->nb[2], all->nb[3], 32*all->nb[1]);
    ggml_tensor * x = ggml_permute(c, random_tensor(c, GGML_TYPE_F32, 256, 6, 9, 4), 0, 2, 1, 3);
    check_products(ggml_mul_mat(c, w, x), "mul_mat of views, broadcast");
    ggml_tensor * g = ggml_permute(c, random_tensor(c, GGML_TYPE_F32, 64, 6, 9, 4), 0, 2, 1, 3);
    check_products(ggml_out_prod(c, w, ggml_transpose(c, g)), "out_prod of views, broadcast");

    // as attention has them: heads interleaved in k, a probability matrix on either side
    ggml_tensor * k = ggml_permute(c, random_tensor(c, GGML_TYPE_F32, 40, 3, 21), 0, 2, 1, 3);
    ggml_tensor * q = ggml_permute(c, random_tensor(c, GGML_TYPE_F32, 40, 6, 19), 0, 2, 1, 3);
    ggml_tensor * kq = random_tensor(c, GGML_TYPE_F32, 21, 19, 6);
    check_products(ggml_mul_mat(c, k, q), "mul_mat k q");
    check_products(ggml_out_prod(c, k, ggml_transpose(c, kq)), "out_prod k kq^T");
    check_products(ggml_out_prod(c, q, kq), "out_prod q kq: columns first in src1");
    ggml_tensor * cache = ggml_permute(c, random_tensor(c, GGML_TYPE_F16, 40, 3, 21), 0, 2, 1, 3);
    check_products(ggml_mul_mat(c, cache, q), "mul_mat with an f16 cache");
}

ggml_tensor * expert_ids(ggml_context * c, const std::vector<int32_t> & ids, int64_t used) {
    ggml_tensor * t = ggml_new_tensor_2d(c, GGML_TYPE_I32, used, ids.size()/used);
    memcpy(t->data, ids.data(), ids.size()*sizeof(int32_t));
    return t;
}

void test_experts() {
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_Q4_0, GGML_TYPE_Q6_K, GGML_TYPE_MXFP4}) {
        context c;
        const std::string name = ggml_type_name(type);
        ggml_tensor * w = random_tensor(c, type, 512, 70, 5);
        // expert 3 is not used, 1 by most
        ggml_tensor * ids = expert_ids(c, {1, 0,  1, 2,  4, 1,  1, 0,  2, 1,  0, 1,  1, 4,  1, 2,  1, 0}, 2);
        check_products(ggml_mul_mat_id(c, w, random_tensor(c, GGML_TYPE_F32, 512, 1, 9), ids), "mul_mat_id " + name + ", x broadcast");
        check_products(ggml_mul_mat_id(c, w, random_tensor(c, GGML_TYPE_F32, 512, 2, 9), ids), "mul_mat_id " + name);
        check_products(out_prod_id(c, w, random_tensor(c, GGML_TYPE_F32, 70, 2, 9), ids), "out_prod_id " + name);
        // ids as top-k leaves them: a view of longer rows
        ggml_tensor * sorted = expert_ids(c, {4, 0, 1, 2, 3,  2, 1, 0, 3, 4,  3, 4, 2, 0, 1}, 5);
        ggml_tensor * top = ggml_view_2d(c, sorted, 3, 3, sorted->nb[1], 0);
        check_products(ggml_mul_mat_id(c, w, random_tensor(c, GGML_TYPE_F32, 512, 3, 3), top), "mul_mat_id " + name + ", ids a view");
        check_products(out_prod_id(c, w, random_tensor(c, GGML_TYPE_F32, 70, 3, 3), top), "out_prod_id " + name + ", ids a view");
    }
}

// Where a type has no function of ours, there is nothing to check.
void test_dots() {
    for (const ggml_type type : {GGML_TYPE_Q4_K, GGML_TYPE_Q6_K}) {
        const ggml_vec_dot_t dot = llsteer_vec_dot(type, nullptr);
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
        check(dot, std::string(ggml_type_name(type)) + ": no dot product");
#endif
        if (!dot) {
            continue;
        }
        for (int64_t n : {256, 512, 2304}) {
            context c;
            ggml_tensor * w = random_tensor(c, type, n, 3);
            std::vector<float> x(n), y(n);
            std::generate(y.begin(), y.end(), normal);
            y[n/2] = -9; // the largest: -127 or so in 8 bits
            std::vector<block_q8_K> column(n/QK_K);
            quantize_row_q8_K_ref(y.data(), column.data(), n);
            dequantize_row_q8_K(column.data(), y.data(), n);
            for (int64_t row = 0; row < 3; ++row) {
                const char * data = (const char *) w->data + row*w->nb[1];
                ggml_get_type_traits(type)->to_float(data, x.data(), n);
                double sum = 0, largest = 0;
                for (int64_t i = 0; i < n; ++i) {
                    sum += (double) x[i]*y[i];
                    largest = std::max(largest, std::fabs((double) x[i]));
                }
                float found = NAN;
                dot(n, &found, 0, data, 0, column.data(), 0, 1);
                // Sums within a block are exact. Its minimum's part and its scale's are at most twice the largest x; every number is
                // rounded when it is scaled, once for each block that is added, and some times when lanes are.
                const double bound = std::ldexp(1, -24)*(n/QK_K + 12)*n*9*2*largest;
                const double error = std::fabs(found - sum);
                check(error <= bound, shape("dot", w, n) + ": error " + std::to_string(error) + ", allowed " + std::to_string(bound));
            }
        }
    }
}

// A token's result does not depend on the tokens beside it.
void test_columns_are_independent(ggml_prec precision) {
    context c;
    ggml_tensor * w = random_tensor(c, GGML_TYPE_Q4_K, 2304, 77);
    ggml_tensor * x = random_tensor(c, GGML_TYPE_F32, 2304, 23), * g = random_tensor(c, GGML_TYPE_F32, 77, 23);
    ggml_tensor * forward = in(precision, ggml_mul_mat(c, w, x)), * back = in(precision, ggml_out_prod(c, w, ggml_transpose(c, g)));
    compute(forward, 2);
    compute(back, 2);
    for (int64_t t = 0; t < 23; ++t) {
        ggml_tensor * alone = in(precision, ggml_mul_mat(c, w, ggml_view_1d(c, x, 2304, t*x->nb[1])));
        compute(alone, 1);
        check(memcmp(alone->data, &number(forward, 0, t), 77*sizeof(float)) == 0, "mul_mat: a column alone has other bits");
        alone = in(precision, ggml_out_prod(c, w, ggml_transpose(c, ggml_view_2d(c, g, 77, 1, g->nb[1], t*g->nb[1]))));
        compute(alone, 1);
        check(memcmp(alone->data, &number(back, 0, t), 2304*sizeof(float)) == 0, "out_prod: a column alone has other bits");
    }
}

// NaN and infinity reach every element that they have part in, even times zero, and no other.
void test_not_finite(ggml_prec precision) {
    for (float bad : {NAN, INFINITY}) {
        for (int64_t k : {5, 64, 70}) { // in the last lanes, too
            context c;
            ggml_tensor * w = random_tensor(c, GGML_TYPE_F32, 71, 9), * x = random_tensor(c, GGML_TYPE_F32, 71, 8);
            number(x, k, 3) = bad;
            number(w, k, 2) = 0;
            ggml_tensor * y = in(precision, ggml_mul_mat(c, w, x));
            compute(y, 2);
            bool ok = std::isnan(number(y, 2, 3));
            for (int64_t t = 0; t < 8; ++t) {
                for (int64_t m = 0; m < 9; ++m) {
                    ok = ok && std::isfinite(number(y, m, t)) == (t != 3);
                }
            }
            check(ok, "mul_mat: not finite");

            ggml_tensor * g = random_tensor(c, GGML_TYPE_F32, 9, 8);
            number(w, k, 2) = bad;
            number(g, 2, 5) = 0;
            y = in(precision, ggml_out_prod(c, w, ggml_transpose(c, g)));
            compute(y, 2);
            ok = std::isnan(number(y, k, 5));
            for (int64_t t = 0; t < 8; ++t) {
                for (int64_t i = 0; i < 71; ++i) {
                    ok = ok && std::isfinite(number(y, i, t)) == (i != k);
                }
            }
            check(ok, "out_prod: not finite");
        }
    }
}

void test_empty_sum() {
    context c;
    ggml_tensor * w = ggml_new_tensor_2d(c, GGML_TYPE_F32, 5, 0); // (ggml refuses the same of mul_mat)
    ggml_tensor * y = ggml_out_prod(c, w, ggml_new_tensor_2d(c, GGML_TYPE_F32, 4, 0));
    compute(y, 2);
    check(same_bits(result(y), std::vector<float>(20, 0.0f)), "out_prod of no rows is not 0");
}

// A prompt's products with quantized weights, whatever their precision.
void test_prompts() {
    context c;
    ggml_backend_buffer buffer = {};
    buffer.usage = GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    ggml_tensor * w = random_tensor(c, GGML_TYPE_Q8_0, 320, 70), * x = random_tensor(c, GGML_TYPE_F32, 320, 32);
    w->buffer = &buffer;
    ggml_tensor * prompt = ggml_mul_mat(c, w, x);
#if defined(__AVX512BW__)
    compute(prompt, 2);
    const std::vector<float> found = result(prompt);
    compute(in(GGML_PREC_FIXED, prompt), 2);
    check(same_bits(found, result(prompt)), "a prompt is not in 16 bits");
    check(!llsteer_product_takes(ggml_mul_mat(c, w, random_tensor(c, GGML_TYPE_F32, 320, 31))), "takes few columns of no precision");
    check(!llsteer_product_takes(in(GGML_PREC_F32, ggml_mul_mat(c, w, x))), "takes another precision");
    buffer.usage = GGML_BACKEND_BUFFER_USAGE_ANY;
    in(GGML_PREC_DEFAULT, prompt);
#endif
    check(!llsteer_product_takes(prompt), "takes what are no weights");
}

void test_what_is_taken() {
    context c;
    ggml_tensor * w = random_tensor(c, GGML_TYPE_Q8_0, 64, 32), * x = random_tensor(c, GGML_TYPE_F32, 64, 3);
    check(!llsteer_product_takes(ggml_mul_mat(c, w, x)), "takes mul_mat of default precision");
    check(!llsteer_product_takes(exact(ggml_add(c, x, x))), "takes another operation");
    check(!llsteer_product_takes(exact(ggml_mul_mat(c, w, random_tensor(c, GGML_TYPE_F16, 64, 3)))), "takes x in f16");
    ggml_tensor * node = ggml_out_prod(c, random_tensor(c, GGML_TYPE_F32, 6, 5), random_tensor(c, GGML_TYPE_F32, 3, 5));
    check(llsteer_product_takes(node), "does not take out_prod in f32");
    node->src[0] = ggml_transpose(c, node->src[0]);
    check(!llsteer_product_takes(node), "takes a transposed W");
}

// ---- parts --------------------------------------------------------------------------

void test_dequantization() {
    for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        const ggml_type type = (ggml_type) t;
        const ggml_to_float_t theirs = ggml_get_type_traits(type)->to_float, ours = llsteer_to_float(type);
        check(!theirs == !ours, std::string(ggml_type_name(type)) + ": to_float of a type that has none");
        if (!theirs || !ours) {
            continue;
        }
        // any bytes: scales may be infinite or NaN
        bool ok = true;
        for (int blocks : {1, 2, 3, 5, 8, 17, 40}) {
            for (int i = 0; i < 200; ++i) {
                const int64_t n = blocks*ggml_blck_size(type);
                std::vector<uint8_t> from(ggml_row_size(type, n));
                std::generate(from.begin(), from.end(), byte);
                std::vector<float> a(n), b(n + 1, 7.0f);
                theirs(from.data(), a.data(), n);
                ours(from.data(), b.data(), n);
                ok = ok && b[n] == 7.0f;
                for (int64_t j = 0; j < n; ++j) {
                    ok = ok && (memcmp(&a[j], &b[j], sizeof(float)) == 0 || (std::isnan(a[j]) && std::isnan(b[j])));
                }
            }
        }
        check(ok, std::string(ggml_type_name(type)) + ": other bits than ggml's to_float");
    }
}

double gelu(double x) { return 0.5*x*(1 + std::tanh(std::sqrt(2/M_PI)*(x + 0.044715*x*x*x))); }

void test_gelu() {
    constexpr double TOLERANCE = 1e-6; // what functions.h promises
    std::vector<float> x = {0.0f, -0.0f, 1e-40f, -1e-40f, 10.0f, -10.0f, 1e4f, -1e4f, 3e38f, -3e38f};
    for (float v = -20; v < 20; v += 0.0007f) {
        x.push_back(v);
    }
    for (size_t n : {x.size(), x.size() - 1, (size_t) 1, (size_t) 7, (size_t) 19}) {
        std::vector<float> y(n + 1, 7.0f);
        llsteer_gelu_f32((int) n, y.data(), x.data());
        bool ok = y[n] == 7.0f;
        for (size_t i = 0; i < n; ++i) {
            ok = ok && std::fabs(y[i] - gelu(x[i])) <= TOLERANCE*std::max(1.0, (double) std::fabs(x[i]));
        }
        check(ok, "gelu of " + std::to_string(n) + " numbers");
    }
    float odd[] = {NAN, INFINITY, -INFINITY};
    llsteer_gelu_f32(3, odd, odd);
    check(std::isnan(odd[0]) && odd[1] == INFINITY && std::fabs(odd[2]) <= TOLERANCE, "gelu of NaN, infinity, -infinity");
}

// f against its values in double; what it has for NaN and infinities
void test_function(const std::string & name, void (* f)(int, float *, const float *), double (* g)(double), float least, float at_infinity, float at_minus_infinity) {
    constexpr double TOLERANCE = 1e-6; // what functions.h promises
    std::vector<float> x = {0.0f, -0.0f, 1e-40f, -1e-40f, 1e-20f, -1e-20f, 90.0f, -90.0f, 1e4f, -1e4f, 3e38f, -3e38f};
    for (float v = -20; v < 20; v += 0.0007f) {
        x.push_back(v);
        x.push_back(v/50);
    }
    for (size_t n : {x.size(), x.size() - 1, (size_t) 1, (size_t) 7, (size_t) 19}) {
        std::vector<float> y(n + 1, 7.0f);
        f((int) n, y.data(), x.data());
        bool ok = y[n] == 7.0f;
        for (size_t i = 0; i < n; ++i) {
            ok = ok && std::fabs(y[i] - g(x[i])) <= TOLERANCE*std::max<double>(least, std::fabs(g(x[i])));
        }
        check(ok, name + " of " + std::to_string(n) + " numbers");
    }
    float odd[] = {NAN, INFINITY, -INFINITY};
    f(3, odd, odd);
    check(std::isnan(odd[0]) && odd[1] == at_infinity && std::fabs(odd[2] - at_minus_infinity) <= TOLERANCE*1e-30f, name + " of NaN, infinity, -infinity");
}

void test_functions() {
    // the least normal number, below which float32 has fewer digits
    test_function("tanh", llsteer_tanh_f32, [](double x) { return std::tanh(x); }, 1e-37f, 1.0f, -1.0f);
    test_function("sigmoid", llsteer_sigmoid_f32, [](double x) { return 1/(1 + std::exp(-x)); }, 1e-30f, 1.0f, 0.0f);
    for (int n : {0, 1, 15, 16, 17, 63, 64, 65, 2304}) {
        std::vector<float> x(n), y(n);
        std::generate(x.begin(), x.end(), normal);
        std::generate(y.begin(), y.end(), normal);
        double sum = 0, size = 0;
        for (int i = 0; i < n; ++i) {
            sum += (double) (x[i]*y[i]);
            size += std::fabs((double) x[i]*y[i]);
        }
        // the same products; n sums in either order, each rounded to 2^-53 of at most their size
        check(std::fabs(llsteer_dot_f32(n, x.data(), y.data()) - sum) <= 2*n*0x1p-53*size, "dot of " + std::to_string(n) + " numbers");
    }
}

// ---- runs -----------------------------------------------------------------------------

// What ggml's CPU backend has for nodes, by rows. As functions there may, SCALE and NEG treat what is left behind
// whole vectors of a row differently.
void compute_node(ggml_compute_params * params, ggml_tensor * t) {
    const ggml_tensor * a = t->src[0], * b = t->src[1];
    const int64_t n = t->ne[0];
    const float scale = ggml_get_op_params_f32(t, 0);
    std::vector<float> result(n); // t may be a or b
    for (int64_t i = params->ith; i < ggml_nrows(t); i += params->nth) {
        const float * x = (const float *) a->data + i*n, * y = b ? (const float *) b->data + i%ggml_nrows(b)*n : nullptr;
        double xx = 0, xy = 0;
        for (int64_t j = 0; j < n; ++j) {
            xx += x[j]*x[j];
            xy += y ? x[j]*y[j] : 0;
        }
        for (int64_t j = 0; j < n; ++j) {
            const float rest = j < n/64*64 ? 1 : 0.5f;
            float & r = result[j];
            switch (t->op) {
                case GGML_OP_ADD:           r = x[j] + y[j]; break;
                case GGML_OP_MUL:           r = x[j]*y[j]; break;
                case GGML_OP_SQR:           r = x[j]*x[j]; break;
                case GGML_OP_SCALE:         r = scale*x[j]*rest; break;
                case GGML_OP_UNARY:         r = -x[j]*rest; break;
                case GGML_OP_RMS_NORM:      r = x[j]/std::sqrt(xx/n + 1); break;
                case GGML_OP_RMS_NORM_BACK: r = x[j]/std::sqrt(xy*xy + 1) - y[j]; break;
                case GGML_OP_CONT:          r = x[j]; break;
                default: abort();
            }
        }
        std::copy(result.begin(), result.end(), (float *) t->data + i*n);
    }
}

// A graph of random nodes, most of them for runs; each of its outputs is one of its nodes.
ggml_cgraph * random_graph(ggml_context * c, int64_t row, int64_t n_rows, std::mt19937 & random) {
    const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
    std::vector<ggml_tensor *> tensors, outputs;
    for (int i = 0; i < 4; ++i) {
        tensors.push_back(i < 3 ? ggml_new_tensor_3d(c, GGML_TYPE_F32, row, n_rows, 2) : ggml_new_tensor_1d(c, GGML_TYPE_F32, row));
        ggml_set_input(tensors.back());
    }
    ggml_tensor * one_row = tensors.back();
    tensors.pop_back();
    for (int i = 0; i < 40; ++i) {
        const auto any = [&] { return tensors[tensors.size() - 1 - below(std::min<size_t>(tensors.size(), 5))]; };
        ggml_tensor * a = any(), * b = any(), * t = nullptr;
        switch (below(12)) {
            case 0: t = ggml_add(c, a, b); break;
            case 1: t = ggml_mul(c, a, b); break;
            case 2: t = ggml_mul(c, a, one_row); break;
            case 3: t = ggml_add(c, a, one_row); break;
            case 4: t = ggml_sqr(c, ggml_scale(c, a, 0.25f)); break;
            case 5: t = ggml_neg(c, a); break;
            case 6: t = ggml_rms_norm(c, a, 1); break;
            case 7: t = ggml_rms_norm_back(c, a, b, 1); break;
            case 8: t = ggml_scale(c, ggml_reshape_3d(c, a, row, n_rows, 2), 0.5f); break;
            case 9: t = a->op == GGML_OP_NONE ? ggml_scale(c, a, 0.75f) : ggml_scale_inplace(c, a, 0.75f); break;
            case 10: t = ggml_add(c, a, ggml_view_1d(c, b, row, (2*n_rows - 1)*row*sizeof(float))); break; // b's last row
            case 11: t = below(3) ? ggml_scale(c, a, 2) : ggml_cont(c, a); break; // no node for a run
        }
        tensors.push_back(t);
        if (below(4) == 0 || i == 39) {
            ggml_set_output(t->view_src ? t->view_src : t);
            outputs.push_back(t);
        }
    }
    ggml_cgraph * graph = ggml_new_graph(c);
    for (ggml_tensor * t : outputs) {
        ggml_build_forward_expand(graph, t);
    }
    return graph;
}

// The outputs of a graph in the allocator's memory: computed node by node, for 0 threads, or in runs, whose nodes are added to *in_runs.
std::vector<std::vector<float>> compute_graph(ggml_cgraph * graph, int n_threads, int * in_runs) {
    ggml_gallocr_t allocator = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    ggml_gallocr_alloc_graph(allocator, graph);
    std::mt19937 random(1);
    for (int i = 0; i < graph->n_leafs; ++i) {
        std::generate_n((float *) graph->leafs[i]->data, ggml_nelements(graph->leafs[i]), [&] { return std::normal_distribution<float>()(random); });
    }
    ggml_compute_params params = {};
    params.nth = std::max(1, n_threads);
    for (int i = 0; i < graph->n_nodes; ++i) {
        int run = 0;
        for (params.ith = 0; params.ith < params.nth && n_threads > 0; ++params.ith) { // in turn: pieces must not depend on each other
            run = llsteer_run_compute(&params, graph, i, compute_node);
        }
        for (params.ith = 0; params.ith < params.nth && run == 0 && !ggml_op_is_empty(graph->nodes[i]->op); ++params.ith) {
            compute_node(&params, graph->nodes[i]);
        }
        *in_runs += run;
        i += std::max(0, run - 1);
    }
    std::vector<std::vector<float>> outputs;
    for (int i = 0; i < graph->n_nodes; ++i) {
        if (graph->nodes[i]->flags & GGML_TENSOR_FLAG_OUTPUT) {
            outputs.push_back(result(graph->nodes[i]));
        }
    }
    ggml_gallocr_free(allocator);
    return outputs;
}

void test_runs() {
    struct { int64_t row, n_rows; } shapes[] = {{1, 1}, {5, 3}, {64, 40}, {300, 7}, {2304, 5}, {4097, 2}, {8192, 1}, {8200, 3}, {20001, 1}};
    for (const auto & shape : shapes) {
        bool same = true;
        int in_runs = 0;
        for (unsigned seed = 0; seed < 20; ++seed) {
            std::vector<std::vector<std::vector<float>>> results;
            for (int n_threads : {0, 1, 2, 7}) {
                context c(1 << 20, true);
                std::mt19937 random(seed);
                results.push_back(compute_graph(random_graph(c, shape.row, shape.n_rows, random), n_threads, &in_runs));
            }
            for (const auto & r : results) {
                same = same && !r.empty() && r.size() == results[0].size();
                for (size_t i = 0; same && i < r.size(); ++i) {
                    same = same_bits(r[i], results[0][i]);
                }
            }
        }
        check(same && in_runs > 20*3*10, "runs in rows of " + std::to_string(shape.row));
    }

    // One run, of whose nodes only the last is written; with an output among them, that one, too.
    for (int output : {-1, 1}) {
        context c(1 << 20);
        ggml_tensor * x = ggml_new_tensor_2d(c, GGML_TYPE_F32, 100, 3);
        std::fill_n((float *) x->data, 300, 3.0f);
        ggml_tensor * t[3];
        t[0] = ggml_sqr(c, x);
        t[1] = ggml_add(c, t[0], x);
        t[2] = ggml_mul(c, t[0], t[1]);
        if (output >= 0) {
            ggml_set_output(t[output]);
        }
        ggml_cgraph * graph = ggml_new_graph(c);
        ggml_build_forward_expand(graph, t[2]);
        ggml_compute_params params = {};
        params.nth = 1;
        std::fill_n((float *) t[0]->data, 300, 1.0f);
        std::fill_n((float *) t[1]->data, 300, 1.0f);
        check(llsteer_run_compute(&params, graph, 0, compute_node) == 3, "three nodes are a run");
        check(result(t[2]) == std::vector<float>(300, 108.0f) && result(t[0]) == std::vector<float>(300, 1.0f) &&
            result(t[1]) == std::vector<float>(300, output == 1 ? 12.0f : 1.0f), "what a run writes");
        check(llsteer_run_compute(&params, graph, 2, compute_node) == 0, "one node is no run");
    }
}

// Where the system refuses tiles to a process, products are in fixed point.
void test_refused_tiles() {
#if defined(__AMX_BF16__) && defined(__linux__)
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        sock_filter rules[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        sock_fprog program = {sizeof(rules)/sizeof(rules[0]), rules};
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
            _exit(2);
        }
        check(!tiles::available(), "tiles that were refused");
        check_both_ways(GGML_TYPE_Q8_0, 256, 70, 20);
        fflush(stdout);
        _exit(failed == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "refused tiles");
#endif
}

// ---- speed --------------------------------------------------------------------------
// In processor time of the threads, so that other programs disturb little.

double seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9*t.tv_nsec;
}

// the best of several runs of functions at once, the slowest one's time in each
double time_of(const std::vector<std::function<void()>> & parts) {
    double best = INFINITY, all = 0;
    for (int run = 0; run < 3 || (run < 50 && all < 0.5); ++run) {
        std::vector<double> spent(parts.size());
        std::vector<std::thread> threads;
        for (size_t i = 0; i < parts.size(); ++i) {
            threads.emplace_back([&, i] {
                const double start = seconds();
                parts[i]();
                spent[i] = seconds() - start;
            });
        }
        for (std::thread & t : threads) {
            t.join();
        }
        const double slowest = *std::max_element(spent.begin(), spent.end());
        best = std::min(best, slowest);
        all += slowest;
    }
    return best;
}

// GF/s of multiplications and additions on registers
double peak(int n_threads) {
    constexpr int N = 12;
    constexpr int64_t STEPS = 1000000;
    [[maybe_unused]] static volatile float sink;
    const double t = time_of(std::vector<std::function<void()>>(n_threads, [] {
        lanes::vec sum[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
            sum[i] = lanes::all((float) i); // different, or the compiler computes one for all
        }
        const lanes::vec a = lanes::all(0.999f), b = lanes::all(1e-3f);
        for (int64_t s = 0; s < STEPS; ++s) {
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i) {
                sum[i] = lanes::multiply_add(sum[i], a, b);
            }
        }
#pragma GCC unroll 16
        for (int i = 1; i < N; ++i) {
            sum[0] += sum[i];
        }
        sink = sum[0][0];
    }));
    return 2e-9*N*STEPS*lanes::W*n_threads/t;
}

// Column t with each row dequantized for it, as ggml's OUT_PROD works.
void row_by_row(const ggml_tensor * node, int64_t t) {
    const ggml_tensor * w = node->src[0], * x = node->src[1];
    const ggml_to_float_t to_float = ggml_get_type_traits(w->type)->to_float;
    std::vector<float> buffer(w->ne[0]);
    float * y = &number(node, 0, t);
    std::fill(y, y + node->ne[0], 0.0f);
    for (int64_t m = 0; m < w->ne[1]; ++m) {
        const float * r = &number(w, 0, m);
        if (to_float) {
            to_float(r, buffer.data(), w->ne[0]);
            r = buffer.data();
        }
        if (node->op == GGML_OP_OUT_PROD) {
            const float g = number(x, t, m);
            for (int64_t k = 0; k < w->ne[0]; ++k) {
                y[k] += r[k]*g;
            }
        } else {
            lanes::vec sum = {};
            const float * column = &number(x, 0, t);
            for (int64_t k = 0; k + lanes::W <= w->ne[0]; k += lanes::W) {
                sum = lanes::multiply_add(lanes::load(r + k), lanes::load(column + k), sum);
            }
            for (int i = 0; i < lanes::W; ++i) {
                y[m] += sum[i];
            }
        }
    }
}

void bench(int n_threads, ggml_type type, int64_t k, int64_t m, int64_t n) {
    context c(1 << 20, true);
    ggml_tensor * w = ggml_new_tensor_2d(c, type, k, m);
    ggml_tensor * x = ggml_new_tensor_2d(c, GGML_TYPE_F32, k, n), * g = ggml_new_tensor_2d(c, GGML_TYPE_F32, m, n);
    ggml_tensor * y = ggml_new_tensor_2d(c, GGML_TYPE_F32, m, n), * dx = ggml_new_tensor_2d(c, GGML_TYPE_F32, k, n);
    // in memory as in a backend's buffer, where vectors seldom straddle cache lines
    constexpr size_t LINE = 64;
    std::vector<char> memory(ggml_nbytes(w) + 2*ggml_nbytes(x) + 2*ggml_nbytes(g) + 6*LINE);
    size_t used = LINE - (uintptr_t) memory.data() % LINE;
    for (ggml_tensor * t : {w, x, g, y, dx}) {
        t->data = memory.data() + used;
        used += (ggml_nbytes(t) + LINE - 1)/LINE*LINE;
    }
    std::vector<float> one(k);
    std::generate(one.begin(), one.end(), normal);
    ggml_quantize_chunk(type, one.data(), w->data, 0, 1, k, nullptr);
    for (int64_t i = 1; i < m; ++i) {
        memcpy((char *) w->data + i*w->nb[1], w->data, w->nb[1]);
    }
    std::fill((float *) x->data, (float *) x->data + ggml_nelements(x), 0.5f);
    std::fill((float *) g->data, (float *) g->data + ggml_nelements(g), 0.5f);

    printf("%-6s %4d x %6d x %3d", ggml_type_name(type), (int) k, (int) m, (int) n);
    ggml_tensor * forward = ggml_mul_mat(c, w, x), * back = ggml_out_prod(c, w, ggml_transpose(c, g));
    forward->data = y->data;
    back->data = dx->data;
    for (ggml_tensor * node : {forward, back}) {
        const double gigaflops = 2e-9*k*m*n;
        printf("   %s", node == back ? "backward" : "forward");
        for (const ggml_prec precision : PRECISIONS) {
            in(precision, node);
            const size_t size = llsteer_product_work_size(node, n_threads);
            std::vector<char> work(size);
            run(node, n_threads, work, size, [&](auto parts) { printf(" %5.0f", gigaflops/time_of(parts)); });
        }
        const double rows = time_of({[&] { row_by_row(node, 0); }});
        printf(" (row by row %4.1f)", gigaflops/n/rows*n_threads);
    }
    printf("\n");
}

// of all types, or one
void bench_all(int n_threads, const char * only) {
    setvbuf(stdout, nullptr, _IOLBF, 0); // to be seen as it comes, in a pipe, too
    printf("GF/s on %d threads, exact and in 16 bits; peak of multiply-add in float32 %.0f\n", n_threads, peak(n_threads));
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q5_0,
            GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_IQ3_S}) {
        if (only && strcmp(only, ggml_type_name(type)) != 0) {
            continue;
        }
        for (int64_t n : {1, 13, 90, 512}) {
            bench(n_threads, type, 2304, 9216, n);
        }
    }
    if (only) {
        return;
    }
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0}) {
        for (int64_t n : {1, 13, 26, 90}) {
            bench(n_threads, type, 640, 2048, n);
        }
        bench(n_threads, type, 640, 262144, 26);
    }

    constexpr int N = 9216;
    std::vector<float> x(N), y(N);
    std::generate(x.begin(), x.end(), normal);
    printf("gelu: %.2f ns an element\n", 1e9/N*time_of({[&] { llsteer_gelu_f32(N, y.data(), x.data()); }}));
}

} // namespace

int main(int argc, char ** argv) {
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench_all(argc > 2 ? std::max(1, atoi(argv[2])) : 2, argc > 3 ? argv[3] : nullptr);
        return 0;
    }
    test_refused_tiles(); // before this process asks for them
    test_dequantization();
    test_gelu();
    test_functions();
    test_runs();
    test_dots();
    test_what_is_taken();
    // both ways of 16 bits, first the one that is in use here
    const bool in_tiles = tiles::in_use();
    for (const bool use : {in_tiles, !in_tiles}) {
        if (use && !tiles::available()) {
#if defined(__AMX_BF16__)
            printf("SKIPPED products in tiles, which the system refuses to this process\n");
#endif
            continue;
        }
        tiles::in_use() = use;
        test_types_and_sizes();
        test_strides_and_broadcasts();
        test_experts();
        for (const ggml_prec precision : PRECISIONS) {
            test_columns_are_independent(precision);
            test_not_finite(precision);
        }
        test_empty_sum();
        test_prompts();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
