// Compares a backend module's device with the CPU's, node by node: every operation that the
// graphs of a session have, in shapes that are odd on purpose; and the softmax of the vocabulary.
//
//   compare libggml-cpu-VARIANT.so libggml-cuda.so
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include "../softmax.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <dlfcn.h>

namespace {

ggml_backend_t open_device(const char * path) {
    void * module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module) {
        fprintf(stderr, "compare: %s\n", dlerror());
        exit(2);
    }
    ggml_backend_reg_t reg = ((ggml_backend_init_t) dlsym(module, "ggml_backend_init"))();
    if (ggml_backend_reg_dev_count(reg) == 0) {
        fprintf(stderr, "compare: %s found no device\n", path);
        exit(2);
    }
    return ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), nullptr);
}

typedef std::function<ggml_tensor *(ggml_context *)> build;

// Numbers for what the node reads: normal ones, or for I32 "below N", by name, below N.
void fill(ggml_tensor * t, std::mt19937 & random) {
    std::vector<char> data(ggml_nbytes(t));
    int below;
    if (t->type == GGML_TYPE_I32) {
        if (sscanf(t->name, "below %d", &below) != 1) {
            below = 1000; // positions
        }
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            ((int32_t *) data.data())[i] = random() % below;
        }
    } else {
        std::vector<float> row(t->ne[0]);
        for (int64_t r = 0; r < ggml_nrows(t); ++r) {
            for (float & x : row) {
                x = std::normal_distribution<float>()(random);
            }
            const std::vector<float> importance(t->ne[0], 1.0f);
            ggml_quantize_chunk(t->type, row.data(), data.data() + r*t->nb[1], 0, 1, t->ne[0], importance.data());
        }
    }
    ggml_backend_tensor_set(t, data.data(), 0, data.size());
}

// The node's result on a device; false: the device does not support it.
bool compute(ggml_backend_t device, const build & make, std::vector<float> & result) {
    ggml_context * c = ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true });
    ggml_tensor * node = make(c);
    ggml_cgraph * graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, node);
    bool supported = true;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        supported = supported && ggml_backend_supports_op(device, ggml_graph_node(graph, i));
    }
    if (supported) {
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(c, device);
        std::mt19937 random(1);
        for (ggml_tensor * t = ggml_get_first_tensor(c); t; t = ggml_get_next_tensor(c, t)) {
            if (t->op == GGML_OP_NONE && !t->view_src) {
                fill(t, random);
            }
        }
        void * memory = node->data;
        supported = ggml_backend_graph_compute(device, graph) == GGML_STATUS_SUCCESS;
        node->data = memory; // its own, where views of it look, whatever became of the pointer
        result.resize(ggml_nelements(node));
        ggml_backend_tensor_get(node, result.data(), 0, result.size()*sizeof(float));
        ggml_backend_buffer_free(buffer);
    }
    ggml_free(c);
    return supported;
}

ggml_backend_t cpu, device;
int n_ok = 0, n_bad = 0;

// tolerance: of the difference's norm, relative to the result's
void report(const std::string & what, double tolerance, const std::vector<float> & expected, const std::vector<float> & found) {
    double d = 0, n = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        d += std::pow((double) found[i] - expected[i], 2);
        n += std::pow((double) expected[i], 2);
    }
    const double error = n == 0 && d == 0 ? 0 : std::sqrt(d/n);
    const bool ok = error <= tolerance; // NaN is not
    ++(ok ? n_ok : n_bad);
    printf("%s  %s: %.2g\n", ok ? "ok " : "BAD", what.c_str(), error);
}

void compare(const std::string & what, double tolerance, const build & make) {
    std::vector<float> expected, found;
    if (!compute(cpu, make, expected)) {
        printf("BAD  %s: the CPU does not support it\n", what.c_str());
        ++n_bad;
        return;
    }
    if (!compute(device, make, found)) {
        printf("BAD  %s: the device does not support it\n", what.c_str());
        ++n_bad;
        return;
    }
    report(what, tolerance, expected, found);
}

