// Expands blocks of the common types to float32, vectorized for this variant's processor, bit for
// bit as ggml does.
#pragma once

#include "lanes.h"

#define GGML_COMMON_DECL_C
#define GGML_COMMON_IMPL_C
#include "ggml-common.h"
#include "ggml-impl.h"

#include <cstring>

#if (defined(__AVX2__) && defined(__F16C__)) || defined(__aarch64__)
#define LLSTEER_BLOCKS

namespace blocks {

using namespace lanes;

typedef uint8_t  bytes  __attribute__((vector_size(16)));
typedef uint16_t shorts __attribute__((vector_size(16)));
typedef uint8_t  stored __attribute__((vector_size(16), aligned(1), may_alias));

inline bytes load(const void * p) { return *(const stored *) p; }

// bits [s, s+n) of each byte
inline bytes bits(bytes q, int s, int n) {
    const uint8_t mask = (1 << n) - 1;
    return (bytes) ((shorts) q >> s) & mask;
}

// the same bytes with those bits moved up, where none leaves its byte
inline bytes up(bytes q, int s) { return (bytes) ((shorts) q << s); }

// bytes of a table
inline bytes look_up(bytes table, bytes index) {
#if defined(__aarch64__)
    return (bytes) vqtbl1q_u8((uint8x16_t) table, (uint8x16_t) index);
#else
    return (bytes) _mm_shuffle_epi8((__m128i) table, (__m128i) index);
#endif
}

// the i-th W of 16 signed bytes
template <int I> inline vec floats(bytes q) {
#if defined(__AVX512F__)
    return (vec) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i) q));
#elif defined(__AVX2__)
    return (vec) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i) q, I*W)));
#else
    const int16x8_t pair = I < 2 ? vmovl_s8(vget_low_s8((int8x16_t) q)) : vmovl_high_s8((int8x16_t) q);
    return (vec) vcvtq_f32_s32(I % 2 == 0 ? vmovl_s16(vget_low_s16(pair)) : vmovl_high_s16(pair));
#endif
}

// What expand() writes to, in order: anything that y + n and write(y, the next W numbers) do.
inline void write(float * y, vec v) { store(y, v); }

// y = q*d for 16 signed bytes
template <int I = 0, class Y> inline void put(Y y, bytes q, float d) {
    write(y + I*W, floats<I>(q)*all(d));
    if constexpr ((I + 1)*W < 16) {
        put<I + 1>(y, q, d);
    }
}

// y = q*d - m. q*d is exact (11 bits of a half, 6 of a scale, 5 of q), so it may be
// fused with the subtraction.
template <int I = 0, class Y> inline void put(Y y, bytes q, float d, float m) {
    write(y + I*W, floats<I>(q)*all(d) - all(m));
    if constexpr ((I + 1)*W < 16) {
        put<I + 1>(y, q, d, m);
    }
}

inline float half(ggml_half h) {
#if defined(__aarch64__)
    __fp16 f;
    memcpy(&f, &h, sizeof(f));
    return f;
#else
    return _cvtsh_ss(h);
#endif
}

// ---- blocks of 32 ----------------------------------------------------------------

template <class Y> inline void expand(const block_q4_0 & b, Y y) {
    const bytes q = load(b.qs);
    const float d = half(b.d);
    put(y,      bits(q, 0, 4) - 8, d);
    put(y + 16, bits(q, 4, 4) - 8, d);
}

template <class Y> inline void expand(const block_q4_1 & b, Y y) {
    const bytes q = load(b.qs);
    const float d = half(b.d), m = -half(b.m);
    put(y,      bits(q, 0, 4), d, m);
    put(y + 16, bits(q, 4, 4), d, m);
}

// 16 in byte i where bit i of the two bytes at p is set
inline bytes fifth_bits(const uint8_t * p) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    uint16_t set;
    memcpy(&set, p, sizeof(set));
    return (bytes) _mm_maskz_set1_epi8(set, 16);
#else
    const bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const bytes q = look_up(load(p), (bytes) {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}); // (the quants follow)
    return (bytes) ((q & bit) == bit) & 16;
#endif
}

template <class Y> inline void expand(const block_q5_0 & b, Y y) {
    const bytes q = load(b.qs);
    const float d = half(b.d);
    put(y,      (bits(q, 0, 4) | fifth_bits(b.qh))     - 16, d);
    put(y + 16, (bits(q, 4, 4) | fifth_bits(b.qh + 2)) - 16, d);
}

template <class Y> inline void expand(const block_q5_1 & b, Y y) {
    const bytes q = load(b.qs);
    const float d = half(b.d), m = -half(b.m);
    put(y,      bits(q, 0, 4) | fifth_bits(b.qh),     d, m);
    put(y + 16, bits(q, 4, 4) | fifth_bits(b.qh + 2), d, m);
}

template <class Y> inline void expand(const block_q8_0 & b, Y y) {
    const float d = half(b.d);
    put(y,      load(b.qs),      d);
    put(y + 16, load(b.qs + 16), d);
}

template <class Y> inline void expand(const block_iq4_nl & b, Y y) {
    const bytes q = load(b.qs), values = load(kvalues_iq4nl);
    const float d = half(b.d);
    put(y,      look_up(values, bits(q, 0, 4)), d);
    put(y + 16, look_up(values, bits(q, 4, 4)), d);
}

