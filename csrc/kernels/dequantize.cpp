#include "dequantize.h"

#include "blocks.h"

#if defined(LLSTEER_BLOCKS)

namespace {

using namespace lanes;
using blocks::half;

template <class block, int N> void rows(const void * x, float * y, int64_t n) { blocks::expand_row<block, N>(x, y, n); }

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
