// What products.cu and softmax.cu need of CUDA and ggml-cuda, on the CPU: kernels run
// thread after thread, cuBLAS is a loop in double. For test.cpp, on machines without a GPU.
#pragma once

#include "ggml.h"
#include "ggml-impl.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

// ---- kernels

#define __global__
#define __device__
#define __shared__ static // there is one block at a time
struct cuda_index { int64_t x; };
inline cuda_index blockIdx, blockDim, threadIdx;

// Runs the threads of a block one after the other. One that comes to a barrier is left there, on a stack of
// its own, until all are; then they go on. In either order results must be the same.
inline bool last_thread_first = false;
class host_block {
public:
    template <typename K> void run(int64_t n, K kernel) {
        threads = n;
        body = kernel;
        begun = 0;
        current = this;
        while (begun < threads || !waiting.empty()) {
            if (begun < threads) {
                if (free.empty()) {
                    all.push_back(std::make_unique<stack>());
                    free.push_back(all.back().get());
                }
                stack * s = free.back();
                free.pop_back();
                getcontext(&s->context);
                s->context.uc_stack.ss_sp = s->memory;
                s->context.uc_stack.ss_size = sizeof(s->memory);
                s->context.uc_link = nullptr;
                makecontext(&s->context, (void (*)()) begin_threads, 0);
                resume(s);
                continue;
            }
            GGML_ASSERT((int64_t) waiting.size() == threads && "some threads of a block end where others wait for them");
            const std::vector<stack *> arrived = std::move(waiting);
            waiting.clear();
            for (stack * s : arrived) {
                threadIdx.x = s->thread;
                resume(s);
            }
        }
    }
    static void barrier() {
        host_block & b = *current;
        stack * s = b.running;
        s->thread = threadIdx.x;
        b.waiting.push_back(s);
        swapcontext(&s->context, &b.scheduler);
    }

private:
    struct stack {
        ucontext_t context;
        int64_t thread;
        char memory[64 << 10];
    };
    void resume(stack * s) {
        running = s;
        swapcontext(&scheduler, &s->context);
    }
    static void begin_threads() { // those that do not wait need no stack of their own
        host_block & b = *current;
        stack * own = b.running;
        while (b.begun < b.threads) {
            const int64_t i = b.begun++;
            threadIdx.x = last_thread_first ? b.threads - 1 - i : i;
            b.body();
        }
        b.free.push_back(own);
        setcontext(&b.scheduler);
    }
    static inline host_block * current;
    std::function<void()> body;
    int64_t threads, begun;
    std::vector<std::unique_ptr<stack>> all;
    std::vector<stack *> free, waiting;
    stack * running;
    ucontext_t scheduler;
};
inline void __syncthreads() { host_block::barrier(); }

#define LAUNCH(kernel, blocks, threads, stream, ...) \
    do { \
        (void) (stream); \
        host_block block; \
        blockDim.x = (threads); \
        for (blockIdx.x = 0; blockIdx.x < (int64_t) (blocks); ++blockIdx.x) { \
            block.run(threads, [&] { (kernel)(__VA_ARGS__); }); \
        } \
    } while (0)

typedef struct cuda_stream * cudaStream_t;
#define CUDA_CHECK(call)   GGML_ASSERT((call) == 0)
#define CUBLAS_CHECK(call) GGML_ASSERT((call) == 0)
enum { cudaMemcpyDeviceToHost, cudaMemcpyHostToDevice };
inline int cudaGetLastError() { return 0; }
inline void ggml_cuda_set_device(int) {}
inline int cudaStreamSynchronize(cudaStream_t) { return 0; }
inline int cudaMemcpyAsync(void * to, const void * from, size_t n, int, cudaStream_t) { memcpy(to, from, n); return 0; }

// ---- CUDA graphs: what is submitted while a stream is captured is done at each launch. For graphs.cpp

enum cudaError_t { cudaSuccess, cudaErrorUnknown };
enum { cudaStreamCaptureModeRelaxed };
typedef std::vector<std::function<void()>> * cudaGraph_t, * cudaGraphExec_t;

inline cudaGraph_t capturing = nullptr; // what has been submitted
inline const char * failing = "";       // which of these functions fails
inline int n_graphs = 0;                // that are not destroyed
inline int n_captures = 0, n_launches = 0;

