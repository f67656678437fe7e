// Matrix products with frozen weights for ggml's CPU backend: weights of any
// type, in one of two precisions. ggml's own kernels round the activations to 8 bits for
// quantized weights, and in the backward pass dequantize each row of weights
// anew for every token.
//
//   GGML_PREC_EXACT  weights as they dequantize, activations and sums in float32 (exact.h)
//   GGML_PREC_FIXED  both operands in 16 bits: in bfloat16 where the processor is fast at it
//                    (tiles.h), else in fixed point, which is finer (fixed.h)
//
// This is compiled into every variant of the backend, with its processor's
// flags, and called from the patched ggml-cpu.c. It takes over
//
//   MUL_MAT, MUL_MAT_ID  of these precisions: y[m,t] = sum_k W[k,m] x[k,t]
//   OUT_PROD:                                 y[k,t] = sum_m W[k,m] g[t,m]
//   MUL_MAT  of no precision with quantized weights and many columns, as if of
//            GGML_PREC_FIXED, where the processor has AVX-512: prompts
//
// with W = src[0], x or g = src[1], and the broadcasting of W over dimensions 2
// and 3 that MUL_MAT has. OUT_PROD is exact unless its precision is GGML_PREC_FIXED.
// OUT_PROD with src[2] is the backward pass of MUL_MAT_ID: src[2] are the expert
// ids, g has m first, as the gradient there.
//
// An element of y depends on its row or column of W and its column of x or g
// alone: in a precision, the bits are the same for any number of threads, and for
// a token alone as for a token among others. NaN and infinity are not skipped.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// Is the node computed here? W must be of a type with a to_float, x, g and y F32;
// W, x and y contiguous in dimension 0. Other strides are free, those of g all.
bool llsteer_product_takes(const struct ggml_tensor * node);

// Bytes of work buffer that such a node needs, for all threads together.
size_t llsteer_product_work_size(const struct ggml_tensor * node, int n_threads);

// One thread's part of such a node.
void llsteer_product_compute(const struct ggml_compute_params * params, struct ggml_tensor * node);

#ifdef __cplusplus
}
#endif
