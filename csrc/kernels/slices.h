// Weights in bfloat16 for tiles.cpp, 32 at a time: so few instructions fit between the products of two tiles.
//
// A slice is 32 elements of a row. As a row of a left tile they are in order. In right tiles a row is of pairs:
// of two rows' slices, those of the first 16 columns and those of the others.
#pragma once

#include "blocks.h"
#include "lanes.h"
#include "matrix.h"

#include <cstring>

namespace slices {

using namespace lanes;

constexpr int64_t SLICE = 32;
constexpr int64_t CHUNK = LARGEST_BLOCK; // elements of a row that are prepared together
constexpr int64_t SLICES = CHUNK/SLICE;
constexpr int64_t PAIRS = 128;           // that are prepared together

struct pairs { __m512i first, second; };

inline __m512i rounded(__m512 low, __m512 high) { return (__m512i) _mm512_cvtne2ps_pbh(high, low); }

inline __m256i load256(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
inline __m512i joined(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }

// The order of bytes in which lane i has byte FIRST + i or, of two rows of 32 bytes, that of the rows in turn: as a 16-bit number's
// lower byte, or a 32-bit number's second.
template <int SIZE, bool IN_TURN, int FIRST> struct byte_order {
    struct alignas(LINE) bytes { uint8_t v[LINE]; };
    static constexpr bytes make() {
        bytes b = {};
        for (int i = 0; i < (int) LINE/SIZE; ++i) {
            b.v[i*SIZE + (SIZE == 4)] = FIRST + (IN_TURN ? i % 2*SLICE + i/2 : i);
        }
        return b;
    }
    static constexpr bytes order = make();
    static __m512i get() { return _mm512_load_si512(&order); }
};

// ---- numbers of 16 bits and more ----------------------------------------------------------

inline pairs paired(__m512i a, __m512i b) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    return {_mm512_permutex2var_epi16(a, first, b), _mm512_permutex2var_epi16(a, second, b)};
}

// What needs no preparation.
struct unprepared {
    static constexpr size_t ROW = 0, PAIR = 0;
    static const char * of_rows(const char * prepared, int64_t) { return prepared; }
    static const char * of_pairs(const char * prepared, int64_t) { return prepared; }
    static void prepare_row(const matrix &, const char *, int64_t, char *) {}
    static void prepare_pair(const matrix &, const char *, const char *, int64_t, char *) {}
};

struct of_bfloats : unprepared {
    static int64_t chunk_bytes(const matrix &) { return 2*CHUNK; }
    static __m512i row(const char * x, int64_t i, int64_t n, const char *) {
        n -= i*SLICE;
        return _mm512_maskz_loadu_epi16((__mmask32) (n < SLICE ? (1ull << n) - 1 : ~0ull), x + i*2*SLICE);
    }
    static pairs pair(const char * a, const char * b, int64_t i, int64_t n, const char *) {
        return paired(row(a, i, n, nullptr), row(b, i, n, nullptr));
    }
};

// the first n of 16 numbers
inline __m512 load16(const float * x, int64_t n) { return _mm512_maskz_loadu_ps((__mmask16) (n < 16 ? (1u << std::max<int64_t>(n, 0)) - 1 : ~0u), x); }
inline __m512 load16(const ggml_half * x, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16) (n < 16 ? (1u << std::max<int64_t>(n, 0)) - 1 : ~0u), x));
}

// Two rows' numbers, in turn.
inline __m512i in_turn(__m512 a, __m512 b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, rounded(a, b));
}

template <class number> struct of_numbers : unprepared {
    static int64_t chunk_bytes(const matrix &) { return CHUNK*sizeof(number); }
    static __m512i row(const char * x, int64_t i, int64_t n, const char *) {
        const number * p = (const number *) x + i*SLICE;
        return rounded(load16(p, n - i*SLICE), load16(p + 16, n - i*SLICE - 16));
    }
    static pairs pair(const char * x, const char * y, int64_t i, int64_t n, const char *) {
        const number * a = (const number *) x + i*SLICE, * b = (const number *) y + i*SLICE;
        n -= i*SLICE;
        return {in_turn(load16(a, n), load16(b, n)), in_turn(load16(a + 16, n - 16), load16(b + 16, n - 16))};
    }
};

