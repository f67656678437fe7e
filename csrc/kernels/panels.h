// How tiles.cpp holds its operands, and panels of W, which are expanded while others are multiplied.
#pragma once

#include "slices.h"
#include "tiles.h"

namespace tiles {

using namespace lanes;

// A tile has 16 rows of 16 pairs of bfloat16, or of 16 sums. In memory it is contiguous. The
// product of a left and a right tile adds to row i, column j of the sums
// the dot product of row i of the left one with the pairs j of the right one's rows.
constexpr int64_t ROWS = 16;
constexpr int64_t DEPTH = 32;                  // elements along the sum, 16 pairs
constexpr size_t TILE = ROWS*DEPTH*2;          // bytes
static_assert(ROWS == W && ROWS == COLUMNS);

constexpr int64_t CHUNK = slices::CHUNK;       // elements along the sum for which a panel of W is
constexpr int64_t STEPS = CHUNK/DEPTH;
constexpr int64_t STRIP = 2*ROWS;              // elements of y for which a panel of W is
constexpr size_t PANEL = STEPS*2*TILE;
using slices::SLICES;
static_assert(DEPTH == slices::SLICE && STRIP == slices::SLICE && CHUNK == 2*slices::PAIRS);

inline int64_t bundles_of(int64_t n_columns) { return divide_up(n_columns, COLUMNS); }
inline int64_t depth_of(int64_t length) { return std::max<int64_t>(1, divide_up(length, DEPTH)); } // in tiles

// Columns of x, a tile for each step along the sum; bundles lie next bytes apart.
struct operand {
    const char * data;
    size_t next;
};

inline void store(void * to, __m512i v) { _mm512_store_si512(to, v); }

// A panel is two tiles for each step along the sum. A call goes through panels. While one is multiplied, the next one is
// expanded into the other buffer, and one behind it is fetched, some slices at a time: all at once would
// keep the processor waiting.

// Where W has a panel: rows of n elements, at most CHUNK, of which a right panel takes the i-th slices, of [first, end).
struct source {
    const char * data = nullptr;
    size_t stride = 0; // bytes from row to row
    int64_t n_rows = 0, n = 0, first = 0, i = 0, end = 0;

    const char * row(int64_t r) const { return data + std::min(r, n_rows - 1)*stride; }
};

// A unit of expanding: a row of a left tile, from a row of W, or of two right tiles, from two.
struct unit {
    const char * x;
    char * to;
    const char * prepared;
    int64_t later; // bytes from x to what is fetched meanwhile
};

template <class T> struct left_panel {
    static constexpr bool LEFT = true;
    static constexpr int64_t UNITS = STRIP; // of a step
    static constexpr int AHEAD = 3;         // panels, for fetching
    static int64_t n_steps(const source & s) { return divide_up(s.n, DEPTH); }

    static void prepare(const matrix & w, const source & s, int64_t step, int64_t first, int64_t n, char * prepared) {
        if (step == 0) {
            for (int64_t r = first; r < first + n; ++r) {
                T::prepare_row(w, s.row(r), s.n, prepared + r*T::ROW);
            }
        }
    }
    // Meanwhile the line comes near in which the same slice of a later panel ends.
    static unit at(const matrix & w, const source & s, const source & later, int64_t step, int64_t r, char * panel, const char * prepared) {
        return {s.row(r), panel + step*2*TILE + r*LINE, T::of_rows(prepared, step) + r*T::ROW,
            later.data ? later.data - s.data + (step + 1)*T::chunk_bytes(w)/STEPS - 1 : 0};
    }
    static void expand(const source & s, int64_t step, unit & u) {
        store(u.to, T::row(u.x, step, s.n, u.prepared));
        __builtin_prefetch(u.x + u.later, 0, 2);
        u.x += s.stride;
        u.to += LINE;
        u.prepared += T::ROW;
    }
    static void finish(const source &, char *) {}
};

template <class T> struct right_panel {
    static constexpr bool LEFT = false;
    static constexpr int64_t UNITS = ROWS;
    static constexpr int AHEAD = SLICES + 2;
    static int64_t n_steps(const source & s) { return divide_up(s.n_rows, DEPTH); }
    static int64_t row(int64_t step, int64_t r) { return step*DEPTH + 2*r; }

    static void prepare(const matrix & w, const source & s, int64_t step, int64_t first, int64_t n, char * prepared) {
        if (s.i == s.first) {
            for (int64_t r = first; r < first + n; ++r) {
                T::prepare_pair(w, s.row(row(step, r)), s.row(row(step, r) + 1), s.n, prepared + (step*ROWS + r)*T::PAIR);
            }
        }
    }
    static unit at(const matrix &, const source & s, const source &, int64_t step, int64_t r, char * panel, const char * prepared) {
        return {s.row(row(step, r)), panel + step*2*TILE + r*LINE, T::of_pairs(prepared, s.i) + (step*ROWS + r)*T::PAIR, 0};
    }
    static void expand(const source & s, int64_t, unit & u) {
        const slices::pairs v = T::pair(u.x, u.x + s.stride, s.i, s.n, u.prepared);
        store(u.to, v.first);
        store(u.to + TILE, v.second);
        u.x += 2*s.stride;
        u.to += LINE;
        u.prepared += T::PAIR;
    }

    // What n units fetch. Memory likes to be read in order: the panels of the same rows share them out, and fetch them whole.
    static void fetch(const matrix & w, const source & s, int64_t step, int64_t first, int64_t n) {
        const int64_t rows = divide_up(CHUNK, std::max<int64_t>(1, s.end - s.first)), row = (s.i - s.first)*rows;
        const int64_t begin = row + (step*ROWS + first)*rows/slices::PAIRS, end = row + (step*ROWS + first + n)*rows/slices::PAIRS;
        const int64_t bytes = T::chunk_bytes(w);
        const char * p = s.data + begin*s.stride;
        for (int64_t r = begin; r < end; ++r, p += s.stride) {
#pragma GCC unroll 16
            for (int64_t i = 0; i < bytes; i += LINE) {
                __builtin_prefetch(p + i, 0, 2);
            }
            __builtin_prefetch(p + bytes - 1, 0, 2);
        }
        __asm__ volatile(""); // or GCC leaves calls out, as in matrix.h
    }

    // zeros in place of rows beyond the last
    static void finish(const source & s, char * panel) {
        for (int64_t r = s.n_rows; r < divide_up(s.n_rows, DEPTH)*DEPTH; ++r) {
            for (int64_t i = 0; i < STRIP; ++i) {
                ((uint16_t *) (panel + r/DEPTH*2*TILE + i/ROWS*TILE))[r % DEPTH/2*DEPTH + i % ROWS*2 + r % 2] = 0;
            }
        }
    }
};

// A panel that comes while another one is multiplied.
template <class P> struct coming {
    const matrix & w;
    source next, later; // what is expanded, what is fetched
    char * panel, * prepared;
    int64_t n_steps = next.n_rows % DEPTH == 0 ? P::n_steps(next) : 0; // for which expanding goes along
    int64_t n_done = 0;                                                // of these

    // what is left
    void finish() {
        for (int64_t i = n_done; i < P::n_steps(next); ++i) {
            P::prepare(w, next, i, 0, P::UNITS, prepared);
            for (int64_t r = 0; r < P::UNITS; ++r) {
                unit u = P::at(w, next, later, i, r, panel, prepared);
                P::expand(next, i, u);
            }
        }
        P::finish(next, panel);
    }
};

} // namespace tiles