ggml_tensor * f32(ggml_context * c, int64_t n0, int64_t n1 = 1, int64_t n2 = 1, int64_t n3 = 1) { return ggml_new_tensor_4d(c, GGML_TYPE_F32, n0, n1, n2, n3); }
ggml_tensor * ids(ggml_context * c, int below, int64_t n0, int64_t n1 = 1) {
    ggml_tensor * t = ggml_new_tensor_2d(c, GGML_TYPE_I32, n0, n1);
    ggml_format_name(t, "below %d", below);
    return t;
}
ggml_tensor * precise(ggml_prec prec, ggml_tensor * t) {
    t->op_params[0] = prec;
    return t;
}
ggml_tensor * out_prod_id(ggml_context * c, ggml_tensor * w, ggml_tensor * g, ggml_tensor * which) {
    ggml_tensor * t = ggml_new_tensor_3d(c, GGML_TYPE_F32, w->ne[0], g->ne[1], g->ne[2]);
    t->op = GGML_OP_OUT_PROD;
    t->src[0] = w;
    t->src[1] = g;
    t->src[2] = which;
    return t;
}

void products() {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const ggml_type w = (ggml_type) type;
        if (!(w == GGML_TYPE_F32 || (ggml_get_type_traits(w)->to_float && w != GGML_TYPE_TQ1_0 && w != GGML_TYPE_TQ2_0))) {
            continue; // a type of activations, or one that ggml-cuda has not
        }
        for (const ggml_prec prec : { GGML_PREC_EXACT, GGML_PREC_FIXED }) {
            // FIXED: bfloat16 on the device, of 8 bits, against 16 bits on the CPU
            const double tolerance = prec == GGML_PREC_EXACT ? 1e-5 : 1e-2;
            const std::string name = std::string(ggml_type_name(w)) + (prec == GGML_PREC_EXACT ? ", exact" : ", 16 bits");
            for (const int64_t n : { 1, 7, 90 }) {
                compare("MUL_MAT " + name + ", " + std::to_string(n) + " columns", tolerance, [&](ggml_context * c) { return precise(prec, ggml_mul_mat(c, ggml_new_tensor_2d(c, w, 768, 130), f32(c, 768, n))); });
                compare("OUT_PROD " + name + ", " + std::to_string(n) + " columns", tolerance, [&](ggml_context * c) { return precise(prec, ggml_out_prod(c, ggml_new_tensor_2d(c, w, 768, 130), ggml_transpose(c, f32(c, 130, n)))); });
            }
            compare("MUL_MAT_ID " + name, tolerance, [&](ggml_context * c) { return precise(prec, ggml_mul_mat_id(c, ggml_new_tensor_3d(c, w, 256, 65, 4), f32(c, 256, 1, 9), ids(c, 4, 2, 9))); });
            compare("OUT_PROD with experts " + name, tolerance, [&](ggml_context * c) { return precise(prec, out_prod_id(c, ggml_new_tensor_3d(c, w, 256, 65, 4), f32(c, 65, 2, 9), ids(c, 4, 2, 9))); });
        }
    }
    compare("MUL_MAT of many rows, in panels", 1e-5, [](ggml_context * c) { return precise(GGML_PREC_EXACT, ggml_mul_mat(c, ggml_new_tensor_2d(c, GGML_TYPE_Q8_0, 256, 50001), f32(c, 256, 3))); });
    compare("OUT_PROD of many rows, in panels", 1e-5, [](ggml_context * c) { return precise(GGML_PREC_EXACT, ggml_out_prod(c, ggml_new_tensor_2d(c, GGML_TYPE_Q8_0, 256, 50001), ggml_transpose(c, f32(c, 50001, 3)))); });
    auto heads = [](ggml_context * c, int64_t n_embd, int64_t n_head, int64_t n) { return ggml_permute(c, f32(c, n_embd, n_head, n), 0, 2, 1, 3); };
    compare("K q of attention", 1e-5, [&](ggml_context * c) { return precise(GGML_PREC_EXACT, ggml_mul_mat(c, heads(c, 64, 2, 33), heads(c, 64, 8, 33))); });
    compare("its backward pass", 1e-5, [&](ggml_context * c) { return precise(GGML_PREC_EXACT, ggml_out_prod(c, heads(c, 64, 2, 33), ggml_transpose(c, f32(c, 33, 33, 8)))); });
    compare("the steering operation", 1e-5, [](ggml_context * c) { return ggml_out_prod(c, f32(c, 96, 3), f32(c, 17, 3)); });
    compare("the steering operation's backward pass", 1e-5, [](ggml_context * c) { return ggml_out_prod(c, f32(c, 96, 17), ggml_transpose(c, f32(c, 17, 3))); });
}