// Any type: rows are rounded when they are prepared.
struct of_any {
    static constexpr size_t ROW = CHUNK*2, PAIR = 2*ROW;
    static int64_t chunk_bytes(const matrix & w) { return w.bytes(CHUNK); }
    static const char * of_rows(const char * prepared, int64_t i) { return prepared + i*2*SLICE; }
    static const char * of_pairs(const char * prepared, int64_t i) { return of_rows(prepared, i); }
    static void prepare_row(const matrix & w, const char * x, int64_t n, char * to) {
        alignas(LINE) float y[CHUNK];
        w.to_float(x, y, n);
        std::fill(y + n, y + divide_up(n, SLICE)*SLICE, 0.0f);
        for (int64_t i = 0; i < n; i += SLICE) {
            _mm512_store_si512(to + 2*i, rounded(_mm512_load_ps(y + i), _mm512_load_ps(y + i + W)));
        }
    }
    static void prepare_pair(const matrix & w, const char * a, const char * b, int64_t n, char * to) {
        prepare_row(w, a, n, to);
        prepare_row(w, b, n, to + ROW);
    }
    static __m512i row(const char *, int64_t, int64_t, const char * prepared) { return _mm512_load_si512(prepared); }
    static pairs pair(const char *, const char *, int64_t, int64_t, const char * prepared) {
        return paired(_mm512_load_si512(prepared), _mm512_load_si512(prepared + ROW));
    }
};

// ---- blocks of 32 -------------------------------------------------------------------------

// 16 numbers after the others, as blocks.h writes them
struct sixteens {
    vec * to;
    sixteens operator+(int n) const { return {to + n/16}; }
};
inline void write(sixteens y, vec v) { *y.to = v; }

// T::expand(x, i, v) writes a slice as two vectors.
template <class T> struct of_vectors : unprepared {
    static __m512i row(const char * x, int64_t i, int64_t, const char *) {
        vec v[2];
        T::expand(x, i, v);
        return rounded((__m512) v[0], (__m512) v[1]);
    }
    static pairs pair(const char * x, const char * y, int64_t i, int64_t, const char *) {
        vec a[2], b[2];
        T::expand(x, i, a);
        T::expand(y, i, b);
        return {in_turn((__m512) a[0], (__m512) b[0]), in_turn((__m512) a[1], (__m512) b[1])};
    }
};

template <class block> struct of_slices : of_vectors<of_slices<block>> {
    static int64_t chunk_bytes(const matrix &) { return SLICES*sizeof(block); }
    static void expand(const char * x, int64_t i, vec * v) { blocks::expand(((const block *) x)[i], sixteens{v}); }
};

// ---- blocks of 256 ------------------------------------------------------------------------

// What a row's scales and minima come to: two numbers for each of its slices.
struct parameters { __m256 p, q; };

// T::parameters_of(x) are those of a row, T::row(x, i, p, q) its i-th slice and T::pair(a, b, i, s) that of
// two rows, s pointing to p of a and of b, and q of a and of b.
template <class T> struct of_blocks {
    static int64_t chunk_bytes(const matrix &) { return sizeof(typename T::block); }

    // A row's p, q; a pair's i-th slices' p, q, those of all pairs side by side.
    static constexpr size_t ROW = SLICES*2*sizeof(float), PAIR = 4*sizeof(float), ALL_PAIRS = PAIRS*PAIR;
    static const char * of_rows(const char * prepared, int64_t i) { return prepared + i*sizeof(float); }
    static const char * of_pairs(const char * prepared, int64_t i) { return prepared + i*ALL_PAIRS; }
    static void prepare_row(const matrix &, const char * x, int64_t, char * to) {
        const parameters s = T::parameters_of(x);
        _mm256_store_ps((float *) to, s.p);
        _mm256_store_ps((float *) to + SLICES, s.q);
    }
    static void prepare_pair(const matrix &, const char * a, const char * b, int64_t, char * to) {
        const parameters s = T::parameters_of(a), t = T::parameters_of(b);
        const __m256d p0 = (__m256d) _mm256_unpacklo_ps(s.p, t.p), q0 = (__m256d) _mm256_unpacklo_ps(s.q, t.q);
        const __m256d p2 = (__m256d) _mm256_unpackhi_ps(s.p, t.p), q2 = (__m256d) _mm256_unpackhi_ps(s.q, t.q);
        const __m256d slices[] = {_mm256_unpacklo_pd(p0, q0), _mm256_unpackhi_pd(p0, q0), _mm256_unpacklo_pd(p2, q2), _mm256_unpackhi_pd(p2, q2)};
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) { // i and i + 4
            _mm_store_pd((double *) (to + i*ALL_PAIRS), _mm256_castpd256_pd128(slices[i]));
            _mm_store_pd((double *) (to + (i + 4)*ALL_PAIRS), _mm256_extractf128_pd(slices[i], 1));
        }
    }
    static __m512i row(const char * x, int64_t i, int64_t, const char * prepared) {
        const float * s = (const float *) prepared;
        return T::row(x, i, _mm512_set1_ps(s[0]), _mm512_set1_ps(s[SLICES]));
    }
    static pairs pair(const char * a, const char * b, int64_t i, int64_t, const char * prepared) { return T::pair(a, b, i, (const float *) prepared); }
};

