// ggml's dequantizers in the form of ggml-cuda's.
#pragma once

#include "common.cuh"

#include <vector>

template <typename T> using to_t_cuda_t = void (*)(const void * x, T * y, int64_t k, cudaStream_t stream);

template <typename T> T ggml_cuda_cast(float x);
template <> inline float ggml_cuda_cast<float>(float x) { return x; }
template <> inline nv_bfloat16 ggml_cuda_cast<nv_bfloat16>(float x) { return { ggml_fp32_to_bf16(x) }; }

template <ggml_type type> void host_to_fp32(const void * x, float * y, int64_t k, cudaStream_t) { ggml_get_type_traits(type)->to_float(x, y, k); }
template <ggml_type type> void host_to_bf16(const void * x, nv_bfloat16 * y, int64_t k, cudaStream_t) {
    std::vector<float> values(k);
    if (type == GGML_TYPE_F32) {
        memcpy(values.data(), x, k*sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(x, values.data(), k);
    }
    for (int64_t i = 0; i < k; ++i) {
        y[i] = ggml_cuda_cast<nv_bfloat16>(values[i]);
    }
}

inline to_t_cuda_t<float> ggml_get_to_fp32_cuda(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:  return host_to_fp32<GGML_TYPE_F16>;
        case GGML_TYPE_BF16: return host_to_fp32<GGML_TYPE_BF16>;
        case GGML_TYPE_Q8_0: return host_to_fp32<GGML_TYPE_Q8_0>;
        case GGML_TYPE_Q4_K: return host_to_fp32<GGML_TYPE_Q4_K>;
        default: return nullptr;
    }
}
inline to_t_cuda_t<nv_bfloat16> ggml_get_to_bf16_cuda(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:  return host_to_bf16<GGML_TYPE_F32>;
        case GGML_TYPE_F16:  return host_to_bf16<GGML_TYPE_F16>;
        case GGML_TYPE_Q8_0: return host_to_bf16<GGML_TYPE_Q8_0>;
        case GGML_TYPE_Q4_K: return host_to_bf16<GGML_TYPE_Q4_K>;
        default: return nullptr;
    }
}
