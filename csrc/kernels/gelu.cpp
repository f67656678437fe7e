#include "gelu.h"

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

} // namespace

void llsteer_gelu_f32(int n, float * y, const float * x) {
    int i = 0;
    for (; i + W <= n; i += W) {
        store(y + i, gelu(load(x + i)));
    }
    if (i < n) {
        const vec v = gelu(load(x + i, n - i));
        memcpy(y + i, &v, (n - i)*sizeof(float));
    }
}
