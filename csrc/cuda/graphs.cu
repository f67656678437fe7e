#include "graphs.cuh"

#include "common.cuh"
#include "products.cuh"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

std::atomic<uint64_t> llsteer_cuda_pool_frees;

namespace {

// All that a graph's tensors say: what each kernel has been launched with comes from there.
class state {
public:
    void remember(const ggml_cgraph * graph) {
        n_nodes = graph->n_nodes;
        tensors.assign(graph->nodes, graph->nodes + n_nodes);
        std::unordered_set<const ggml_tensor *> known(tensors.begin(), tensors.end());
        for (int i = 0; i < n_nodes; ++i) {
            for (const ggml_tensor * src : graph->nodes[i]->src) {
                if (src && known.insert(src).second) {
                    tensors.push_back(src);
                }
            }
        }
        said.resize(tensors.size()*sizeof(ggml_tensor));
        for (size_t i = 0; i < tensors.size(); ++i) {
            memcpy(&said[i*sizeof(ggml_tensor)], tensors[i], sizeof(ggml_tensor));
        }
    }

    // The nodes come first: as long as they are what they were, so are the addresses of their sources.
    bool is(const ggml_cgraph * graph) const {
        if (graph->n_nodes != n_nodes || memcmp(graph->nodes, tensors.data(), n_nodes*sizeof(graph->nodes[0])) != 0) {
            return false;
        }
        for (size_t i = 0; i < tensors.size(); ++i) {
            if (memcmp(&said[i*sizeof(ggml_tensor)], tensors[i], sizeof(ggml_tensor)) != 0) {
                return false;
            }
        }
        return true;
    }

private:
    int n_nodes = -1;
    std::vector<const ggml_tensor *> tensors; // nodes, then what else they read
    std::vector<char> said;
};

struct entry {
    state seen;
    cudaGraphExec_t executable = nullptr;
    uint64_t pool_frees = 0; // before it was captured
    bool refused = false;    // it cannot be captured, or that failed

    void forget() {
        if (executable) {
            (void) cudaGraphExecDestroy(executable);
            executable = nullptr;
        }
    }
    ~entry() { forget(); }
};

// What waits for the GPU, or chooses its kernel by whether it is captured.
bool can_be_captured(const ggml_cgraph * graph) {
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * node = graph->nodes[i];
        if (node->op == GGML_OP_MUL_MAT_ID || (llsteer_cuda_product_is(node) && node->src[2]) || node->op == GGML_OP_MEAN) {
            return false;
        }
    }
    return true;
}

class graphs : public llsteer_cuda_graphs {
public:
    explicit graphs(bool on) : on(on) {}

    ~graphs() override {
        if (on) { // scripts/cuda-check.sh reads it
            GGML_LOG_WARN("CUDA graphs: %d captured, launched %d times; computed without one: %d times; failures: %d\n", n_captured, n_launched, n_direct, n_failed);
        }
    }

    void compute(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, const std::function<void()> & evaluate) override {
        if (!on || graph->n_nodes == 0 || ggml_cuda_info().devices[ctx.device].cc < GGML_CUDA_CC_AMPERE) { // older ones: as ggml-cuda has it
            evaluate();
            return;
        }
        entry & e = entries[graph->nodes];
        if (e.seen.is(graph)) {
            if (e.executable && e.pool_frees != llsteer_cuda_pool_frees) {
                e.forget();
            }
            if (!e.executable && !e.refused) {
                e.refused = !can_be_captured(graph) || !capture(ctx, e, evaluate);
            }
            if (e.executable && e.pool_frees == llsteer_cuda_pool_frees && launch(ctx, e)) {
                return;
            }
        } else {
            e.forget();
            e.refused = false;
        }
        evaluate();
        ++n_direct;
        e.seen.remember(graph);
    }

private:
    bool capture(ggml_backend_cuda_context & ctx, entry & e, const std::function<void()> & evaluate) {
        llsteer_cuda_capture capturing;
        e.pool_frees = llsteer_cuda_pool_frees; // before: what evaluate frees may be in the graph
        cudaError_t status = cudaStreamBeginCapture(ctx.stream(), cudaStreamCaptureModeRelaxed);
        if (status != cudaSuccess) {
            return failed(cudaGetErrorString(status));
        }
        std::string reason;
        try {
            evaluate();
        } catch (const std::exception & x) {
            reason = x.what();
        }
        cudaGraph_t captured = nullptr;
        status = cudaStreamEndCapture(ctx.stream(), &captured);
        if (reason.empty() && status == cudaSuccess) {
            status = cudaGraphInstantiate(&e.executable, captured, NULL, NULL, 0);
        }
        if (captured) {
            (void) cudaGraphDestroy(captured);
        }
        if (!reason.empty() || status != cudaSuccess) {
            e.executable = nullptr;
            return failed(reason.empty() ? cudaGetErrorString(status) : reason.c_str());
        }
        ++n_captured;
        return true;
    }

    bool launch(ggml_backend_cuda_context & ctx, entry & e) {
        const cudaError_t status = cudaGraphLaunch(e.executable, ctx.stream());
        if (status != cudaSuccess) {
            e.forget();
            e.refused = true;
            return failed(cudaGetErrorString(status));
        }
        ++n_launched;
        return true;
    }

    bool failed(const char * reason) {
        (void) cudaGetLastError(); // or the next kernel would seem to have failed
        ++n_failed;
        GGML_LOG_WARN("CUDA graphs: computing without one, because of: %s\n", reason);
        return false;
    }

    const bool on;
    std::unordered_map<const void *, entry> entries; // by where the list of nodes is; the first node may be a parameter, which is in all
    int n_captured = 0, n_launched = 0, n_direct = 0, n_failed = 0;
};

} // namespace

std::shared_ptr<llsteer_cuda_graphs> llsteer_cuda_new_graphs() {
    const char * asked = getenv("LLSTEER_CUDA_GRAPHS");
    return std::make_shared<graphs>(asked && strcmp(asked, "1") == 0 && !getenv("GGML_CUDA_DISABLE_GRAPHS"));
}
