#include "vocab-softmax.cuh"

#include "common.cuh"
#include "launch.cuh"

#include "ggml-backend-impl.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// A row is computed by a block of threads for each chunk of it: there are fewer rows than a GPU
// has processors. Float32 for the exponentials, double for sums and logarithms, as on the CPU.

namespace {

constexpr int ROW_THREADS = 256;
constexpr int32_t CHUNK = 32*ROW_THREADS;

struct chunked_row { // and which of the items are its: [first, end)
    int32_t row, first, end;
};

// what a block found in its chunk
struct chunk_part {
    double sum;    // of the exponentials without the row's largest
    float largest; // of the chunk's logits; backward, of the exponentials of the row's targets
    int32_t top;   // where that is
};

int64_t n_chunks(int32_t n_vocab) { return (n_vocab + CHUNK - 1)/CHUNK; }

// ---- kernels ------------------------------------------------------------------------

// what of the row this block computes: [begin, end)
struct chunk {
    chunked_row row;
    int32_t index, begin, end;

    __device__ chunk(const chunked_row * rows, int32_t n_chunks, int32_t n_vocab) :
        row(rows[blockIdx.x/n_chunks]), index(blockIdx.x % n_chunks), begin(index*CHUNK), end(n_vocab - begin < CHUNK ? n_vocab : begin + CHUNK) {}
};

// over the threads of a block, in a fixed order
template <typename T, typename F> __device__ T reduce(T value, F combine) {
    __shared__ T part[ROW_THREADS];
    const int t = threadIdx.x;
    part[t] = value;
    __syncthreads();
    for (int n = ROW_THREADS/2; n > 0; n /= 2) {
        if (t < n) {
            part[t] = combine(part[t], part[t + n]);
        }
        __syncthreads();
    }
    value = part[0];
    __syncthreads(); // before another call writes there
    return value;
}

// of equal ones the first, and any before NaN
__device__ chunk_part larger(chunk_part a, chunk_part b) {
    return b.largest > a.largest || (b.largest == a.largest && b.top < a.top) ? b : a;
}

__device__ float exponential(float z, float coldness, float largest) {
    const float x = coldness*(z - largest);
    return x < -87.0f ? 0.0f : expf(x); // NaN stays
}

__global__ void find_largest(const float * logits, chunk_part * parts, const chunked_row * rows, int32_t n_chunks, int32_t n_vocab) {
    const chunk c(rows, n_chunks, n_vocab);
    const float * z = logits + (int64_t) c.row.row*n_vocab;
    chunk_part own = { 0, -INFINITY, n_vocab };
    for (int32_t i = c.begin + threadIdx.x; i < c.end; i += ROW_THREADS) {
        own = larger(own, { 0, z[i], i });
    }
    own = reduce(own, [](chunk_part a, chunk_part b) { return larger(a, b); });
    if (threadIdx.x == 0) {
        parts[c.row.row*n_chunks + c.index] = own;
    }
}

// where the row's largest logit is
__device__ int32_t top_of(const chunk_part * parts, int32_t n_chunks, int32_t n_vocab) {
    chunk_part all = parts[0];
    for (int32_t i = 1; i < n_chunks; ++i) {
        all = larger(all, parts[i]);
    }
    return all.top < n_vocab ? all.top : 0; // all are NaN
}

__device__ double sum_of(const chunk_part * parts, int32_t n_chunks) {
    double sum = 0;
    for (int32_t i = 0; i < n_chunks; ++i) {
        sum += parts[i].sum;
    }
    return sum;
}

// The exponentials, and their sums without the largest.
__global__ void exponentials(const float * logits, float * exps, chunk_part * parts, const chunked_row * rows, int32_t n_chunks, int32_t n_vocab, float coldness) {
    const chunk c(rows, n_chunks, n_vocab);
    const float * z = logits + (int64_t) c.row.row*n_vocab;
    parts += (int64_t) c.row.row*n_chunks;
    const int32_t top = top_of(parts, n_chunks, n_vocab);
    double others = 0;
    for (int32_t i = c.begin + threadIdx.x; i < c.end; i += ROW_THREADS) {
        const float e = exponential(z[i], coldness, z[top]);
        if (exps) {
            exps[(int64_t) c.row.row*n_vocab + i] = e;
        }
        others += i == top ? 0 : e;
    }
    others = reduce(others, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) {
        parts[c.index].sum = others;
    }
}

__global__ void probabilities(const float * logits, const chunk_part * parts, int32_t n_chunks, int32_t n_vocab, double coldness, softmax_target * targets, int32_t n) {
    const int32_t i = blockIdx.x*blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    softmax_target & t = targets[i];
    const float * z = logits + (int64_t) t.row*n_vocab;
    parts += (int64_t) t.row*n_chunks;
    const int32_t top = top_of(parts, n_chunks, n_vocab);
    // the largest apart, so that 1 - p is accurate when p is near 1
    const double others = sum_of(parts, n_chunks);
    const double sum = others + exponential(z[top], (float) coldness, z[top]);
    t.log_p   = coldness*((double) z[t.token] - z[top]) - log(sum);
    t.log_1mp = t.token == top ? log(others) - log(sum) : log1p(-exponential(z[t.token], (float) coldness, z[top])/sum);
}

// The sums of the exponentials without that of the likeliest of the row's targets, so that 1 - p is accurate when its p is near 1.
__global__ void add_up(const float * exps, chunk_part * parts, const chunked_row * rows, int32_t n_chunks, int32_t n_vocab, const softmax_weight * weights) {
    const chunk c(rows, n_chunks, n_vocab);
    const float * e = exps + (int64_t) c.row.row*n_vocab;
    int32_t top = weights[c.row.first].token;
    for (int32_t i = c.row.first; i < c.row.end; ++i) {
        top = e[weights[i].token] > e[top] ? weights[i].token : top;
    }
    double others = 0;
    for (int32_t i = c.begin + threadIdx.x; i < c.end; i += ROW_THREADS) {
        others += i == top ? 0 : e[i];
    }
    others = reduce(others, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) {
        parts[c.row.row*n_chunks + c.index] = { others, e[top], top };
    }
}

__device__ double total_of(const chunked_row & row, const softmax_weight * weights) {
    double total = 0;
    for (int32_t i = row.first; i < row.end; ++i) {
        total += weights[i].weight;
    }
    return total;
}

// Of the targets' logits, in a block for each row.
__global__ void target_gradients(const float * exps, const chunk_part * parts, const chunked_row * rows, int32_t n_chunks, int32_t n_vocab, double coldness, const softmax_weight * weights, float * gradients) {
    const chunked_row row = rows[blockIdx.x];
    const float * e = exps + (int64_t) row.row*n_vocab;
    parts += (int64_t) row.row*n_chunks;
    const double others = sum_of(parts, n_chunks), sum = others + parts[0].largest;
    const double total = total_of(row, weights);
    for (int32_t i = row.first + threadIdx.x; i < row.end; i += ROW_THREADS) {
        const int32_t token = weights[i].token;
        double own = 0; // of all targets of this token
        for (int32_t j = row.first; j < row.end; ++j) {
            own += weights[j].token == token ? weights[j].weight : 0;
        }
        const double p = e[token]/sum, complement = (token == parts[0].top ? others : sum - e[token])/sum;
        gradients[i] = (float) (coldness*(own*complement - (total - own)*p));
    }
}

__global__ void gradients(float * exps, const chunk_part * parts, const chunked_row * rows, int32_t n_chunks, int32_t n_vocab, double coldness, const softmax_weight * weights, const float * of_targets) {
    const chunk c(rows, n_chunks, n_vocab);
    float * e = exps + (int64_t) c.row.row*n_vocab;
    parts += (int64_t) c.row.row*n_chunks;
    const float factor = (float) (-total_of(c.row, weights)*coldness/(sum_of(parts, n_chunks) + parts[0].largest));
    for (int32_t i = c.begin + threadIdx.x; i < c.end; i += ROW_THREADS) {
        e[i] *= factor;
    }
    __syncthreads();
    for (int32_t i = c.row.first + threadIdx.x; i < c.row.end; i += ROW_THREADS) {
        if (weights[i].token >= c.begin && weights[i].token < c.end) {
            e[weights[i].token] = of_targets[i]; // the same for all targets of a token
        }
    }
}

// ---- calls --------------------------------------------------------------------------

// Targets or weights by row, and what the kernels need of them, on the device.
template <typename T> struct by_row {
    ggml_backend_cuda_context & ctx;
    std::vector<size_t> order;
    std::vector<T> items;
    std::vector<chunked_row> rows;
    int32_t chunks;
    ggml_cuda_pool_alloc<T> items_device;
    ggml_cuda_pool_alloc<chunked_row> rows_device;
    ggml_cuda_pool_alloc<chunk_part> parts;

    by_row(ggml_backend_cuda_context & ctx, const softmax_rows & softmax, const T * given, size_t n) :
        ctx(ctx), order(n), chunks(n_chunks(softmax.n_vocab)), items_device(ctx.pool(), n), rows_device(ctx.pool(), n), parts(ctx.pool()) {
        for (size_t i = 0; i < n; ++i) {
            order[i] = i;
        }
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return given[a].row < given[b].row; });
        for (size_t i = 0; i < n; ++i) {
            items.push_back(given[order[i]]);
            if (i == 0 || items[i].row != items[i - 1].row) {
                rows.push_back({ items[i].row, (int32_t) i, 0 });
            }
            rows.back().end = i + 1;
        }
        parts.alloc((size_t) (rows.back().row + 1)*chunks);
        CUDA_CHECK(cudaMemcpyAsync(items_device.get(), items.data(), n*sizeof(T), cudaMemcpyHostToDevice, ctx.stream()));
        CUDA_CHECK(cudaMemcpyAsync(rows_device.get(), rows.data(), rows.size()*sizeof(chunked_row), cudaMemcpyHostToDevice, ctx.stream()));
    }
    int64_t blocks() const { return (int64_t) rows.size()*chunks; }
};