inline __m256 eight(uint64_t bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes))); }

// Weights of up to 8 bits. An integer u from 0 to 255 is the number 2^15 + u, if it is the second byte of a float32.
constexpr float BIAS = 32768;

template <int FIRST, bool IN_TURN> inline __m512 numbers(__m512i bytes) {
    const __m512i bias = _mm512_castps_si512(_mm512_set1_ps(BIAS));
    return _mm512_castsi512_ps(_mm512_mask_permutexvar_epi8(bias, 0x2222222222222222, byte_order<4, IN_TURN, FIRST>::get(), bytes));
}

struct of_q8_0 : unprepared {
    static int64_t chunk_bytes(const matrix &) { return SLICES*sizeof(block_q8_0); }
    static __m512 scaled(__m512 u, __m512 d, __m512 c) { return _mm512_fmadd_ps(u, d, c); } // c is exact, and so is d*u before it is rounded
    static __m512 bias_of(__m512 d) { return d*_mm512_set1_ps(-(BIAS + 128)); }
    static __m512i row(const char * x, int64_t i, int64_t, const char *) {
        const block_q8_0 & b = ((const block_q8_0 *) x)[i];
        const __m512i bytes = _mm512_castsi256_si512(load256(b.qs) ^ _mm256_set1_epi8(-128));
        const __m512 d = _mm512_cvtph_ps(_mm256_set1_epi16(b.d)), c = bias_of(d);
        return rounded(scaled(numbers<0, false>(bytes), d, c), scaled(numbers<16, false>(bytes), d, c));
    }
    static pairs pair(const char * x, const char * y, int64_t i, int64_t, const char *) {
        const block_q8_0 & a = ((const block_q8_0 *) x)[i], & b = ((const block_q8_0 *) y)[i];
        const __m512i bytes = joined(load256(a.qs), load256(b.qs)) ^ _mm512_set1_epi8(-128);
        const __m512 d = (__m512) _mm512_broadcastsd_pd((__m128d) _mm_cvtph_ps(_mm_cvtsi32_si128(a.d | (uint32_t) b.d << 16))), c = bias_of(d);
        return {
            rounded(scaled(numbers<0, true>(bytes), d, c), scaled(numbers<8, true>(bytes), d, c)),
            rounded(scaled(numbers<16, true>(bytes), d, c), scaled(numbers<24, true>(bytes), d, c)),
        };
    }
};

// p of a and of b in turn
inline __m512 alternating(const float * two) {
    double d;
    memcpy(&d, two, sizeof(d));
    return _mm512_castpd_ps(_mm512_set1_pd(d));
}

// Weights of more than 4 bits: T::bytes(low, high, i) of the i-th slice are made of 32 bytes that have their lower and 32 that have their upper bits.
template <class T> struct of_bytes {
    using block = typename T::block;
    static parameters parameters_of(const char * x) { return T::parameters_of(x); }
    static __m512i row(const char * x, int64_t i, __m512 p, __m512 q) {
        const block & b = *(const block *) x;
        const __m512i bytes = T::bytes(_mm512_castsi256_si512(load256(T::low(b, i))), _mm512_castsi256_si512(load256(T::high(b, i))), i);
        return rounded(T::first(numbers<0, false>(bytes), p, q), T::second(numbers<16, false>(bytes), p, q));
    }
    static pairs pair(const char * x, const char * y, int64_t i, const float * s) {
        const block & a = *(const block *) x, & b = *(const block *) y;
        const __m512i bytes = T::bytes(joined(load256(T::low(a, i)), load256(T::low(b, i))), joined(load256(T::high(a, i)), load256(T::high(b, i))), i);
        const __m512 p = alternating(s), q = alternating(s + 2);
        return {
            rounded(T::first(numbers<0, true>(bytes), p, q), T::first(numbers<8, true>(bytes), p, q)),
            rounded(T::second(numbers<16, true>(bytes), p, q), T::second(numbers<24, true>(bytes), p, q)),
        };
    }
};