template <class Y> inline void expand(const block_mxfp4 & b, Y y) {
    const bytes q = load(b.qs), values = load(kvalues_mxfp4);
    const float d = GGML_E8M0_TO_FP32_HALF(b.e);
    put(y,      look_up(values, bits(q, 0, 4)), d);
    put(y + 16, look_up(values, bits(q, 4, 4)), d);
}

// ---- blocks of 256 ----------------------------------------------------------------

template <class Y> inline void expand(const block_q2_K & b, Y y) {
    const float d = half(b.d), min = half(b.dmin);
    float scales[16], mins[16];
    for (int i = 0; i < 16; ++i) {
        scales[i] = d*(b.scales[i] & 15);
        mins[i] = min*(b.scales[i] >> 4);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) { // part i: bits of 16 bytes in the first or second half
        const bytes q = load(b.qs + i/8*32 + i%2*16);
        put(y + i*16, bits(q, i%8/2*2, 2), scales[i], mins[i]);
    }
}

// Four bytes at p, and the bits [s, s+n) of each.
inline uint32_t four(const uint8_t * p) {
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}
inline uint32_t bits_of(uint32_t v, int s, int n) { return v >> s & ((1u << n) - 1)*0x01010101; }

template <class Y> inline void expand(const block_q3_K & b, Y y) {
    const float d = half(b.d);
    // scale i: its low 4 bits are a nibble of bytes 0 to 7, its high 2 in bytes 8 to 11
    uint32_t parts[4];
    for (int i = 0; i < 4; ++i) {
        parts[i] = bits_of(four(b.scales + i%2*4), i/2*4, 4) | bits_of(four(b.scales + 8), i*2, 2) << 4;
    }
    int8_t integers[16];
    memcpy(integers, parts, sizeof(integers));
    float scales[16];
    for (int i = 0; i < 16; ++i) {
        scales[i] = d*(integers[i] - 32);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        const bytes q = load(b.qs + i/8*32 + i%2*16), mask = load(b.hmask + i%2*16);
        put(y + i*16, (bits(q, i%8/2*2, 2) | up(bits(mask, i/2, 1), 2)) - 4, scales[i]);
    }
}

// Eight scales and eight minima of 6 bits, in bytes. 12 bytes have four of each, then 4 bits of four more of each, whose
// upper bits are above the first.
struct six_bits {
    uint64_t scales, mins;

    explicit six_bits(const uint8_t * p) {
        uint64_t first;
        memcpy(&first, p, sizeof(first));
        const uint32_t more = four(p + 8);
        const uint64_t upper = first >> 2 & 0x3030303030303030;
        first &= 0x3f3f3f3f3f3f3f3f;
        scales = (uint32_t) first | (uint64_t) (bits_of(more, 0, 4) | (uint32_t) upper) << 32;
        mins = first >> 32 | (bits_of(more, 4, 4) | upper >> 32) << 32;
    }
};

// The scales and minima of a block, times d and min.
struct scales_and_mins {
    float scales[8], mins[8];
    scales_and_mins(const uint8_t * p, float d, float min) {
        const six_bits both(p);
        uint8_t integers[16];
        memcpy(integers, &both, sizeof(integers));
        for (int i = 0; i < 8; ++i) {
            scales[i] = d*integers[i];
            mins[i] = min*integers[8 + i];
        }
    }
};

template <class Y> inline void expand(const block_q4_K & b, Y y) {
    const scales_and_mins s(b.scales, half(b.d), half(b.dmin));
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        for (int j = 0; j < 32; j += 16) {
            put(y + i*32 + j, bits(load(b.qs + i/2*32 + j), i%2*4, 4), s.scales[i], s.mins[i]);
        }
    }
}

template <class Y> inline void expand(const block_q5_K & b, Y y) {
    const scales_and_mins s(b.scales, half(b.d), half(b.dmin));
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        for (int j = 0; j < 32; j += 16) {
            const bytes q = bits(load(b.qs + i/2*32 + j), i%2*4, 4) | up(bits(load(b.qh + j), i, 1), 4);
            put(y + i*32 + j, q, s.scales[i], s.mins[i]);
        }
    }
}

template <class Y> inline void expand(const block_q6_K & b, Y y) {
    const float d = half(b.d);
    float scales[16];
    for (int i = 0; i < 16; ++i) {
        scales[i] = d*b.scales[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) { // in each half of the block: low nibbles of 64 bytes, then their high ones
        const bytes low = load(b.ql + i/8*64 + i%4*16), high = load(b.qh + i/8*32 + i%2*16);
        put(y + i*16, (bits(low, i%8/4*4, 4) | up(bits(high, i%8/2*2, 2), 4)) - 32, scales[i]);
    }
}

template <class Y> inline void expand(const block_iq4_xs & b, Y y) {
    const bytes values = load(kvalues_iq4nl);
    const float d = half(b.d);
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        const bytes q = load(b.qs + i*16);
        const int scale = ((b.scales_l[i/2] >> i%2*4) & 15) | ((b.scales_h >> i*2) & 3) << 4;
        put(y + i*32,      look_up(values, bits(q, 0, 4)), d*(scale - 32));
        put(y + i*32 + 16, look_up(values, bits(q, 4, 4)), d*(scale - 32));
    }
}

// ---- rows ---------------------------------------------------------------------------

template <class block, int N, class Y> inline void expand_row(const void * x, Y y, int64_t n) {
    for (const block * b = (const block *) x; n > 0; ++b, y = y + N, n -= N) {
        expand(*b, y);
    }
}

} // namespace blocks

#endif
