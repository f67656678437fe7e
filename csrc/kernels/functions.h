// Functions of the elements of a row, vectorized for this variant's processor, for ggml's CPU backend.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// GELU in its tanh form, y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), computed in
// float32: within 1e-6 max(1, |x|). y may be x. Finite below -10, for -inf
// too (0 but for the tolerance); NaN stays NaN.
void llsteer_gelu_f32(int n, float * y, const float * x);

// tanh x, within 1e-6 of itself; NaN stays NaN. y may be x.
void llsteer_tanh_f32(int n, float * y, const float * x);

// 1/(1 + e^-x), within 1e-6 of itself, and of 0 below -87; NaN stays NaN. y may be x.
void llsteer_sigmoid_f32(int n, float * y, const float * x);

// The sum of x y, each product in float32, summed in double.
double llsteer_dot_f32(int n, const float * x, const float * y);

#ifdef __cplusplus
}
#endif