void others() {
    const double t = 1e-5;
    compare("RMS_NORM", t, [](ggml_context * c) { return ggml_rms_norm(c, f32(c, 96, 5, 3), 1e-6f); });
    compare("NORM", t, [](ggml_context * c) { return ggml_norm(c, f32(c, 96, 5, 3), 1e-6f); });
    for (const int64_t n : { 20, 96, 2304 }) {
        compare("RMS_NORM_BACK " + std::to_string(n), t, [=](ggml_context * c) { return ggml_rms_norm_back(c, f32(c, n, 5, 3), f32(c, n, 5, 3), 1e-6f); });
        compare("RMS_NORM_BACK of a view, " + std::to_string(n), t, [=](ggml_context * c) {
            ggml_tensor * whole = f32(c, 2*n, 7, 3);
            return ggml_rms_norm_back(c, f32(c, n, 5, 3), ggml_view_3d(c, whole, n, 5, 3, whole->nb[1], whole->nb[2], n*sizeof(float)), 1e-6f);
        });
    }
    compare("SOFT_MAX", t, [](ggml_context * c) { return ggml_soft_max_ext(c, f32(c, 33, 33, 4), f32(c, 33, 33), 0.3f, 0.0f); });
    compare("SOFT_MAX with ALiBi", t, [](ggml_context * c) { return ggml_soft_max_ext(c, f32(c, 33, 33, 4), f32(c, 33, 33), 0.3f, 8.0f); });
    compare("SOFT_MAX with a part of a mask", t, [](ggml_context * c) {
        ggml_tensor * mask = f32(c, 40, 33);
        return ggml_soft_max_ext(c, f32(c, 33, 20, 4), ggml_view_2d(c, mask, 33, 20, mask->nb[1], 5*mask->nb[1]), 0.3f, 0.0f);
    });
    compare("SOFT_MAX_BACK", t, [](ggml_context * c) { return ggml_soft_max_ext_back(c, f32(c, 33, 33, 4), ggml_soft_max(c, f32(c, 33, 33, 4)), 0.3f, 0.0f); });
    for (const int mode : { 0, GGML_ROPE_TYPE_NEOX }) {
        compare("ROPE " + std::to_string(mode), 1e-4, [=](ggml_context * c) { return ggml_rope_ext(c, f32(c, 64, 4, 9), ids(c, 5000, 9), nullptr, 64, mode, 0, 10000.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f); });
        compare("ROPE_BACK " + std::to_string(mode), 1e-4, [=](ggml_context * c) { return ggml_rope_ext_back(c, f32(c, 64, 4, 9), ids(c, 5000, 9), nullptr, 64, mode, 0, 10000.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f); });
    }
    compare("REPEAT_BACK", t, [](ggml_context * c) { return ggml_repeat_back(c, f32(c, 64, 9, 8), f32(c, 64, 1, 2)); });
    compare("REPEAT", t, [](ggml_context * c) { return ggml_repeat(c, f32(c, 64, 1, 2), f32(c, 64, 9, 8)); });
    compare("GET_ROWS", t, [](ggml_context * c) { return ggml_get_rows(c, f32(c, 64, 9), ids(c, 9, 5)); });
    compare("GET_ROWS_BACK", t, [](ggml_context * c) { return ggml_get_rows_back(c, f32(c, 64, 5), ids(c, 9, 5), f32(c, 64, 9)); });
    compare("SET_ROWS", t, [](ggml_context * c) { return ggml_set_rows(c, ggml_fill(c, f32(c, 64, 9), 0.0f), f32(c, 64, 1), ids(c, 9, 1)); });
    compare("ACC", t, [](ggml_context * c) {
        ggml_tensor * a = f32(c, 96, 9);
        return ggml_acc(c, a, f32(c, 32, 9), a->nb[1], a->nb[2], a->nb[3], 32*sizeof(float));
    });
    for (int dim = 0; dim < 3; ++dim) {
        compare("CONCAT " + std::to_string(dim), t, [=](ggml_context * c) { return ggml_concat(c, f32(c, 16, 5, 3), f32(c, dim == 0 ? 7 : 16, dim == 1 ? 7 : 5, dim == 2 ? 7 : 3), dim); });
    }
    compare("CONT of a permuted tensor", 0, [](ggml_context * c) { return ggml_cont(c, ggml_permute(c, f32(c, 33, 5, 3), 1, 2, 0, 3)); });
    compare("CONT of a transposed tensor", 0, [](ggml_context * c) { return ggml_cont(c, ggml_transpose(c, f32(c, 33, 50))); });
    compare("ADD, broadcast", t, [](ggml_context * c) { return ggml_add(c, f32(c, 96, 9), f32(c, 96)); });
    // one after the other, each in memory of its own
    compare("ADD, five", t, [](ggml_context * c) {
        ggml_tensor * sum = f32(c, 96, 9);
        for (int i = 0; i < 4; ++i) {
            sum = ggml_add(c, sum, f32(c, 96, 9));
        }
        return sum;
    });
    compare("SUB", t, [](ggml_context * c) { return ggml_sub(c, f32(c, 96, 9), f32(c, 96, 9)); });
    compare("MUL, broadcast", t, [](ggml_context * c) { return ggml_mul(c, f32(c, 96, 9), f32(c, 1, 9)); });
    compare("DIV", t, [](ggml_context * c) { return ggml_div(c, f32(c, 96, 9), ggml_exp(c, f32(c, 1, 9))); });
    compare("SUM_ROWS", t, [](ggml_context * c) { return ggml_sum_rows(c, f32(c, 96, 9)); });
    compare("MEAN", t, [](ggml_context * c) { return ggml_mean(c, f32(c, 96, 9)); });
    compare("SUM", 1e-4, [](ggml_context * c) { return ggml_sum(c, f32(c, 96, 9)); });
    compare("SCALE", t, [](ggml_context * c) { return ggml_scale_bias(c, f32(c, 96, 9), -0.7f, 0.3f); });
    compare("CLAMP", 0, [](ggml_context * c) { return ggml_clamp(c, f32(c, 96, 9), -0.5f, 1.0f); });
    compare("SQR, SQRT, LOG, SIN, COS", t, [](ggml_context * c) { return ggml_sin(c, ggml_cos(c, ggml_log(c, ggml_sqrt(c, ggml_sqr(c, f32(c, 96, 9)))))); });
    const struct { const char * name; ggml_tensor * (*f)(ggml_context *, ggml_tensor *); } unary[] = {
        { "SILU", ggml_silu }, { "GELU", ggml_gelu }, { "TANH", ggml_tanh }, { "SIGMOID", ggml_sigmoid }, { "RELU", ggml_relu }, { "STEP", ggml_step },
        { "EXP", ggml_exp }, { "EXPM1", ggml_expm1 }, { "SOFTPLUS", ggml_softplus }, { "NEG", ggml_neg }, { "ABS", ggml_abs }, { "SGN", ggml_sgn },
    };
    for (const auto & u : unary) {
        compare(u.name, t, [&](ggml_context * c) { return u.f(c, f32(c, 96, 9)); });
    }
    compare("SILU_BACK", t, [](ggml_context * c) { return ggml_silu_back(c, f32(c, 96, 9), f32(c, 96, 9)); });
    for (const ggml_glu_op op : { GGML_GLU_OP_SWIGLU, GGML_GLU_OP_GEGLU, GGML_GLU_OP_REGLU }) {
        compare(std::string(ggml_glu_op_name(op)) + ", split", t, [=](ggml_context * c) { return ggml_glu_split(c, f32(c, 96, 9), f32(c, 96, 9), op); });
        compare(ggml_glu_op_name(op), t, [=](ggml_context * c) { return ggml_glu(c, f32(c, 96, 9), op, false); });
    }
    compare("SWIGLU_OAI", t, [](ggml_context * c) { return ggml_swiglu_oai(c, f32(c, 96, 9), f32(c, 96, 9), 1.7f, 1.0f); });
    compare("ADD_ID", t, [](ggml_context * c) { return ggml_add_id(c, f32(c, 96, 2, 9), f32(c, 96, 4), ids(c, 4, 2, 9)); });
}

