#include "dequantize.h"

#include "lanes.h"

#define GGML_COMMON_DECL_C
#define GGML_COMMON_IMPL_C
#include "ggml-common.h"
#include "ggml-impl.h"

#include <cstring>

#if (defined(__AVX2__) && defined(__F16C__)) || defined(__aarch64__)

namespace {

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

// y = q*d for 16 signed bytes
template <int I = 0> inline void put(float * y, bytes q, float d) {
    store(y + I*W, floats<I>(q)*all(d));
    if constexpr ((I + 1)*W < 16) {
        put<I + 1>(y, q, d);
    }
}

// y = q*d - m. q*d is exact (11 bits of a half, 6 of a scale, 5 of q), so it may be
// fused with the subtraction.
template <int I = 0> inline void put(float * y, bytes q, float d, float m) {
    store(y + I*W, floats<I>(q)*all(d) - all(m));
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

void expand(const block_q4_0 & b, float * y) {
    const bytes q = load(b.qs);
    const float d = half(b.d);
    put(y,      bits(q, 0, 4) - 8, d);
    put(y + 16, bits(q, 4, 4) - 8, d);
}

void expand(const block_q4_1 & b, float * y) {
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

void expand(const block_q5_0 & b, float * y) {
    const bytes q = load(b.qs);
    const float d = half(b.d);
    put(y,      (bits(q, 0, 4) | fifth_bits(b.qh))     - 16, d);
    put(y + 16, (bits(q, 4, 4) | fifth_bits(b.qh + 2)) - 16, d);
}

void expand(const block_q5_1 & b, float * y) {
    const bytes q = load(b.qs);
    const float d = half(b.d), m = -half(b.m);
    put(y,      bits(q, 0, 4) | fifth_bits(b.qh),     d, m);
    put(y + 16, bits(q, 4, 4) | fifth_bits(b.qh + 2), d, m);
}

void expand(const block_q8_0 & b, float * y) {
    const float d = half(b.d);
    put(y,      load(b.qs),      d);
    put(y + 16, load(b.qs + 16), d);
}

void expand(const block_iq4_nl & b, float * y) {
    const bytes q = load(b.qs), values = load(kvalues_iq4nl);
    const float d = half(b.d);
    put(y,      look_up(values, bits(q, 0, 4)), d);
    put(y + 16, look_up(values, bits(q, 4, 4)), d);
}

void expand(const block_mxfp4 & b, float * y) {
    const bytes q = load(b.qs), values = load(kvalues_mxfp4);
    const float d = GGML_E8M0_TO_FP32_HALF(b.e);
    put(y,      look_up(values, bits(q, 0, 4)), d);
    put(y + 16, look_up(values, bits(q, 4, 4)), d);
}

// ---- blocks of 256 ----------------------------------------------------------------

void expand(const block_q2_K & b, float * y) {
    const float d = half(b.d), min = half(b.dmin);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) { // part i: bits of 16 bytes in the first or second half
        const bytes q = load(b.qs + i/8*32 + i%2*16);
        const int scale = b.scales[i];
        put(y + i*16, bits(q, i%8/2*2, 2), d*(scale & 15), min*(scale >> 4));
    }
}

void expand(const block_q3_K & b, float * y) {
    const float d = half(b.d);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        const bytes q = load(b.qs + i/8*32 + i%2*16), mask = load(b.hmask + i%2*16);
        // scale i: its low 4 bits are a nibble of bytes 0 to 7, its high 2 in bytes 8 to 11
        const int scale = ((b.scales[i%8] >> i/8*4) & 15) | ((b.scales[8 + i%4] >> i/4*2) & 3) << 4;
        put(y + i*16, (bits(q, i%8/2*2, 2) | up(bits(mask, i/2, 1), 2)) - 4, d*(scale - 32));
    }
}

// scale and minimum i of a block of 8
struct six_bits {
    int scale, min;
    six_bits(const uint8_t * p, int i) :
        scale(i < 4 ? p[i]     & 63 : (p[i + 4] & 15) | p[i - 4] >> 6 << 4),
        min  (i < 4 ? p[i + 4] & 63 :  p[i + 4] >> 4  | p[i]     >> 6 << 4) {}
};

void expand(const block_q4_K & b, float * y) {
    const float d = half(b.d), min = half(b.dmin);
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        const six_bits s(b.scales, i);
        for (int j = 0; j < 32; j += 16) {
            put(y + i*32 + j, bits(load(b.qs + i/2*32 + j), i%2*4, 4), d*s.scale, min*s.min);
        }
    }
}

