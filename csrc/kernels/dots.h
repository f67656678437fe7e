// Dot products of a row of quantized weights with a column that ggml rounded to 8 bits: what decoding spends its time on.
#pragma once

#include "ggml-cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// What computes the same as ggml's function for a type: the same integers, their sums in float32 in another order. It is
// ggml's for most types (Q8_0 among them: ggml has another function for several columns, with the same bits), and on processors without AVX-512 VNNI.
ggml_vec_dot_t llsteer_vec_dot(enum ggml_type type, ggml_vec_dot_t of_ggml);

#ifdef __cplusplus
}
#endif
