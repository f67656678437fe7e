#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// GELU in its tanh form, y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), computed in
// float32: within 1e-6 max(1, |x|). y may be x. Finite below -10, for -inf
// too (0 but for the tolerance); NaN stays NaN.
void llsteer_gelu_f32(int n, float * y, const float * x);

#ifdef __cplusplus
}
#endif