inline void submit(std::function<void()> kernel) {
    if (capturing) {
        capturing->push_back(kernel);
    } else {
        kernel();
    }
}
inline bool fails(const char * function) { return strcmp(failing, function) == 0; }
inline const char * cudaGetErrorString(cudaError_t) { return failing; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
    if (fails("begin")) {
        return cudaErrorUnknown;
    }
    ++n_captures;
    capturing = new std::vector<std::function<void()>>;
    ++n_graphs;
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    --n_graphs;
    return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t * graph) {
    *graph = capturing;
    capturing = nullptr;
    if (fails("end")) {
        cudaGraphDestroy(*graph);
        *graph = nullptr;
        return cudaErrorUnknown;
    }
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t * executable, cudaGraph_t graph, void *, void *, int) {
    if (fails("instantiate")) {
        return cudaErrorUnknown;
    }
    *executable = new std::vector<std::function<void()>>(*graph);
    ++n_graphs;
    return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    GGML_ASSERT(!capturing);
    if (fails("launch")) {
        return cudaErrorUnknown;
    }
    ++n_launches;
    for (auto & kernel : *graph) {
        kernel();
    }
    return cudaSuccess;
}

// ---- bfloat16

struct nv_bfloat16 { ggml_bf16_t b; };

// ---- ggml-cuda: its pool, with a guard behind each allocation

struct ggml_cuda_pool {};
constexpr size_t POOL_GUARD = 64;
template <typename T> struct ggml_cuda_pool_alloc {
    char * ptr = nullptr;
    size_t size = 0;
    explicit ggml_cuda_pool_alloc(ggml_cuda_pool &) {}
    ggml_cuda_pool_alloc(ggml_cuda_pool &, size_t n) { alloc(n); }
    ggml_cuda_pool_alloc(const ggml_cuda_pool_alloc &) = delete;
    ~ggml_cuda_pool_alloc() {
        for (size_t i = 0; ptr && i < POOL_GUARD; ++i) {
            GGML_ASSERT(ptr[size + i] == 'x' && "written beyond an allocation");
        }
        free(ptr);
    }
    T * alloc(size_t n) {
        size = n*sizeof(T);
        ptr = (char *) malloc(size + POOL_GUARD);
        memset(ptr, 0xff, size); // NaN
        memset(ptr + size, 'x', POOL_GUARD);
        return (T *) ptr;
    }
    T * get() { return (T *) ptr; }
};

typedef int cublasHandle_t;
enum { GGML_CUDA_CC_AMPERE = 800 };
struct ggml_cuda_device_info {
    struct { int cc; } devices[1];
};
inline const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info = { { { 900 } } };
    return info;
}
struct ggml_backend_cuda_context {
    int device = 0;
    ggml_cuda_pool p;
    ggml_cuda_pool & pool() { return p; }
    cudaStream_t stream() { return nullptr; }
    cublasHandle_t cublas_handle() { return 0; }
};

// ---- cuBLAS

enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16BF };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC };
enum { CUBLAS_GEMM_DEFAULT };
inline int cublasSetStream(cublasHandle_t, cudaStream_t) { return 0; }
inline int cublasSetWorkspace(cublasHandle_t, void *, size_t) { return 0; }

inline int64_t cublas_calls = 0;

// C[m, n] = alpha op(A)[m, k] op(B)[k, n] + beta C, column-major
inline int cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n, int64_t k,
        const float * alpha, const void * a, cudaDataType_t type_a, int64_t lda, int64_t stride_a, const void * b, cudaDataType_t type_b, int64_t ldb, int64_t stride_b,
        const float * beta, void * c, cudaDataType_t type_c, int64_t ldc, int64_t stride_c, int64_t batch, cublasComputeType_t compute, int) {
    ++cublas_calls;
    auto at = [](const void * x, cudaDataType_t type, int64_t i) { return type == CUDA_R_32F ? ((const float *) x)[i] : ggml_bf16_to_fp32(((const nv_bfloat16 *) x)[i].b); };
    // what cuBLAS refuses
    if (m < 1 || n < 1 || k < 1 || batch < 1 || lda < (op_a == CUBLAS_OP_N ? m : k) || ldb < (op_b == CUBLAS_OP_N ? k : n) || ldc < m || type_a != type_b || type_c != CUDA_R_32F ||
        (type_a == CUDA_R_32F) != (compute == CUBLAS_COMPUTE_32F_PEDANTIC)) {
        return 1;
    }
    for (int64_t q = 0; q < batch; ++q) {
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
                double sum = 0;
                for (int64_t l = 0; l < k; ++l) {
                    sum += (double) at(a, type_a, q*stride_a + (op_a == CUBLAS_OP_N ? i + l*lda : l + i*lda))*at(b, type_b, q*stride_b + (op_b == CUBLAS_OP_N ? l + j*ldb : j + l*ldb));
                }
                float & to = ((float *) c)[q*stride_c + i + j*ldc];
                to = (float) (*alpha*sum + (*beta == 0 ? 0 : *beta*to));
            }
        }
    }
    return 0;
}