// bits [s, s + n) of each byte
inline __m512i bits(__m512i bytes, int s, int n) { return _mm512_srlv_epi16(bytes, _mm512_set1_epi16(s)) & _mm512_set1_epi8((1 << n) - 1); }

// 16 scales, for the first and the second halves of slices
inline parameters halves_of(__m512 scales) {
    const __m512 p_q = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15), scales);
    return {_mm512_castps512_ps256(p_q), _mm512_extractf32x8_ps(p_q, 1)};
}
inline __m512 floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }

struct q6_K {
    using block = block_q6_K;
    static parameters parameters_of(const char * x) {
        const block & b = *(const block *) x;
        return halves_of(floats(_mm_loadu_si128((const __m128i *) b.scales))*_mm512_set1_ps(blocks::half(b.d)));
    }
    // In each half of a block, two slices have the lower bits of their low bytes and two the upper ones.
    static const uint8_t * low(const block & b, int64_t i)  { return b.ql + i/4*64 + i % 2*32; }
    static const uint8_t * high(const block & b, int64_t i) { return b.qh + i/4*32; }
    static __m512i bytes(__m512i low, __m512i high, int64_t i) { return bits(low, i % 4/2*4, 4) | _mm512_slli_epi16(bits(high, i % 4*2, 2), 4); }
    static __m512 first(__m512 u, __m512 p, __m512) { return (u - (BIAS + 32))*p; }
    static __m512 second(__m512 u, __m512, __m512 q) { return (u - (BIAS + 32))*q; }
};

// A slice has two scales and two minima, too many to be prepared.
struct of_q2_K : of_vectors<of_q2_K> {
    static int64_t chunk_bytes(const matrix &) { return sizeof(block_q2_K); }
    static void expand(const char * x, int64_t i, vec * v) {
        const block_q2_K & b = *(const block_q2_K *) x;
        const float d = blocks::half(b.d), min = blocks::half(b.dmin);
        for (int h = 0; h < 2; ++h) {
            const uint8_t scale = b.scales[2*i + h];
            blocks::put(sixteens{v + h}, blocks::bits(blocks::load(b.qs + i/4*32 + h*16), i % 4*2, 2), d*(scale & 15), min*(scale >> 4));
        }
    }
};

struct q3_K {
    using block = block_q3_K;
    static parameters parameters_of(const char * x) {
        const block & b = *(const block *) x;
        // scale i: its low 4 bits are a nibble of bytes 0 to 7, its high 2 in bytes 8 to 11
        uint64_t low;
        uint32_t high;
        memcpy(&low, b.scales, sizeof(low));
        memcpy(&high, b.scales + 8, sizeof(high));
        const uint64_t four = 0x0f0f0f0f0f0f0f0f, two = 0x0303030303030303, high2 = high | (uint64_t) (high >> 2) << 32;
        const __m128i scales = _mm_set_epi64x((low >> 4 & four) | (high2 >> 4 & two) << 4, (low & four) | (high2 & two) << 4);
        return halves_of((floats(scales) - 32.0f)*_mm512_set1_ps(blocks::half(b.d)));
    }
    static const uint8_t * low(const block & b, int64_t i)  { return b.qs + i/4*32; }
    static const uint8_t * high(const block & b, int64_t)   { return b.hmask; }
    static __m512i bytes(__m512i low, __m512i high, int64_t i) { return bits(low, i % 4*2, 2) | _mm512_slli_epi16(bits(high, i, 1), 2); }
    static __m512 first(__m512 u, __m512 p, __m512) { return (u - (BIAS + 4))*p; }
    static __m512 second(__m512 u, __m512, __m512 q) { return (u - (BIAS + 4))*q; }
};

inline parameters scales_and_mins(const uint8_t * p, ggml_half d, ggml_half min) {
    const blocks::six_bits integers(p);
    return {eight(integers.scales)*blocks::half(d), eight(integers.mins)*blocks::half(min)};
}

