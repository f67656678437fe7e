// Products of panels in vectors, with AVX-512's instructions for bfloat16.
#pragma once

#include "panels.h"

#include <chrono>

namespace tiles {

inline bool possible() { return true; } // a variant is loaded if the processor has what it is made for

// Where both instructions are as fast, as on AMD's Zen 4, products in bfloat16 take less time, for rounding does. Intel's
// Sapphire Rapids has those for bfloat16 at a quarter of the rate. So it is measured, in 0.1 ms.
inline bool faster_than_fixed_point() {
    __m512i sums[16] = {};
    const auto seconds = [&](auto multiply) {
        double least = 1;
        for (int trial = 0; trial < 10; ++trial) {
            const auto begin = std::chrono::steady_clock::now();
            for (int i = 0; i < 500; ++i) {
#pragma GCC unroll 16
                for (__m512i & s : sums) {
                    multiply(s);
                }
            }
            least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
        }
        return least;
    };
    const double bfloat = seconds([](__m512i & s) { __asm__ volatile("vdpbf16ps %0, %0, %0" : "+v"(s)); });
    const double fixed  = seconds([](__m512i & s) { __asm__ volatile("vpdpwssd %0, %0, %0" : "+v"(s)); });
    return bfloat < 2*fixed;
}

struct registers {
    registers() {} // there is nothing to set up
};

constexpr int HEIGHT = 8; // rows of a left operand, and
constexpr int WIDTH = 3;  // tiles beside each other of a right one, whose sums stay in registers

// Where an operand of a block begins, and the bytes to what follows along the sum; of a right one, to the next tile beside, too.
struct place {
    const char * data;
    size_t step, beside;
};

// The products of HEIGHT rows with V tiles and, if HALF, with the first half of another, set or added to the sums: of a row a
// line in each tile, those beside bytes apart. With each step, n units of the coming panel are expanded: processors overlap that.
template <class P, int V, bool HALF>
__attribute__((noinline)) void multiply_block(place left, place right, int64_t n_steps, char * sums, size_t beside, bool add, const coming<P> & also, int64_t first, int64_t n) {
    __m512 sum[HEIGHT][V];
    __m256 half[HEIGHT];
    const auto each_sum = [&](auto whole, auto narrow) {
#pragma GCC unroll 8
        for (int r = 0; r < HEIGHT; ++r) {
            float * const to = (float *) (sums + r*LINE);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                whole(sum[r][v], to + v*beside/sizeof(float));
            }
            if constexpr (HALF) narrow(half[r], to + V*beside/sizeof(float));
        }
    };
    if (add) {
        each_sum([](__m512 & s, const float * from) { s = _mm512_load_ps(from); }, [](__m256 & s, const float * from) { s = _mm256_load_ps(from); });
    } else {
        each_sum([](__m512 & s, const float *) { s = _mm512_setzero_ps(); }, [](__m256 & s, const float *) { s = _mm256_setzero_ps(); });
    }
    for (int64_t i = 0; i < n_steps; ++i, left.data += left.step, right.data += right.step) {
        for (int64_t p = 0; p < DEPTH/2; ++p) { // pairs
            const char * const x = right.data + p*LINE;
            __m512bh b[V];
            __m256bh b_half;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                b[v] = (__m512bh) _mm512_load_si512(x + v*right.beside);
            }
            if constexpr (HALF) b_half = (__m256bh) _mm256_load_si256((const __m256i *) (x + V*right.beside));
#pragma GCC unroll 8
            for (int r = 0; r < HEIGHT; ++r) {
                int32_t pair;
                memcpy(&pair, left.data + r*LINE + p*sizeof(pair), sizeof(pair));
                const __m512i a = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh) a, b[v]);
                }
                if constexpr (HALF) half[r] = _mm256_dpbf16_ps(half[r], (__m256bh) _mm512_castsi512_si256(a), b_half);
            }
        }
        if (n > 0 && i < also.n_steps) {
            P::prepare(also.w, also.next, i, first, n, also.prepared);
            unit u = P::at(also.w, also.next, also.later, i, first, also.panel, also.prepared);
            if constexpr (!P::LEFT) P::fetch(also.w, also.later, i, first, n);
            for (int64_t j = 0; j < n; ++j) {
                P::expand(also.next, i, u);
            }
        }
    }
    __asm__("" : "+r"(sums)); // or GCC computes all addresses before the loop, and a sum has to make room for one
    each_sum([](__m512 s, float * to) { _mm512_store_ps(to, s); }, [](__m256 s, float * to) { _mm256_store_ps(to, s); });
}

// The products of a panel with n_columns columns.
template <class P> void multiply(const char * panel, operand x, int64_t n_columns, int64_t n_steps, char * sums, size_t below, size_t beside, bool add, coming<P> & also) {
    constexpr int64_t GRAIN = P::UNITS/8; // units that are expanded together
    int64_t n_blocks, block = 0;
    int64_t done = 0; // units
    const auto share = [&] { return P::UNITS*++block/n_blocks/GRAIN*GRAIN - done; };
    if constexpr (P::LEFT) {
        const int64_t n_bundles = bundles_of(n_columns);
        n_blocks = STRIP/HEIGHT*divide_up(n_bundles, WIDTH);
        each_tile<WIDTH>(n_bundles, [&](auto size, int64_t t) {
            constexpr int V = decltype(size)::value;
            const bool half = n_columns <= (t + V)*COLUMNS - COLUMNS/2; // of the last tile
            for (int64_t r = 0; r < STRIP; r += HEIGHT) {
                const int64_t n = share();
                (half ? multiply_block<P, V - 1, true> : multiply_block<P, V, false>)({panel + r*LINE, 2*TILE, 0}, {x.data + t*x.next, TILE, x.next}, n_steps,
                    sums + r/ROWS*below + r%ROWS*LINE + t*beside, beside, add, also, done, n);
                done += n;
            }
        });
    } else {
        n_blocks = divide_up(n_columns, HEIGHT);
        for (int64_t r = 0; r < n_columns; r += HEIGHT) {
            const int64_t n = share();
            multiply_block<P, 2, false>({x.data + r/ROWS*x.next + r%ROWS*LINE, TILE, 0}, {panel, 2*TILE, TILE}, n_steps,
                sums + r/ROWS*beside + r%ROWS*LINE, below, add, also, done, n);
            done += n;
        }
    }
    also.n_done = std::min(n_steps, also.n_steps);
    also.finish();
}

} // namespace tiles
