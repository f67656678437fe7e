// Products of panels in AMX's tile registers.
#pragma once

#include "panels.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tiles {

// Has the processor such registers, and lets the system this process use them?
inline bool possible() {
    unsigned a, b, c, d;
    constexpr unsigned AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24; // in d
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18; // of Linux's asm/prctl.h
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE) &&
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

inline bool faster_than_fixed_point() { return true; }

// While it lives, this thread's tile registers are of full size.
struct registers {
    registers() {
        struct alignas(LINE) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; ++i) {
            shape.bytes[i] = LINE;
            shape.rows[i] = ROWS;
        }
        _tile_loadconfig(&shape);
    }
    ~registers() { _tile_release(); }
};

constexpr int64_t SLOTS = 4; // units that go along with a step, or a multiple

#define MULTIPLY(sum, w, x) do { if constexpr (P::LEFT) _tile_dpbf16ps(sum, w, x); else _tile_dpbf16ps(sum, x, w); } while (0)

// The products of a panel with B columns of tiles of x, set or added to the sums: those of its second tiles and of
// the second column are bytes apart from the first. Between each two products, n units of the coming panel are expanded.
template <class P, int B>
inline void multiply(const char * panel, const char * x, size_t x_next, int64_t n_steps, char * sums, size_t below, size_t beside, bool add, const coming<P> & also, int64_t first, int64_t n) {
    char * const s[] = {sums, sums + beside, sums + below, sums + below + beside};
    if (add) {
        _tile_stream_loadd(0, s[0], LINE);
        if constexpr (B > 1) _tile_stream_loadd(1, s[1], LINE);
        _tile_stream_loadd(2, s[2], LINE);
        if constexpr (B > 1) _tile_stream_loadd(3, s[3], LINE);
    } else {
        _tile_zero(0);
        if constexpr (B > 1) _tile_zero(1);
        _tile_zero(2);
        if constexpr (B > 1) _tile_zero(3);
    }
    for (int64_t i = 0; i < n_steps; ++i, panel += 2*TILE, x += TILE) {
        const int64_t m = i < also.n_steps ? n : 0;
        P::prepare(also.w, also.next, i, first, SLOTS*m, also.prepared);
        unit u = P::at(also.w, also.next, also.later, i, first, also.panel, also.prepared);
        const auto meanwhile = [&] {
            for (int64_t j = m; j > 0; --j) {
                P::expand(also.next, i, u);
            }
        };
        _tile_loadd(4, panel, LINE);
        _tile_stream_loadd(6, x, LINE); // from the second-level cache: x had better not take the room of the panel
        MULTIPLY(0, 4, 6);
        meanwhile();
        if constexpr (B > 1) {
            _tile_stream_loadd(7, x + x_next, LINE);
            MULTIPLY(1, 4, 7);
        }
        meanwhile();
        _tile_loadd(5, panel + TILE, LINE);
        MULTIPLY(2, 5, 6);
        if constexpr (!P::LEFT) P::fetch(also.w, also.later, i, first, SLOTS*m);
        meanwhile();
        if constexpr (B > 1) MULTIPLY(3, 5, 7);
        meanwhile();
    }
    _tile_stored(0, s[0], LINE);
    if constexpr (B > 1) _tile_stored(1, s[1], LINE);
    _tile_stored(2, s[2], LINE);
    if constexpr (B > 1) _tile_stored(3, s[3], LINE);
}

// The products of a panel with n_columns columns.
template <class P> void multiply(const char * panel, operand x, int64_t n_columns, int64_t n_steps, char * sums, size_t below, size_t beside, bool add, coming<P> & also) {
    const int64_t n = bundles_of(n_columns), n_pairs = divide_up(n, 2);
    for (int64_t i = 0; i < n_pairs; ++i, x.data += 2*x.next, sums += 2*beside) {
        const int64_t begin = P::UNITS/SLOTS*i/n_pairs, end = P::UNITS/SLOTS*(i + 1)/n_pairs;
        if (2*i + 1 < n) {
            multiply<P, 2>(panel, x.data, x.next, n_steps, sums, below, beside, add, also, begin*SLOTS, end - begin);
        } else {
            multiply<P, 1>(panel, x.data, x.next, n_steps, sums, below, beside, add, also, begin*SLOTS, end - begin);
        }
    }
    also.n_done = std::min(n_steps, also.n_steps);
    also.finish();
}

#undef MULTIPLY

} // namespace tiles
