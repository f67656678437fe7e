// CUDA graphs of a session. A session computes the same few ggml graphs at each step, with the same tensors at the same
// addresses. The first time one is computed kernel by kernel, the second time its launches are captured,
// and from then on they are one launch. Called from the patched ggml-cuda.cu.
//
// On if the environment has LLSTEER_CUDA_GRAPHS=1, and not ggml's GGML_CUDA_DISABLE_GRAPHS, when the session begins.
#pragma once

#include "ggml.h"
#include "ggml-impl.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

struct ggml_backend_cuda_context;

struct llsteer_cuda_graphs {
    virtual ~llsteer_cuda_graphs() = default;

    // Computes the graph, which evaluate does kernel by kernel on the context's stream.
    virtual void compute(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, const std::function<void()> & evaluate) = 0;
};

std::shared_ptr<llsteer_cuda_graphs> llsteer_cuda_new_graphs();

// Defined in ggml-cuda.cu. While one exists, what fails on this thread in CUDA throws instead of ending the process, and no
// context is freed on another, which would disturb the capture.
struct llsteer_cuda_capture {
    llsteer_cuda_capture();
    ~llsteer_cuda_capture();
};

// How often ggml's pools have given memory back to CUDA: what was captured before may point into it.
extern std::atomic<uint64_t> llsteer_cuda_pool_frees;
