#include "products.cuh"

#include "common.cuh"
#include "convert.cuh"
#include "launch.cuh"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

// of dequantized weights at a time: a part of the L2 cache of the GPUs that have matrix units
constexpr size_t PANEL_BYTES = 16 << 20;
// some of ggml's dequantizers write whole superblocks
constexpr int64_t SUPERBLOCK = 256;
// of cuBLAS, as much as it takes on an H100. Its own is not for CUDA graphs, and another size might choose other kernels
constexpr size_t WORKSPACE_BYTES = 32 << 20;
constexpr int THREADS = 256;

bool is_backward(const ggml_tensor * node) { return node->op == GGML_OP_OUT_PROD; }
bool is_fixed(const ggml_tensor * node) { return node->op_params[0] == GGML_PREC_FIXED; }

template <typename T> constexpr ggml_type type_of() { return std::is_same<T, float>::value ? GGML_TYPE_F32 : GGML_TYPE_BF16; }
template <typename T> constexpr cudaDataType_t cuda_type_of() { return std::is_same<T, float>::value ? CUDA_R_32F : CUDA_R_16BF; }

template <typename T> to_t_cuda_t<T> dequantizer(ggml_type type) {
    if constexpr (std::is_same<T, float>::value) {
        return ggml_get_to_fp32_cuda(type);
    } else {
        return ggml_get_to_bf16_cuda(type);
    }
}

// ---- kernels ------------------------------------------------------------------------

// All columns, one after the other: to[k, c, i2, i3] = x[k*s_sum + c*s_column + i2*s2 + i3*s3].
template <typename T>
__global__ void pack(const float * x, T * to, int64_t n, int64_t length, int64_t n1, int64_t n2, int64_t s_sum, int64_t s_column, int64_t s2, int64_t s3) {
    const int64_t i = (int64_t) blockIdx.x*blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    const int64_t column = i/length;
    to[i] = ggml_cuda_cast<T>(x[i % length*s_sum + column % n1*s_column + column/n1 % n2*s2 + column/n1/n2*s3]);
}

// The columns that begin at the numbers in at.
template <typename T>
__global__ void gather(const float * x, T * to, int64_t n, int64_t length, const int64_t * at) {
    const int64_t i = (int64_t) blockIdx.x*blockDim.x + threadIdx.x;
    if (i < n) {
        to[i] = ggml_cuda_cast<T>(x[at[i/length] + i % length]);
    }
}

__global__ void scatter(const float * from, float * y, int64_t n, int64_t length, const int64_t * at) {
    const int64_t i = (int64_t) blockIdx.x*blockDim.x + threadIdx.x;
    if (i < n) {
        y[at[i/length] + i % length] = from[i];
    }
}

int64_t blocks(int64_t n) { return (n + THREADS - 1)/THREADS; }

// ---- products of matrices -----------------------------------------------------------

// Matrices as cuBLAS has them: column-major with ld elements from column to column, as a ggml
// tensor is with its first index for the row; and stride from matrix to matrix.
template <typename T> struct matrices {
    T * data;
    int64_t ld, stride;
    cublasOperation_t op; // how it is multiplied
};

// What is multiplied: forward y = Wᵀ x, W being length x rows; backward y = W g.
struct shape {
    bool backward;
    int64_t length, rows, columns;
};

// y (+)= product, for n matrices
template <typename T>
void multiply(ggml_backend_cuda_context & ctx, const shape & s, int64_t n, matrices<const T> w, matrices<const T> x, matrices<float> y, bool add) {
    const float alpha = 1.0f, beta = add ? 1.0f : 0.0f;
    const int64_t m = s.backward ? s.length : s.rows, k = s.backward ? s.rows : s.length;
    // ggml's handle allows TF32, which PEDANTIC does not
    const cublasComputeType_t compute = std::is_same<T, float>::value ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    CUBLAS_CHECK(cublasGemmStridedBatchedEx(ctx.cublas_handle(), s.backward ? CUBLAS_OP_N : CUBLAS_OP_T, x.op, m, s.columns, k,
        &alpha, w.data, cuda_type_of<T>(), w.ld, w.stride, x.data, cuda_type_of<T>(), x.ld, x.stride,
        &beta,  y.data, CUDA_R_32F, y.ld, y.stride, n, compute, CUBLAS_GEMM_DEFAULT));
}