ggml_backend_cuda_context & context_of(ggml_backend_t backend) {
    auto & ctx = *(ggml_backend_cuda_context *) backend->context;
    ggml_cuda_set_device(ctx.device);
    return ctx;
}

void forward(ggml_backend_t backend, const softmax_rows & softmax, const float * logits, float * exps, softmax_target * targets, size_t n) {
    if (n == 0) {
        return;
    }
    ggml_backend_cuda_context & ctx = context_of(backend);
    by_row<softmax_target> all(ctx, softmax, targets, n);
    cudaStream_t stream = ctx.stream();
    LAUNCH(find_largest, all.blocks(), ROW_THREADS, stream, logits, all.parts.get(), all.rows_device.get(), all.chunks, softmax.n_vocab);
    CUDA_CHECK(cudaGetLastError());
    LAUNCH(exponentials, all.blocks(), ROW_THREADS, stream, logits, exps, all.parts.get(), all.rows_device.get(), all.chunks, softmax.n_vocab, (float) softmax.coldness);
    CUDA_CHECK(cudaGetLastError());
    LAUNCH(probabilities, (n + ROW_THREADS - 1)/ROW_THREADS, ROW_THREADS, stream, logits, all.parts.get(), all.chunks, softmax.n_vocab, softmax.coldness, all.items_device.get(), (int32_t) n);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaMemcpyAsync(all.items.data(), all.items_device.get(), n*sizeof(softmax_target), cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    for (size_t i = 0; i < n; ++i) {
        targets[all.order[i]] = all.items[i];
    }
}

void backward(ggml_backend_t backend, const softmax_rows & softmax, float * exps, const softmax_weight * weights, size_t n) {
    if (n == 0) {
        return;
    }
    ggml_backend_cuda_context & ctx = context_of(backend);
    by_row<softmax_weight> all(ctx, softmax, weights, n);
    cudaStream_t stream = ctx.stream();
    ggml_cuda_pool_alloc<float> of_targets(ctx.pool(), n);
    LAUNCH(add_up, all.blocks(), ROW_THREADS, stream, exps, all.parts.get(), all.rows_device.get(), all.chunks, softmax.n_vocab, all.items_device.get());
    CUDA_CHECK(cudaGetLastError());
    LAUNCH(target_gradients, all.rows.size(), ROW_THREADS, stream, exps, all.parts.get(), all.rows_device.get(), all.chunks, softmax.n_vocab, softmax.coldness, all.items_device.get(), of_targets.get());
    CUDA_CHECK(cudaGetLastError());
    LAUNCH(gradients, all.blocks(), ROW_THREADS, stream, exps, all.parts.get(), all.rows_device.get(), all.chunks, softmax.n_vocab, softmax.coldness, all.items_device.get(), of_targets.get());
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

} // namespace

const softmax_on_device * llsteer_cuda_softmax() {
    static const softmax_on_device softmax = { forward, backward };
    return &softmax;
}
