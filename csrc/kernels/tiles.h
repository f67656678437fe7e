// Matrix products in bfloat16, for products.h, on processors with AMX, or with AVX-512's instructions for it.
//
// Both operands are rounded to bfloat16, an element by at most 2^-8 of itself, and multiplied in
// tiles of 16 rows; products are exact, their sums in float32. Numbers below 2^-126 count as 0.
#pragma once

#include "matrix.h"

namespace tiles {

// Has this variant such tiles, and lets the system this process use them?
bool available();

// Are products in 16 bits made in tiles? True from the start if tiles are available and faster than fixed point. Tests set it.
bool & in_use();

// Columns of x (or g), side by side in tiles as forward (backward) multiplies them.
constexpr int64_t COLUMNS = 16;
size_t bundle_bytes(int64_t length); // of columns of so many elements

// Rounds elements [k, k + SPAN), as far as there are length, of at most COLUMNS columns into their
// bundle; an element lies stride bytes behind the one before.
constexpr int64_t SPAN = 512;
void round_forward(const columns & x, size_t stride, int64_t k, int64_t length, char * bundle);
void round_backward(const columns & x, size_t stride, int64_t k, int64_t length, char * bundle);

// bytes of work memory that each thread needs, aligned to a cache line
size_t work(int64_t n_columns);

// y[m,t] = sum_k W[k,m] x[k,t] for m in [m0, m1), of a part. The columns are in bundles, one behind
// the other from x on; cols.x is not used.
void forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, const char * x, char * work);

// y[k,t] = sum_m W[k,m] g[m,t] for k in [k0, k1), of a part. The columns are in bundles, as above.
void backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, const char * g, char * work);

// The most rows (elements of y) that a part has for so many columns. Parts begin at multiples of it.
int64_t part(int64_t n_rows, int64_t n_columns, int n_threads);

} // namespace tiles