// The same for n2 matrices W, each of which r2 neighbouring matrices of x and y share.
template <typename T>
void multiply_shared(ggml_backend_cuda_context & ctx, const shape & s, int64_t n2, int64_t r2, matrices<const T> w, matrices<const T> x, matrices<float> y, bool add) {
    const bool by_w = n2 >= r2; // fewer calls
    for (int64_t i = 0; i < (by_w ? r2 : n2); ++i) {
        matrices<const T> wi = w, xi = x;
        matrices<float> yi = y;
        const int64_t first = by_w ? i : i*r2, step = by_w ? r2 : 1;
        wi.data += by_w ? 0 : i*w.stride;
        xi.data += first*x.stride;
        yi.data += first*y.stride;
        wi.stride = by_w ? w.stride : 0;
        xi.stride *= step;
        yi.stride *= step;
        multiply(ctx, s, by_w ? n2 : r2, wi, xi, yi, add);
    }
}

// Calls use(panel, ld, first row, number of rows) for panels of a matrix of W, dequantized.
template <typename T, typename F>
void for_panels(ggml_backend_cuda_context & ctx, const ggml_tensor * w, const char * data, F use) {
    if (w->type == type_of<T>()) {
        use((const T *) data, (int64_t) (w->nb[1]/sizeof(T)), (int64_t) 0, w->ne[1]);
        return;
    }
    const int64_t n = std::max<int64_t>(1, std::min<int64_t>(w->ne[1], PANEL_BYTES/(w->ne[0]*sizeof(T))));
    ggml_cuda_pool_alloc<T> panel(ctx.pool(), n*w->ne[0] + SUPERBLOCK);
    for (int64_t first = 0; first < w->ne[1]; first += n) {
        const int64_t rows = std::min(n, w->ne[1] - first);
        dequantizer<T>(w->type)(data + first*w->nb[1], panel.get(), rows*w->ne[0], ctx.stream());
        CUDA_CHECK(cudaGetLastError());
        use((const T *) panel.get(), w->ne[0], first, rows);
    }
}

// A panel's part of the columns and of the result: forward its rows of y, backward its terms of the sums.
template <typename T>
void multiply_panel(ggml_backend_cuda_context & ctx, shape s, int64_t n2, int64_t r2, matrices<const T> w, matrices<const T> x, matrices<float> y, int64_t first, int64_t rows) {
    s.rows = rows;
    if (s.backward) {
        x.data += first*(x.op == CUBLAS_OP_N ? 1 : x.ld);
    } else {
        y.data += first;
    }
    multiply_shared(ctx, s, n2, r2, w, x, y, s.backward && first > 0);
}

// ---- nodes --------------------------------------------------------------------------

