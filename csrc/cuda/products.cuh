// Matrix products with frozen weights for ggml's CUDA backend, in the precisions of
// csrc/kernels/products.h:
//
//   GGML_PREC_EXACT  weights as they dequantize, activations and sums in float32, no TF32
//   GGML_PREC_FIXED  both operands in bfloat16, sums in float32: the matrix units. On GPUs without
//                    bfloat16, before Ampere, as GGML_PREC_EXACT
//
// Weights are dequantized in panels of rows, small enough to stay in the cache between
// that and cuBLAS, which multiplies them. Called from the patched ggml-cuda.cu.
#pragma once

#include "ggml.h"

struct ggml_backend_cuda_context;

// Is the node computed here? MUL_MAT and MUL_MAT_ID of these precisions, and every OUT_PROD
// (exact unless it is GGML_PREC_FIXED), with the shapes that csrc/kernels/products.h has.
bool llsteer_cuda_product_is(const ggml_tensor * node);

// Can it be? W of any type that ggml-cuda dequantizes, in whole rows; x or g and y F32, y's columns
// contiguous. Other strides are free.
bool llsteer_cuda_product_supports(const ggml_tensor * node);

void llsteer_cuda_product_compute(ggml_backend_cuda_context & ctx, ggml_tensor * node);
