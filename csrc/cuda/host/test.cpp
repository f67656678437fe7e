// Tests of products.cu and vocab-softmax.cu on the CPU: which numbers they read and where the results
// go, against sums in double. Not the GPU's arithmetic: scripts/cuda-check.sh does that. And of
// the CPU's own softmax.cpp, which does the same. main calls those of graphs.cpp, too.
#include "../products.cu"
#include "../vocab-softmax.cu"

#include <cmath>
#include <cstdio>
#include <random>
#include <string>

void test_graphs(); // graphs.cpp

int passed = 0, failed = 0;

void check(bool ok, const std::string & what) {
    ++(ok ? passed : failed);
    if (!ok) {
        printf("FAIL %s\n", what.c_str());
    }
}

namespace {

std::mt19937 generator(1);

struct context {
    ggml_context * c = ggml_init({ 64 << 20, nullptr, false });
    ~context() { ggml_free(c); }
    operator ggml_context *() const { return c; }
};

ggml_tensor * normal(ggml_context * c, ggml_type type, int64_t n0, int64_t n1, int64_t n2 = 1, int64_t n3 = 1) {
    ggml_tensor * t = ggml_new_tensor_4d(c, type, n0, n1, n2, n3);
    std::vector<float> row(n0);
    for (int64_t r = 0; r < ggml_nrows(t); ++r) {
        for (float & x : row) {
            x = std::normal_distribution<float>()(generator);
        }
        ggml_quantize_chunk(type, row.data(), (char *) t->data + r*t->nb[1], 0, 1, n0, nullptr);
    }
    return t;
}

std::vector<float> row(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    std::vector<float> r(t->ne[0]);
    const char * from = (const char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3];
    if (t->type == GGML_TYPE_F32) {
        memcpy(r.data(), from, r.size()*sizeof(float));
    } else {
        ggml_get_type_traits(t->type)->to_float(from, r.data(), r.size());
    }
    return r;
}

float number(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
    return *(const float *) ((const char *) t->data + i0*t->nb[0] + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]);
}

// Computes the node in each precision and compares every element with its sum.
void test(ggml_tensor * node, const std::string & what, const std::vector<ggml_prec> & precisions = { GGML_PREC_EXACT, GGML_PREC_FIXED }) {
    const ggml_tensor * w = node->src[0], * x = node->src[1], * ids = node->src[2];
    const bool backward = node->op == GGML_OP_OUT_PROD;
    for (const ggml_prec prec : precisions) {
        node->op_params[0] = prec;
        check(llsteer_cuda_product_is(node) && llsteer_cuda_product_supports(node), what + ": is supported");
        std::fill((float *) node->data, (float *) node->data + ggml_nelements(node), NAN);
        ggml_backend_cuda_context ctx;
        llsteer_cuda_product_compute(ctx, node);
        double worst = 0;
        for (int64_t i3 = 0; i3 < node->ne[3]; ++i3) {
            for (int64_t i2 = 0; i2 < node->ne[2]; ++i2) {
                for (int64_t i1 = 0; i1 < node->ne[1]; ++i1) {
                    const int64_t w2 = ids ? *(const int32_t *) ((const char *) ids->data + i1*ids->nb[0] + i2*ids->nb[1]) : i2/(x->ne[2]/w->ne[2]), w3 = i3/(x->ne[3]/w->ne[3]);
                    std::vector<double> sum(node->ne[0]), size(node->ne[0]);
                    for (int64_t r = 0; r < w->ne[1]; ++r) {
                        const std::vector<float> wr = row(w, r, w2, w3);
                        for (int64_t k = 0; k < w->ne[0]; ++k) {
                            const int64_t along = backward ? r : k, to = backward ? k : r;
                            const double xv = ids ? number(x, along, i1 % x->ne[1], i2, 0) : backward ? number(x, i1, along, i2, i3) : number(x, along, i1, i2, i3);
                            sum[to]  += wr[k]*xv;
                            size[to] += std::fabs(wr[k]*xv);
                        }
                    }
                    for (int64_t i0 = 0; i0 < node->ne[0]; ++i0) {
                        const double e = std::fabs(number(node, i0, i1, i2, i3) - sum[i0])/size[i0];
                        worst = e <= worst ? worst : e; // NaN is the worst
                    }
                }
            }
        }
        // both operands rounded to 8 bits of fraction, twice half a unit; or a rounding of the sum, once for each panel
        const double bound = prec == GGML_PREC_FIXED ? 2*std::ldexp(1, -8) : 4*std::ldexp(1, -24);
        check(worst <= bound, what + (prec == GGML_PREC_FIXED ? ", bfloat16" : ", exact") + ": error " + std::to_string(worst));
    }
}