void expand(const block_q5_K & b, float * y) {
    const float d = half(b.d), min = half(b.dmin);
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        const six_bits s(b.scales, i);
        for (int j = 0; j < 32; j += 16) {
            const bytes q = bits(load(b.qs + i/2*32 + j), i%2*4, 4) | up(bits(load(b.qh + j), i, 1), 4);
            put(y + i*32 + j, q, d*s.scale, min*s.min);
        }
    }
}

void expand(const block_q6_K & b, float * y) {
    const float d = half(b.d);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) { // in each half of the block: low nibbles of 64 bytes, then their high ones
        const bytes low = load(b.ql + i/8*64 + i%4*16), high = load(b.qh + i/8*32 + i%2*16);
        put(y + i*16, (bits(low, i%8/4*4, 4) | up(bits(high, i%8/2*2, 2), 4)) - 32, d*b.scales[i]);
    }
}

void expand(const block_iq4_xs & b, float * y) {
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

template <class block, int N> void rows(const void * x, float * y, int64_t n) {
    for (const block * b = (const block *) x; n > 0; ++b, y += N, n -= N) {
        expand(*b, y);
    }
}

// ---- numbers of 16 bits -------------------------------------------------------------

void halves(const void * x, float * y, int64_t n) {
    const ggml_half * h = (const ggml_half *) x;
    for (; n >= W; n -= W, h += W, y += W) {
#if defined(__AVX512F__)
        store(y, (vec) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) h)));
#elif defined(__F16C__)
        store(y, (vec) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) h)));
#else
        store(y, (vec) vcvt_f32_f16(vld1_f16((const float16_t *) h)));
#endif
    }
    for (; n > 0; --n) {
        *y++ = half(*h++);
    }
}

} // namespace

ggml_to_float_t llsteer_to_float(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:    return halves;
        case GGML_TYPE_Q4_0:   return rows<block_q4_0,   QK4_0>;
        case GGML_TYPE_Q4_1:   return rows<block_q4_1,   QK4_1>;
        case GGML_TYPE_Q5_0:   return rows<block_q5_0,   QK5_0>;
        case GGML_TYPE_Q5_1:   return rows<block_q5_1,   QK5_1>;
        case GGML_TYPE_Q8_0:   return rows<block_q8_0,   QK8_0>;
        case GGML_TYPE_Q2_K:   return rows<block_q2_K,   QK_K>;
        case GGML_TYPE_Q3_K:   return rows<block_q3_K,   QK_K>;
        case GGML_TYPE_Q4_K:   return rows<block_q4_K,   QK_K>;
        case GGML_TYPE_Q5_K:   return rows<block_q5_K,   QK_K>;
        case GGML_TYPE_Q6_K:   return rows<block_q6_K,   QK_K>;
        case GGML_TYPE_IQ4_NL: return rows<block_iq4_nl, QK4_NL>;
        case GGML_TYPE_IQ4_XS: return rows<block_iq4_xs, QK_K>;
        case GGML_TYPE_MXFP4:  return rows<block_mxfp4,  QK_MXFP4>;
        default:               return ggml_get_type_traits(type)->to_float; // rare, or fast already
    }
}

#else

ggml_to_float_t llsteer_to_float(ggml_type type) { return ggml_get_type_traits(type)->to_float; }

#endif
