// Tests of graphs.cu on the CPU: when a graph is captured, launched and captured again. What
// is computed must be right whatever happens.
#include "../graphs.cu"

#include <stdexcept>

void check(bool ok, const std::string & what); // test.cpp

llsteer_cuda_capture::llsteer_cuda_capture() {}
llsteer_cuda_capture::~llsteer_cuda_capture() {}

namespace {

// A graph y = SCALE(SCALE(x)). Its kernels are told addresses and factors when they are submitted, as CUDA's are.
struct chain {
    ggml_context * c = ggml_init({ 1 << 20, nullptr, false });
    ggml_tensor * x = ggml_new_tensor_1d(c, GGML_TYPE_F32, 1);
    ggml_tensor * middle = ggml_scale(c, x, 2);
    ggml_tensor * y = ggml_scale(c, middle, 3);
    ggml_cgraph * graph = ggml_new_graph(c);
    bool breaks = false; // where it is captured

    chain() { ggml_build_forward_expand(graph, y); }
    ~chain() { ggml_free(c); }

    void evaluate() {
        for (int i = 0; i < graph->n_nodes; ++i) {
            const ggml_tensor * node = graph->nodes[i];
            const float * from = (const float *) node->src[0]->data;
            float * to = (float *) node->data;
            const float factor = ggml_get_op_params_f32(node, 0);
            submit([=] { *to = *from*factor; });
            if (capturing && breaks) {
                throw std::runtime_error("breaks");
            }
        }
    }

    // Computes it for another x. Is the result right, and was it captured and launched as often as this?
    void test(llsteer_cuda_graphs & graphs, int captures, int launches, const std::string & what) {
        static float next = 1;
        n_captures = n_launches = 0;
        *(float *) x->data = ++next;
        float & result = *(float *) graph->nodes[graph->n_nodes - 1]->data;
        result = NAN;
        ggml_backend_cuda_context ctx;
        graphs.compute(ctx, graph, [this] { evaluate(); });
        float expected = next;
        for (int i = 0; i < graph->n_nodes; ++i) {
            expected *= ggml_get_op_params_f32(graph->nodes[i], 0);
        }
        check(result == expected, "graphs, " + what + ": the result is " + std::to_string(result));
        check(n_captures == captures && n_launches == launches, "graphs, " + what + ": " + std::to_string(n_captures) + " captures, " + std::to_string(n_launches) + " launches");
    }
    void capture(llsteer_cuda_graphs & graphs, const std::string & what) {
        test(graphs, 0, 0, what + ": seen");
        test(graphs, 1, 1, what + ": captured");
        test(graphs, 0, 1, what + ": launched");
        test(graphs, 0, 1, what + ": launched again");
    }
};

// What changes one of its tensors, and nothing that a kernel of the old graph would notice.
void test_change(const std::string & what, const std::function<void(chain &)> & change) {
    auto graphs = llsteer_cuda_new_graphs();
    chain a, b;
    a.capture(*graphs, what);
    b.capture(*graphs, what + ", another graph");
    change(a);
    a.capture(*graphs, what + ", changed");
    b.test(*graphs, 0, 1, what + ", the other graph");
}

void test_failure(const char * function) {
    auto graphs = llsteer_cuda_new_graphs();
    chain a;
    a.test(*graphs, 0, 0, "seen");
    failing = function;
    a.test(*graphs, !fails("begin"), 0, std::string(function) + " fails");
    failing = "";
    a.test(*graphs, 0, 0, std::string(function) + " has failed");
    ggml_set_op_params_f32(a.y, 0, 5);
    a.capture(*graphs, std::string(function) + " had failed before a change");
}

void test_refusal(const std::string & what, const std::function<void(chain &)> & make) {
    auto graphs = llsteer_cuda_new_graphs();
    chain a;
    make(a);
    for (int i = 0; i < 4; ++i) {
        a.test(*graphs, 0, 0, what);
    }
}

} // namespace

void test_graphs() {
    static std::string said;
    ggml_log_set([](ggml_log_level, const char * text, void *) { said += text; }, nullptr);
    unsetenv("LLSTEER_CUDA_GRAPHS");
    test_refusal("not asked for", [](chain &) {});
    setenv("LLSTEER_CUDA_GRAPHS", "0", 1);
    test_refusal("asked not to", [](chain &) {});
    setenv("LLSTEER_CUDA_GRAPHS", "1", 1);
    setenv("GGML_CUDA_DISABLE_GRAPHS", "1", 1);
    test_refusal("disabled", [](chain &) {});
    unsetenv("GGML_CUDA_DISABLE_GRAPHS");

    test_change("a factor", [](chain & a) { ggml_set_op_params_f32(a.middle, 0, 7); });
    test_change("an input's address", [](chain & a) { a.x->data = ggml_new_tensor_1d(a.c, GGML_TYPE_F32, 1)->data; });
    test_change("a node's address", [](chain & a) { a.middle->data = ggml_new_tensor_1d(a.c, GGML_TYPE_F32, 1)->data; });
    test_change("an input's strides", [](chain & a) { a.x->nb[1] *= 2; });
    test_change("another input", [](chain & a) { a.middle->src[0] = a.x = ggml_new_tensor_1d(a.c, GGML_TYPE_F32, 1); });
    test_change("another node", [](chain & a) { a.graph->nodes[1] = a.y = ggml_scale(a.c, a.middle, 3); });
    test_change("fewer nodes", [](chain & a) { a.graph->n_nodes = 1; });
    {
        auto graphs = llsteer_cuda_new_graphs();
        chain a;
        a.capture(*graphs, "memory");
        ++llsteer_cuda_pool_frees;
        a.test(*graphs, 1, 1, "memory given back: captured again");
        a.test(*graphs, 0, 1, "memory given back: launched");
    }
    check(said.find("CUDA graphs: 2 captured, launched 5 times; computed without one: 1 times; failures: 0\n") != std::string::npos, "graphs: what is said at the end");

    { // several that begin with the same node, as graphs of the same parameters do
        auto graphs = llsteer_cuda_new_graphs();
        chain a, b;
        b.graph->nodes[0] = b.middle = a.middle;
        b.y->src[0] = a.middle;
        b.x = a.x;
        a.capture(*graphs, "the first of two with a node in common");
        b.capture(*graphs, "the second of two with a node in common");
        a.test(*graphs, 0, 1, "the first again");
    }

    for (const char * function : { "begin", "end", "instantiate", "launch" }) {
        test_failure(function);
    }
    {
        auto graphs = llsteer_cuda_new_graphs();
        chain a;
        a.breaks = true;
        a.test(*graphs, 0, 0, "seen");
        a.test(*graphs, 1, 0, "a kernel that cannot be captured");
        check(said.find("because of: breaks") != std::string::npos, "graphs: what is said of a failure");
        a.test(*graphs, 0, 0, "a kernel that could not be captured");
    }

    test_refusal("experts", [](chain & a) { a.y->op = GGML_OP_MUL_MAT_ID; });
    test_refusal("experts, backward", [](chain & a) {
        a.y->op = GGML_OP_OUT_PROD;
        a.y->src[2] = a.x;
    });
    test_refusal("MEAN", [](chain & a) { a.y->op = GGML_OP_MEAN; });
    check(n_graphs == 0, "graphs: all are destroyed");
    unsetenv("LLSTEER_CUDA_GRAPHS");
}
