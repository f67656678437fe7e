// Matrix products with 16-bit operands, for products.h.
//
// Both operands are rounded to fixed point: each run of SEGMENT elements along the sum, of
// a column of x or g and of a row of W forward or a column of W backward, to integers up to
// MOST times a scale of its own. Products of two segments are summed in int32, exactly, and
// these sums, times both scales, in float32. Processors multiply such integers twice as
// fast as float32, also those that have no instructions for bfloat16.
//
// An element errs by at most half a scale: a segment, in its norm, by 8e-4 of that norm at
// worst (one element that towers above 127 others) and by 2e-4 where they are normally
// distributed; bfloat16 by 1.7e-3.
#pragma once

#include "lanes.h"
#include "matrix.h"

namespace fixed {

constexpr int SEGMENT = 128;
constexpr int MOST = 4095; // SEGMENT*MOST*MOST < 2^31

// A segment of a vector. Elements lanes::W apart make a pair: so they come out of the
// processor's registers. The scale is NaN if not all elements are finite.
struct alignas(LINE) segment {
    int32_t pairs[SEGMENT/2]; // each two int16
    float scale;
};

// A segment of W vectors, side by side.
struct bundle {
    lanes::ivec pairs[SEGMENT/2];
    lanes::vec scales;
};

// Rounds n numbers, one every stride bytes, to segments that lie distance apart; the last
// is filled up with zeros.
void round(const char * x, size_t stride, int64_t n, segment * to, int64_t distance);

// Rounds elements [k, k + SEGMENT), as far as there are n, of at most lanes::W columns of x.
void round(const columns & x, int64_t k, int64_t n, bundle & to);

// bytes of work memory that each thread needs, aligned to a cache line
size_t work(int64_t n_columns);

// As exact::forward, of a part. The columns of x are the lanes of bundles, from x on, those of the
// next segment distance behind them; cols.x is not used.
void forward(const matrix & w, int64_t m0, int64_t m1, int64_t n_k, columns cols, const bundle * x, int64_t distance, char * work);
int64_t forward_part();

// As exact::backward, of a part. cols.x are the columns' first segments, the next distance behind them.
void backward(const matrix & w, int64_t k0, int64_t k1, int64_t n_m, columns cols, int64_t distance, char * work);
int64_t backward_part(int64_t block);

} // namespace fixed