struct q5_K {
    using block = block_q5_K;
    static parameters parameters_of(const char * x) {
        const block & b = *(const block *) x;
        return scales_and_mins(b.scales, b.d, b.dmin);
    }
    static const uint8_t * low(const block & b, int64_t i)  { return b.qs + i/2*32; }
    static const uint8_t * high(const block & b, int64_t)   { return b.qh; }
    static __m512i bytes(__m512i low, __m512i high, int64_t i) { return bits(low, i % 2*4, 4) | _mm512_slli_epi16(bits(high, i, 1), 4); }
    static __m512 first(__m512 u, __m512 p, __m512 q) { return _mm512_fmsub_ps(u - BIAS, p, q); }
    static __m512 second(__m512 u, __m512 p, __m512 q) { return first(u, p, q); }
};

// Weights of 4 bits: a slice has a table of 16 values, T::table(p, q), which are looked up.
template <class T> struct of_nibbles {
    using block = typename T::block;
    static parameters parameters_of(const char * x) { return T::parameters_of(x); }
    static __m512i row(const char * x, int64_t i, __m512 p, __m512 q) {
        const __m512 t = T::table(p, q);
        return _mm512_permutexvar_epi16(T::indices(x, i), rounded(t, t));
    }
    static pairs pair(const char * a, const char * b, int64_t i, const float * s) {
        const __m512i table = rounded(T::table(_mm512_set1_ps(s[0]), _mm512_set1_ps(s[2])), T::table(_mm512_set1_ps(s[1]), _mm512_set1_ps(s[3])));
        const pairs at = T::indices(a, b, i);
        return {_mm512_permutexvar_epi16(of_both(at.first), table), _mm512_permutexvar_epi16(of_both(at.second), table)};
    }
    // the second row's values are behind the first one's
    static __m512i of_both(__m512i v) { return (v & _mm512_set1_epi16(15)) | _mm512_set1_epi32(16 << 16); }
};

struct q4_K {
    using block = block_q4_K;
    static parameters parameters_of(const char * x) {
        const block_q4_K & b = *(const block_q4_K *) x;
        return scales_and_mins(b.scales, b.d, b.dmin);
    }
    static const uint8_t * at(const char * x, int64_t i) { return ((const block_q4_K *) x)->qs + i/2*32; }
    static __m512 table(__m512 p, __m512 q) {
        return _mm512_fmsub_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), p, q);
    }
    static __m512i indices(const char * x, int64_t i) {
        return _mm512_srlv_epi16(_mm512_cvtepu8_epi16(load256(at(x, i))), _mm512_set1_epi16(i % 2*4));
    }
    static pairs indices(const char * a, const char * b, int64_t i) {
        const __m512i bytes = joined(load256(at(a, i)), load256(at(b, i))), shift = _mm512_set1_epi16(i % 2*4);
        return {
            _mm512_srlv_epi16(_mm512_permutexvar_epi8(byte_order<2, true, 0>::get(), bytes), shift),
            _mm512_srlv_epi16(_mm512_permutexvar_epi8(byte_order<2, true, 16>::get(), bytes), shift),
        };
    }
};

struct iq4_xs {
    using block = block_iq4_xs;
    static parameters parameters_of(const char * x) {
        const block & b = *(const block *) x;
        uint32_t low;
        memcpy(&low, b.scales_l, sizeof(low));
        const uint64_t scales = _pdep_u64(low, 0x0f0f0f0f0f0f0f0f) | _pdep_u64(b.scales_h, 0x3030303030303030);
        return {(eight(scales) - 32.0f)*blocks::half(b.d), _mm256_setzero_ps()};
    }
    static __m128i load(const char * x, int64_t i) { return _mm_loadu_si128((const __m128i *) (((const block *) x)->qs + i*16)); }
    static __m512 table(__m512 p, __m512) { return floats(_mm_loadu_si128((const __m128i *) kvalues_iq4nl))*p; }
    // the lower bits of 16 bytes, then the upper ones
    static __m512i indices(const char * x, int64_t i) {
        const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
        return _mm512_srlv_epi16(_mm512_cvtepu8_epi16(_mm256_broadcastsi128_si256(load(x, i))), shift);
    }
    static pairs indices(const char * a, const char * b, int64_t i) {
        const __m512i bytes = joined(_mm256_castsi128_si256(load(a, i)), _mm256_castsi128_si256(load(b, i)));
        const __m512i v = _mm512_permutexvar_epi8(byte_order<2, true, 0>::get(), bytes);
        return {v, _mm512_srli_epi16(v, 4)};
    }
};

} // namespace slices
