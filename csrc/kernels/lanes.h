// Vectors of float32 as wide as this variant's processor has them.
#pragma once

#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // in GCC 12's own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace lanes {

#if defined(__AVX512F__)
constexpr int W = 16; // lanes
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float   vec  __attribute__((vector_size(4*W)));
typedef int32_t ivec __attribute__((vector_size(4*W)));
typedef float   memory __attribute__((vector_size(4*W), aligned(4), may_alias)); // not aligned as vectors are

inline vec load(const float * p) { return *(const memory *) p; }
inline void store(float * p, vec v) { *(memory *) p = v; }

// x - 0 is x for every x, -0 and NaN too: compilers make it one broadcast
inline vec all(float x) { return x - (vec) {}; }

// p[0..n) and zeros, n < W; nothing beyond is read
inline vec load(const float * p, int n) {
#if defined(__AVX512F__)
    return (vec) _mm512_maskz_loadu_ps((__mmask16) ((1u << n) - 1), p);
#elif defined(__AVX__)
    const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    return (vec) _mm256_maskload_ps(p, _mm256_castps_si256(_mm256_cmp_ps(lane, _mm256_set1_ps((float) n), _CMP_LT_OQ)));
#else
    vec v = {};
    for (int i = 0; i < n; ++i) {
        v[i] = p[i];
    }
    return v;
#endif
}

// a*b + c, rounded once where the processor can. (Left to the compiler, it would be
// rounded once in one tile and twice in another, and the tiles would differ.)
inline vec multiply_add(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec) _mm512_fmadd_ps((__m512) a, (__m512) b, (__m512) c);
#elif defined(__FMA__)
    return (vec) _mm256_fmadd_ps((__m256) a, (__m256) b, (__m256) c);
#elif defined(__aarch64__)
    return (vec) vfmaq_f32((float32x4_t) c, (float32x4_t) a, (float32x4_t) b);
#else
    return a*b + c;
#endif
}

// lanes of a (numbered from 0) and b (from W)
inline vec shuffle(vec a, vec b, ivec lane) {
#if defined(__clang__)
    vec v;
    for (int i = 0; i < W; ++i) {
        v[i] = lane[i] < W ? a[lane[i]] : b[lane[i] - W];
    }
    return v;
#else
    return __builtin_shuffle(a, b, lane);
#endif
}

inline ivec max(ivec a, ivec b) {
#if defined(__AVX512F__)
    return (ivec) _mm512_max_epi32((__m512i) a, (__m512i) b);
#elif defined(__AVX2__)
    return (ivec) _mm256_max_epi32((__m256i) a, (__m256i) b);
#else
    const ivec greater = a > b;
    return (a & greater) | (b & ~greater);
#endif
}

// Lanes of two int16 each, as dot_pairs takes them, from those in which they are neighbors.
inline ivec arranged(ivec pairs) {
#if defined(__aarch64__)
    const int16x8_t p = (int16x8_t) pairs;
    return (ivec) vcombine_s16(vget_low_s16(vuzp1q_s16(p, p)), vget_low_s16(vuzp2q_s16(p, p)));
#else
    return pairs;
#endif
}

// sum + a_0 b_0 + a_1 b_1 in each lane; a as arranged() has them, b two int16
inline ivec dot_pairs(ivec a, int32_t b, ivec sum) {
#if defined(__aarch64__)
    const int16x8_t p = (int16x8_t) a;
    return (ivec) vmlal_n_s16(vmlal_n_s16((int32x4_t) sum, vget_low_s16(p), (int16_t) b), vget_high_s16(p), (int16_t) (b >> 16));
#else
#if defined(__AVX512VNNI__)
    return (ivec) _mm512_dpwssd_epi32((__m512i) sum, (__m512i) a, _mm512_set1_epi32(b));
#elif defined(__AVX512BW__)
    return sum + (ivec) _mm512_madd_epi16((__m512i) a, _mm512_set1_epi32(b));
#elif defined(__AVXVNNI__)
    return (ivec) _mm256_dpwssd_avx_epi32((__m256i) sum, (__m256i) a, _mm256_set1_epi32(b));
#elif defined(__AVX2__)
    return sum + (ivec) _mm256_madd_epi16((__m256i) a, _mm256_set1_epi32(b));
#elif defined(__AVX__) // integers in halves
    const __m128i c = _mm_set1_epi32(b), low = _mm256_castsi256_si128((__m256i) a), high = _mm256_extractf128_si256((__m256i) a, 1);
    return sum + (ivec) _mm256_set_m128i(_mm_madd_epi16(high, c), _mm_madd_epi16(low, c));
#elif defined(__SSE2__)
    return sum + (ivec) _mm_madd_epi16((__m128i) a, _mm_set1_epi32(b));
#else // any other
    return sum + (a << 16 >> 16)*(int16_t) b + (a >> 16)*(b >> 16);
#endif
#endif
}

// Exchanges lane i of vector j for lane j of vector i, of W vectors.
inline void transpose(ivec * v) {
#pragma GCC unroll 4
    for (int n = 1; n < W; n *= 2) {
        ivec low, high;
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            low[i]  = i & n ? i - n + W : i;
            high[i] = i & n ? i + W : i + n;
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            if (!(i & n)) {
                const vec a = (vec) v[i], b = (vec) v[i + n];
                v[i]     = (ivec) shuffle(a, b, low);
                v[i + n] = (ivec) shuffle(a, b, high);
            }
        }
    }
}

} // namespace lanes