ggml_tensor * out_prod_id(ggml_context * c, ggml_tensor * w, ggml_tensor * g, ggml_tensor * ids) {
    ggml_tensor * node = ggml_new_tensor_3d(c, GGML_TYPE_F32, w->ne[0], g->ne[1], g->ne[2]);
    node->op = GGML_OP_OUT_PROD;
    node->src[0] = w;
    node->src[1] = g;
    node->src[2] = ids;
    return node;
}

const softmax_on_device cpu_softmax = {
    [](ggml_backend_t, const softmax_rows & rows, const float * logits, float * exps, softmax_target * targets, size_t n) { rows.forward(logits, exps, targets, n); },
    [](ggml_backend_t, const softmax_rows & rows, float * exps, const softmax_weight * weights, size_t n) { rows.backward(exps, weights, n); },
};

// Rows of logits, some without a target, and targets in any order; the largest logit above the
// others by `lead`. Each number against the same in double.
void test_softmax(const std::string & where, const softmax_on_device & tested, int32_t n_vocab, double coldness, float lead) {
    const std::string what = "softmax on " + where + " of " + std::to_string(n_vocab) + ", lead " + std::to_string(lead);
    const int n_rows = 4;
    std::vector<float> logits(n_rows*n_vocab), exps(logits.size(), NAN);
    std::vector<int32_t> top(n_rows);
    for (int r = 0; r < n_rows; ++r) {
        float * z = &logits[r*n_vocab];
        for (int32_t i = 0; i < n_vocab; ++i) {
            z[i] = std::normal_distribution<float>(0, 3)(generator);
        }
        top[r] = r == 0 ? n_vocab - 1 : generator() % n_vocab;
        z[top[r]] = lead + *std::max_element(z, z + n_vocab);
    }
    std::vector<softmax_target> targets;
    for (const int r : { 3, 0, 3, 1, 0 }) { // never 2
        targets.push_back({ r, targets.size() % 2 ? top[r] : (int32_t) (generator() % n_vocab), NAN, NAN });
    }
    targets.push_back(targets[1]); // two of one token
    std::vector<softmax_weight> weights;
    for (const auto & t : targets) {
        weights.push_back({ t.row, t.token, std::normal_distribution<double>()(generator) });
    }

    ggml_backend_cuda_context ctx;
    ggml_backend backend = {};
    backend.context = &ctx;
    const softmax_rows softmax = { n_vocab, coldness, 2 };
    tested.forward(&backend, softmax, logits.data(), exps.data(), targets.data(), targets.size());
    std::vector<softmax_target> without = targets; // exponentials not kept
    tested.forward(&backend, softmax, logits.data(), nullptr, without.data(), without.size());
    tested.backward(&backend, softmax, exps.data(), weights.data(), weights.size());

    double worst = 0;
    auto look = [&](double found, double right, double size) {
        const double e = std::fabs(found - right)/size;
        worst = e <= worst ? worst : e; // NaN is the worst
    };
    for (int r = 0; r < n_rows; ++r) {
        const float * z = &logits[r*n_vocab];
        std::vector<double> e(n_vocab);
        double others = 0, total = 0; // all but the largest; of the weights
        for (int32_t i = 0; i < n_vocab; ++i) {
            e[i] = std::exp(coldness*((double) z[i] - z[top[r]]));
            others += i == top[r] ? 0 : e[i];
        }
        for (const auto & w : weights) {
            total += w.row == r ? w.weight : 0;
        }
        const auto complement = [&](int32_t i) { return (i == top[r] ? others : 1 + others - e[i])/(1 + others); }; // 1 - p
        for (size_t k = 0; k < targets.size(); ++k) {
            if (targets[k].row == r) {
                const int32_t i = targets[k].token;
                const double log_p = coldness*((double) z[i] - z[top[r]]) - std::log1p(others);
                const double log_1mp = i == top[r] ? std::log(others) - std::log1p(others) : std::log1p(-e[i]/(1 + others));
                look(targets[k].log_p, log_p, std::fabs(log_p) + 1e-9); // near 0 it is 1 - p that matters
                look(targets[k].log_1mp, log_1mp, std::fabs(log_1mp));
                check(without[k].log_p == targets[k].log_p && without[k].log_1mp == targets[k].log_1mp, what + ": the same without exponentials");
            }
        }
        for (int32_t i = 0; i < n_vocab; ++i) {
            double own = 0;
            for (const auto & w : weights) {
                own += w.row == r && w.token == i ? w.weight : 0;
            }
            const double of_own = coldness*own*complement(i), of_rest = -coldness*(total - own)*e[i]/(1 + others);
            if (r == 2) {
                worst = std::isnan(exps[r*n_vocab + i]) ? worst : INFINITY; // as it was
            } else {
                look(exps[r*n_vocab + i], of_own + of_rest, std::fabs(of_own) + std::fabs(of_rest));
            }
        }
    }
    // The argument of an exponential, coldness*(z - max) above -64, is off by half a unit of the product, of the difference, which is above
    // -128, and of the coldness; what the function and the products with what it gives add is some units more.
    const double bound = (32 + 64*coldness + 64)*std::ldexp(1, -24) + std::ldexp(1, -21);
    check(worst <= bound, what + ": error " + std::to_string(worst/bound) + " of what it may be");
    // the same bits in the other order of threads
    std::vector<float> again(logits.size(), NAN);
    std::vector<softmax_target> targets_again = targets;
    last_thread_first = true;
    tested.forward(&backend, softmax, logits.data(), again.data(), targets_again.data(), targets_again.size());
    tested.backward(&backend, softmax, again.data(), weights.data(), weights.size());
    last_thread_first = false;
    check(memcmp(again.data(), exps.data(), exps.size()*sizeof(float)) == 0, what + ": the order of threads changes the gradient");
    for (size_t k = 0; k < targets.size(); ++k) {
        check(targets_again[k].log_p == targets[k].log_p && targets_again[k].log_1mp == targets[k].log_1mp, what + ": the order of threads changes probabilities");
    }
}

