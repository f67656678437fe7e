// Matrix products in float32, for products.h: W as it dequantizes, float32 sums.
#pragma once

#include "matrix.h"

namespace exact {

// floats of work memory that each thread needs, aligned to a cache line
extern const size_t WORK;

// y[m,t] = sum_k W[k,m] x[k,t] for m in [m0, m1); the parts of m that a thread may take
void forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, float * work);
int64_t forward_part(int64_t n_columns);

// y[k,t] = sum_m W[k,m] g[m,t] for k in [k0, k1), of one part; g is read every g_stride bytes
void backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, size_t g_stride, float * work);
int64_t backward_part(int64_t n_k, int64_t block);

} // namespace exact
