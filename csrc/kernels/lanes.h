// Vectors of float32 as wide as this variant's processor has them.
#pragma once

#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // in GCC 12's own intrinsics
#endif
#if defined(__AVX__)
#include <immintrin.h>
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

} // namespace lanes