// A model that went wrong must not look as if it had not.
void test_softmax_of_nan(const std::string & where, const softmax_on_device & tested) {
    const float z[] = { 1, NAN, 2 };
    ggml_backend_cuda_context ctx;
    ggml_backend backend = {};
    backend.context = &ctx;
    softmax_target target = { 0, 2, 0, 0 };
    tested.forward(&backend, { 3, 1, 1 }, z, nullptr, &target, 1);
    check(std::isnan(target.log_p) && std::isnan(target.log_1mp), "softmax of NaN on " + where);
}

} // namespace

int main() {
    const struct { const char * where; const softmax_on_device & softmax; } places[] = { { "a GPU", *llsteer_cuda_softmax() }, { "the CPU", cpu_softmax } };
    for (const auto & place : places) {
        for (const int32_t n_vocab : { 1000, CHUNK, 2*CHUNK + 1, 40001 }) {
            for (const float lead : { 0.5f, 50.0f }) { // and 1 - p near 1e-14
                test_softmax(place.where, place.softmax, n_vocab, 0.7, lead);
            }
        }
        test_softmax_of_nan(place.where, place.softmax);
    }
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K }) {
        const std::string name = ggml_type_name(type);
        for (const int64_t n : { 1, 5 }) {
            context c;
            ggml_tensor * w = normal(c, type, 256, 7);
            test(ggml_mul_mat(c, w, normal(c, GGML_TYPE_F32, 256, n)), name + " forward");
            test(ggml_out_prod(c, w, normal(c, GGML_TYPE_F32, n, 7)), name + " backward");
            test(ggml_out_prod(c, w, ggml_transpose(c, normal(c, GGML_TYPE_F32, 7, n))), name + " backward, transposed");
        }
        {
            context c; // several matrices, shared by matrices of x
            ggml_tensor * w = normal(c, type, 256, 3, 2, 2);
            test(ggml_mul_mat(c, w, normal(c, GGML_TYPE_F32, 256, 4, 6, 2)), name + " forward, shared by 3");
            test(ggml_mul_mat(c, w, normal(c, GGML_TYPE_F32, 256, 4, 2, 4)), name + " forward, shared by 2 in the last dimension");
            test(ggml_out_prod(c, w, ggml_transpose(c, normal(c, GGML_TYPE_F32, 3, 4, 6, 2))), name + " backward, shared by 3");
        }
        {
            context c; // x permuted, as queries are
            ggml_tensor * w = normal(c, type, 256, 3, 2);
            test(ggml_mul_mat(c, w, ggml_permute(c, normal(c, GGML_TYPE_F32, 256, 4, 5), 0, 2, 1, 3)), name + " forward, x permuted");
            test(ggml_mul_mat(c, w, ggml_permute(c, normal(c, GGML_TYPE_F32, 4, 2, 256), 2, 1, 0, 3)), name + " forward, x with no contiguous dimension");
        }
        {
            context c; // experts
            ggml_tensor * w = normal(c, type, 256, 3, 4);
            ggml_tensor * ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, 2, 5);
            const int32_t chosen[] = { 0, 3, 3, 0, 2, 0, 0, 2, 3, 2 }; // never 1
            memcpy(ids->data, chosen, sizeof(chosen));
            test(ggml_mul_mat_id(c, w, normal(c, GGML_TYPE_F32, 256, 2, 5), ids), name + " experts");
            test(ggml_mul_mat_id(c, w, normal(c, GGML_TYPE_F32, 256, 1, 5), ids), name + " experts, the same x for all");
            test(out_prod_id(c, w, normal(c, GGML_TYPE_F32, 3, 2, 5), ids), name + " experts, backward");
        }
    }
    {
        context c; // more than a panel: 16384 float32 or 32768 bfloat16 rows
        ggml_tensor * w = normal(c, GGML_TYPE_Q8_0, 256, 40001);
        const int64_t before = cublas_calls;
        test(ggml_mul_mat(c, w, normal(c, GGML_TYPE_F32, 256, 2)), "panels");
        check(cublas_calls - before == 3 + 2, "panels: their number");
        test(ggml_out_prod(c, w, normal(c, GGML_TYPE_F32, 2, 40001)), "panels, backward");
        test(ggml_out_prod(c, w, ggml_transpose(c, normal(c, GGML_TYPE_F32, 40001, 2))), "panels, backward, transposed");
    }
    {
        context c; // K of attention is a permuted view, as llama.cpp makes it
        ggml_tensor * k = ggml_permute(c, normal(c, GGML_TYPE_F32, 16, 2, 5), 0, 2, 1, 3);
        test(ggml_mul_mat(c, k, normal(c, GGML_TYPE_F32, 16, 5, 4)), "attention", { GGML_PREC_EXACT });
        test(ggml_out_prod(c, k, ggml_transpose(c, normal(c, GGML_TYPE_F32, 5, 5, 4))), "attention, backward", { GGML_PREC_EXACT });
    }
    {
        context c; // what is refused
        ggml_tensor * w = normal(c, GGML_TYPE_Q8_0, 256, 8);
        ggml_tensor * rows = ggml_view_2d(c, w, 256, 4, 2*w->nb[1], 0);
        check(!llsteer_cuda_product_supports(ggml_out_prod(c, rows, normal(c, GGML_TYPE_F32, 3, 4))), "every second row of quantized weights is refused");
        ggml_tensor * y = ggml_mul_mat(c, w, normal(c, GGML_TYPE_F32, 256, 2));
        check(!llsteer_cuda_product_is(y), "an ordinary product is ggml-cuda's");
    }
    test_graphs();
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