// The softmax of the vocabulary in the device's memory; in each row the largest logit above the others by `lead`.
void softmax(const std::string & name, float lead) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(device));
    const auto get = (const softmax_on_device * (*)()) ggml_backend_reg_get_proc_address(reg, SOFTMAX_ON_DEVICE);
    if (!get) {
        printf("BAD  %s: the device does not have it\n", name.c_str());
        ++n_bad;
        return;
    }
    const int32_t n_vocab = 50001, n_rows = 3;
    const softmax_rows rows = { n_vocab, 0.7, 2 };
    std::mt19937 random(1);
    std::vector<float> logits(n_rows*n_vocab), exps(logits.size());
    std::vector<softmax_target> targets;
    std::vector<softmax_weight> weights;
    for (int32_t r = 0; r < n_rows; ++r) {
        float * z = &logits[r*n_vocab];
        for (int32_t i = 0; i < n_vocab; ++i) {
            z[i] = std::normal_distribution<float>(0, 3)(random);
        }
        const int32_t top = random() % n_vocab;
        z[top] = lead + *std::max_element(z, z + n_vocab);
        for (const int32_t token : { top, (int32_t) (random() % n_vocab), top }) {
            targets.push_back({ r, token, 0, 0 });
            weights.push_back({ r, token, std::normal_distribution<double>()(random) });
        }
    }
    std::vector<softmax_target> on_device = targets;

    rows.forward(logits.data(), exps.data(), targets.data(), targets.size());
    rows.backward(exps.data(), weights.data(), weights.size());
    ggml_context * c = ggml_init({ 2*ggml_tensor_overhead(), nullptr, true });
    ggml_tensor * z = f32(c, n_vocab, n_rows), * e = f32(c, n_vocab, n_rows);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(c, device);
    ggml_backend_tensor_set(z, logits.data(), 0, ggml_nbytes(z));
    get()->forward(device, rows, (const float *) z->data, (float *) e->data, on_device.data(), on_device.size());
    get()->backward(device, rows, (float *) e->data, weights.data(), weights.size());
    std::vector<float> found(exps.size());
    ggml_backend_tensor_get(e, found.data(), 0, ggml_nbytes(e));
    ggml_backend_buffer_free(buffer);
    ggml_free(c);

    const auto of = [](const std::vector<softmax_target> & targets, double softmax_target::*what) {
        std::vector<float> numbers;
        for (const auto & t : targets) {
            numbers.push_back(t.*what);
        }
        return numbers;
    };
    report(name + ", log p", 1e-5, of(targets, &softmax_target::log_p), of(on_device, &softmax_target::log_p));
    report(name + ", log(1 - p)", 1e-5, of(targets, &softmax_target::log_1mp), of(on_device, &softmax_target::log_1mp));
    report(name + ", gradient", 1e-5, exps, found);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: compare libggml-cpu-VARIANT.so MODULE.so\n");
        return 2;
    }
    cpu = open_device(argv[1]);
    device = open_device(argv[2]);
    products();
    others();
    softmax("softmax", 0.5f);
    softmax("softmax near p = 1", 25.0f);
    printf("%d ok, %d bad\n", n_ok, n_bad);
    return n_bad > 0;
}
