// What the kernels of matrix products share: the weights, and the columns that a call computes.
#pragma once

#include "dequantize.h"
#include "ggml.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

constexpr size_t LINE = 64;         // bytes of a cache line
constexpr int64_t LARGEST_BLOCK = 256; // elements, of any type

inline constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1)/by; }

// Parts of this size, a multiple of unit, share n evenly; most is a multiple, too.
inline int64_t even_part(int64_t n, int64_t most, int64_t unit) {
    const int64_t parts = std::max<int64_t>(1, divide_up(n, most));
    return std::max<int64_t>(1, divide_up(n, parts*unit))*unit;
}

// f(C, first) for even tiles of C <= MOST columns, C a std::integral_constant
template <int C, typename F> inline void sized_tile(int64_t n, int64_t first, F f) {
    if (n == C) {
        f(std::integral_constant<int, C>(), first);
    } else if constexpr (C > 1) {
        sized_tile<C - 1>(n, first, f);
    }
}

template <int MOST, typename F> inline void each_tile(int64_t n_columns, F f) {
    const int64_t tiles = divide_up(n_columns, MOST);
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t first = n_columns*i/tiles;
        sized_tile<MOST>(n_columns*(i + 1)/tiles - first, first, f);
    }
}

// brings n bytes near the processor, for use soon; they may lie anywhere
inline void fetch(const char * p, int64_t n) {
    for (const char * end = p + n; p < end; p += LINE) {
        __builtin_prefetch(p, 0, 2);
    }
    __asm__ volatile(""); // or GCC leaves calls out: to its mind a function that only fetches does nothing
}

// a matrix of W
struct matrix {
    const char * data; // row r at data + r*stride
    size_t stride;
    ggml_type type;
    ggml_to_float_t to_float; // null: float32 already
    int64_t block;            // elements that are dequantized together
    size_t block_bytes;

    matrix(const ggml_tensor * t, int64_t i2, int64_t i3) :
        data((const char *) t->data + i2*t->nb[2] + i3*t->nb[3]), stride(t->nb[1]),
        type(t->type), to_float(llsteer_to_float(t->type)), block(ggml_blck_size(t->type)), block_bytes(ggml_type_size(t->type)) {}

    int64_t bytes(int64_t n) const { return n/block*block_bytes; } // of n elements
    const char * at(int64_t row, int64_t k) const { return data + row*stride + bytes(k); }
};

// the columns of x (or g) and of y that a matrix has part in
struct columns {
    const char ** x;
    char ** y;
    int64_t n;
};