template <typename T>
void compute(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    const ggml_tensor * w = node->src[0];
    const ggml_tensor * x = node->src[1];
    const bool backward = is_backward(node);
    const int64_t r2 = x->ne[2]/w->ne[2], r3 = x->ne[3]/w->ne[3];
    // backward the columns are along the second index
    const int along = backward ? 1 : 0;
    const int64_t length = x->ne[along];
    const shape s = { backward, w->ne[0], w->ne[1], x->ne[1 - along] };
    const int64_t s_sum = x->nb[along]/sizeof(float), s_column = x->nb[1 - along]/sizeof(float);

    ggml_cuda_pool_alloc<T> packed(ctx.pool());
    matrices<const T> columns = {};
    int64_t s3 = x->nb[3]/sizeof(float);
    bool in_place = false;
    if constexpr (std::is_same<T, float>::value) {
        columns.data = (const float *) x->data;
        columns.stride = x->nb[2]/sizeof(float);
        if (s_sum == 1 && (s.columns == 1 || s_column >= length)) {
            in_place = true;
            columns.op = CUBLAS_OP_N;
            columns.ld = std::max(s_column, length);
        } else if (s_column == 1 && (length == 1 || s_sum >= s.columns)) {
            in_place = true;
            columns.op = CUBLAS_OP_T;
            columns.ld = std::max(s_sum, s.columns);
        }
    }
    if (!in_place) {
        const int64_t n = ggml_nelements(x);
        packed.alloc(n);
        auto kernel = pack<T>;
        LAUNCH(kernel, blocks(n), THREADS, ctx.stream(), (const float *) x->data, packed.get(), n, length, s.columns, x->ne[2], s_sum, s_column, (int64_t) (x->nb[2]/sizeof(float)), s3);
        CUDA_CHECK(cudaGetLastError());
        columns = { packed.get(), length, length*s.columns, CUBLAS_OP_N };
        s3 = length*s.columns*x->ne[2];
    }
    const matrices<float> y = { (float *) node->data, std::max<int64_t>(node->nb[1]/sizeof(float), node->ne[0]), (int64_t) (node->nb[2]/sizeof(float)), CUBLAS_OP_N };

    // weights that need no dequantizing are all there at once
    const int64_t n2 = w->type == type_of<T>() ? w->ne[2] : 1;
    for (int64_t w3 = 0; w3 < w->ne[3]; ++w3) {
        for (int64_t w2 = 0; w2 < w->ne[2]; w2 += n2) {
            for_panels<T>(ctx, w, (const char *) w->data + w2*w->nb[2] + w3*w->nb[3], [&](const T * panel, int64_t ld, int64_t first, int64_t rows) {
                for (int64_t i3 = w3*r3; i3 < (w3 + 1)*r3; ++i3) {
                    matrices<const T> xi = columns;
                    matrices<float> yi = y;
                    xi.data += w2*r2*columns.stride + i3*s3;
                    yi.data += w2*r2*y.stride + i3*(node->nb[3]/sizeof(float));
                    multiply_panel<T>(ctx, s, n2, r2, { panel, std::max(ld, w->ne[0]), (int64_t) (w->nb[2]/sizeof(T)), CUBLAS_OP_N }, xi, yi, first, rows);
                }
            });
        }
    }
}

// Experts: a token's columns, sorted by the expert that each uses, are multiplied expert by expert.
template <typename T>
void compute_id(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    const ggml_tensor * w   = node->src[0];
    const ggml_tensor * x   = node->src[1];
    const ggml_tensor * ids = node->src[2];
    const bool backward = is_backward(node);
    const int64_t length = x->ne[0], n_columns = ids->ne[0]*ids->ne[1];
    cudaStream_t stream = ctx.stream();

    std::vector<char> chosen(ggml_nbytes(ids));
    CUDA_CHECK(cudaMemcpyAsync(chosen.data(), ids->data, chosen.size(), cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    auto expert = [&](int64_t slot, int64_t token) { return *(const int32_t *) (chosen.data() + slot*ids->nb[0] + token*ids->nb[1]); };

    // where each column begins in x and in y
    std::vector<int64_t> at(2*n_columns), n_of(w->ne[2] + 1);
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        for (int64_t slot = 0; slot < ids->ne[0]; ++slot) {
            const int32_t e = expert(slot, token);
            GGML_ASSERT(e >= 0 && e < w->ne[2]);
            ++n_of[e + 1];
        }
    }
    std::vector<int64_t> next(w->ne[2]);
    for (int64_t e = 0; e < w->ne[2]; ++e) {
        n_of[e + 1] += n_of[e]; // now the columns of the experts before e + 1
        next[e] = n_of[e];
    }
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        for (int64_t slot = 0; slot < ids->ne[0]; ++slot) {
            const int64_t i = next[expert(slot, token)]++;
            at[i]             = (slot % x->ne[1]*x->nb[1] + token*x->nb[2])/sizeof(float);
            at[n_columns + i] = (slot*node->nb[1] + token*node->nb[2])/sizeof(float);
        }
    }
    ggml_cuda_pool_alloc<int64_t> at_device(ctx.pool(), at.size());
    CUDA_CHECK(cudaMemcpyAsync(at_device.get(), at.data(), at.size()*sizeof(int64_t), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream)); // at goes with this function

    ggml_cuda_pool_alloc<T> columns(ctx.pool(), n_columns*length);
    ggml_cuda_pool_alloc<float> results(ctx.pool(), n_columns*node->ne[0]);
    auto kernel = gather<T>;
    LAUNCH(kernel, blocks(n_columns*length), THREADS, stream, (const float *) x->data, columns.get(), n_columns*length, length, at_device.get());
    CUDA_CHECK(cudaGetLastError());
    for (int64_t e = 0; e < w->ne[2]; ++e) {
        const int64_t n = n_of[e + 1] - n_of[e];
        if (n == 0) {
            continue;
        }
        const shape s = { backward, w->ne[0], w->ne[1], n };
        const matrices<const T> xe = { columns.get() + n_of[e]*length, length, 0, CUBLAS_OP_N };
        const matrices<float> ye = { results.get() + n_of[e]*node->ne[0], node->ne[0], 0, CUBLAS_OP_N };
        for_panels<T>(ctx, w, (const char *) w->data + e*w->nb[2], [&](const T * panel, int64_t ld, int64_t first, int64_t rows) {
            multiply_panel<T>(ctx, s, 1, 1, { panel, std::max(ld, w->ne[0]), 0, CUBLAS_OP_N }, xe, ye, first, rows);
        });
    }
    LAUNCH(scatter, blocks(n_columns*node->ne[0]), THREADS, stream, results.get(), (float *) node->data, n_columns*node->ne[0], node->ne[0], at_device.get() + n_columns);
    CUDA_CHECK(cudaGetLastError());
}

} // namespace

