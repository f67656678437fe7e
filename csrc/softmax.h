// log p, log(1 - p) and their gradient for chosen entries of softmax rows, over
// vocabularies of hundreds of thousands.
#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>

struct softmax_target {
    int32_t row, token;
    double log_p, log_1mp; // out
};

struct softmax_weight {
    int32_t row, token;
    double weight; // of log p
};

// p = softmax(coldness*logits) for rows of n_vocab logits.
struct softmax_rows {
    int32_t n_vocab;
    double coldness;
    int32_t threads;

    // targets are sorted by row or not; rows without one are not looked at. exps, if
    // given, keeps exp(coldness*(z - max)) of every logit for backward; it has the logits' shape.
    void forward(const float * logits, float * exps, softmax_target * targets, size_t n) const;

    // Turns exps into the gradient of sum weight*log_p with respect to the logits:
    // of one target, weight*coldness*(onehot - p), accurate for the target too where p is near 1.
    void backward(float * exps, const softmax_weight * weights, size_t n) const;
};

// The same on a GPU, where the logits are: logits and exps point into its memory. What a call does is done
// when it returns. A backend that has it names it SOFTMAX_ON_DEVICE among its functions: that returns a softmax_on_device *.
struct softmax_on_device {
    void (*forward)(ggml_backend_t backend, const softmax_rows & rows, const float * logits, float * exps, softmax_target * targets, size_t n);
    void (*backward)(ggml_backend_t backend, const softmax_rows & rows, float * exps, const softmax_weight * weights, size_t n);
};
#define SOFTMAX_ON_DEVICE "llsteer_softmax"
