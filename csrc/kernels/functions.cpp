#include "functions.h"

#include "lanes.h"

#include <cstring>

namespace {

using namespace lanes;

// e^x for |x| < 87.5 by 2^n e^r with n whole and |r| <= ln(2)/2; NaN stays NaN.
inline vec exp(vec x) {
    const vec magic = all(12582912.0f); // 1.5 2^23: to add it rounds to whole numbers
    const vec shifted = x*1.442695041f + magic;
    const vec n = shifted - magic;
    const vec r = x - n*0.693145751953125f - n*1.428606765330187e-6f; // ln(2) in two parts, the first short
    const float taylor[] = {1.0f/720, 1.0f/120, 1.0f/24, 1.0f/6, 0.5f, 1.0f, 1.0f};
    vec p = all(1.0f/5040); // the rest of the series is below 6e-9
    for (float c : taylor) {
        p = p*r + c;
    }
    const ivec exponent = ((ivec) shifted << 23) + 0x3f800000; // n is in the low bits of shifted
    return p*(vec) exponent;
}

// x/(1 + e^-2u), u the argument of tanh. Beyond 10 it is x in float32, below -10 less
// than 1e-36: with x cut there, nothing overflows. (NaN fails both comparisons.)
inline vec gelu(vec x) {
    const vec above = x < -10.0f ? all(-10.0f) : x;
    const vec z = above > 10.0f ? all(10.0f) : above;
    return above/(1.0f + exp(z*(-1.595769122f - 0.0713548163f*z*z)));
}

// Near 0 the series, whose rest is below 3e-9 of it; else sign(x) (1 - 2/(e^2|x| + 1)), which is 1 in float32 beyond 10.
inline vec tanh(vec x) {
    const vec size = (vec) ((ivec) x & 0x7fffffff), cut = size > 10.0f ? all(10.0f) : size, square = x*x;
    const float taylor[] = {62.0f/2835, -17.0f/315, 2.0f/15, -1.0f/3, 1.0f};
    vec p = all(-1382.0f/155925);
    for (float c : taylor) {
        p = p*square + c;
    }
    const vec far = 1.0f - 2.0f/(exp(cut + cut) + 1.0f);
    const vec signed_far = (vec) ((ivec) far | ((ivec) x & (ivec) all(-0.0f)));
    return size < 0.3f ? x*p : signed_far;
}

inline vec sigmoid(vec x) {
    const vec above = x < -87.0f ? all(-87.0f) : x, cut = above > 87.0f ? all(87.0f) : above;
    return 1.0f/(1.0f + exp(-cut));
}

template <vec F(vec)> inline void apply(int n, float * y, const float * x) {
    int i = 0;
    for (; i + W <= n; i += W) {
        store(y + i, F(load(x + i)));
    }
    if (i < n) {
        const vec v = F(load(x + i, n - i));
        memcpy(y + i, &v, (n - i)*sizeof(float));
    }
}

} // namespace

void llsteer_gelu_f32(int n, float * y, const float * x) { apply<gelu>(n, y, x); }
void llsteer_tanh_f32(int n, float * y, const float * x) { apply<::tanh>(n, y, x); }
void llsteer_sigmoid_f32(int n, float * y, const float * x) { apply<sigmoid>(n, y, x); }

double llsteer_dot_f32(int n, const float * x, const float * y) {
    typedef double doubles __attribute__((vector_size(8*W)));
    constexpr int SUMS = 4; // at once, for one addition takes as long as several
    doubles sums[SUMS] = {};
    int i = 0;
    for (; i + SUMS*W <= n; i += SUMS*W) {
        for (int j = 0; j < SUMS; ++j) {
            sums[j] += __builtin_convertvector(load(x + i + j*W)*load(y + i + j*W), doubles);
        }
    }
    const doubles all_sums = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = 0;
    for (int j = 0; j < W; ++j) {
        sum += all_sums[j];
    }
    for (; i < n; ++i) {
        sum += (double) (x[i]*y[i]);
    }
    return sum;
}