bool llsteer_cuda_product_is(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_OUT_PROD:
            return true;
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return node->op_params[0] == GGML_PREC_EXACT || node->op_params[0] == GGML_PREC_FIXED;
        default:
            return false;
    }
}

bool llsteer_cuda_product_supports(const ggml_tensor * node) {
    const ggml_tensor * w = node->src[0];
    const ggml_tensor * x = node->src[1];
    if (x->type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32 || node->nb[0] != sizeof(float) || w->nb[0] != ggml_type_size(w->type)) {
        return false;
    }
    const bool converted = w->type != (is_fixed(node) ? GGML_TYPE_BF16 : GGML_TYPE_F32);
    if (converted && (w->nb[1] != ggml_row_size(w->type, w->ne[0]) || !(is_fixed(node) ? dequantizer<nv_bfloat16>(w->type) != nullptr : dequantizer<float>(w->type) != nullptr))) {
        return false;
    }
    if (!converted && w->ne[1] > 1 && w->nb[1] < w->ne[0]*w->nb[0]) {
        return false; // permuted: its columns would lie within each other
    }
    if (node->src[2]) {
        return node->src[2]->type == GGML_TYPE_I32 && w->ne[3] == 1 && x->nb[0] == sizeof(float);
    }
    return x->ne[2] % w->ne[2] == 0 && x->ne[3] % w->ne[3] == 0;
}

void llsteer_cuda_product_compute(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    // older GPUs multiply no bfloat16
    const bool in_bfloat16 = is_fixed(node) && ggml_cuda_info().devices[ctx.device].cc >= GGML_CUDA_CC_AMPERE;
    ggml_cuda_pool_alloc<char> workspace(ctx.pool(), WORKSPACE_BYTES);
    CUBLAS_CHECK(cublasSetStream(ctx.cublas_handle(), ctx.stream())); // takes the workspace away
    CUBLAS_CHECK(cublasSetWorkspace(ctx.cublas_handle(), workspace.get(), WORKSPACE_BYTES));
    if (node->src[2]) {
        in_bfloat16 ? compute_id<nv_bfloat16>(ctx, node) : compute_id<float>(ctx, node);
    } else {
        in_bfloat16 ? compute<nv_bfloat16>(ctx, node) : compute<float>(ctx, node);
    }
}
