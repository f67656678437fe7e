#include "dots.h"

#include "blocks.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

namespace {

__m256i load256(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
__m512i load512(const void * p) { return _mm512_loadu_si512(p); }

// Lanes 8 i to 8 i + 7 have the (first + i)-th of eight numbers; so do four lanes in turn of sixteen.
__m512 eights(__m512 numbers, int first) { return _mm512_permutexvar_ps(_mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)), numbers); }
__m512 fours(__m512 numbers, int first) { return _mm512_permutexvar_ps(_mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)), numbers); }

// sums of four products each, of bytes without a sign with bytes that have one
__m512 sums(__m512i u, __m512i y) { return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), u, y)); }

// Brings near, a line after the other, what follows by and by: rows are read in order.
template <int BYTES> void fetch(const void * p) {
    constexpr int AHEAD = 4096;
#pragma GCC unroll 8
    for (int i = 0; i < BYTES; i += 64) {
        __builtin_prefetch((const char *) p + AHEAD + i, 0, 2);
    }
}

void q4_K(int n, float * s, size_t, const void * vx, size_t, const void * vy, size_t, int) {
    const block_q4_K * x = (const block_q4_K *) vx;
    const block_q8_K * y = (const block_q8_K *) vy;
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    __m512 sum = _mm512_setzero_ps();
    __m256 min_sum = _mm256_setzero_ps();
    for (int left = n/QK_K; left > 0; --left, ++x, ++y) {
        fetch<sizeof(block_q4_K)>(x);
        const blocks::six_bits of(x->scales);
        const __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_cvtsi64_si128(of.scales)));
        __m512 block = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) { // 32 bytes have the 4 bits of two parts
            const __m512i q = _mm512_srlv_epi16(_mm512_broadcast_i64x4(load256(x->qs + 32*i)), shift) & _mm512_set1_epi8(15);
            block = _mm512_fmadd_ps(sums(q, load512(y->qs + 64*i)), eights(scales, 2*i), block); // exact: below 2^24
        }
        sum = _mm512_fmadd_ps(block, _mm512_set1_ps(blocks::half(x->d)*y->d), sum);
        const __m128i mins = _mm_cvtsi64_si128(of.mins);
        const __m256i products = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins)), load256(y->bsums)); // (two sums of 16 for each)
        min_sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(blocks::half(x->dmin)*y->d), min_sum);
    }
    *s = _mm512_reduce_add_ps(sum - _mm512_zextps256_ps512(min_sum));
}

void q6_K(int n, float * s, size_t, const void * vx, size_t, const void * vy, size_t, int) {
    const block_q6_K * x = (const block_q6_K *) vx;
    const block_q8_K * y = (const block_q8_K *) vy;
    const __m512i two = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    __m512 sum = _mm512_setzero_ps();
    for (int left = n/QK_K; left > 0; --left, ++x, ++y) {
        fetch<sizeof(block_q6_K)>(x);
        const __m128i bytes = _mm_loadu_si128((const __m128i *) x->scales);
        const __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        const __m256i too_much = _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), load256(y->bsums)); // q is 32 too large
        __m512 block = _mm512_zextps256_ps512(_mm256_cvtepi32_ps(too_much))*_mm512_set1_ps(-32);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) { // 64 bytes have the lower bits of 128 numbers, 32 the upper ones
            const __m512i low = load512(x->ql + 64*i), high = _mm512_srlv_epi16(_mm512_broadcast_i64x4(load256(x->qh + 32*i)), two);
            const auto upper = [](__m512i v) { return _mm512_slli_epi16(v & _mm512_set1_epi8(3), 4); };
            const __m512i q0 = (low & _mm512_set1_epi8(15)) | upper(high);
            const __m512i q1 = (_mm512_srli_epi16(low, 4) & _mm512_set1_epi8(15)) | upper(_mm512_srli_epi16(high, 4));
            block = _mm512_fmadd_ps(sums(q0, load512(y->qs + 128*i)), fours(scales, 8*i), block);
            block = _mm512_fmadd_ps(sums(q1, load512(y->qs + 128*i + 64)), fours(scales, 8*i + 4), block);
        }
        sum = _mm512_fmadd_ps(block, _mm512_set1_ps(blocks::half(x->d)*y->d), sum);
    }
    *s = _mm512_reduce_add_ps(sum);
}

} // namespace

ggml_vec_dot_t llsteer_vec_dot(ggml_type type, ggml_vec_dot_t of_ggml) {
    switch (type) {
        case GGML_TYPE_Q4_K: return q4_K;
        case GGML_TYPE_Q6_K: return q6_K;
        default:             return of_ggml;
    }
}

#else

ggml_vec_dot_t llsteer_vec_dot(ggml_type, ggml_vec_dot_t of_ggml) { return of_ggml; }

#endif
