// log p, log(1 - p) and their gradient for chosen entries of softmax rows, over
// vocabularies of hundreds of thousands.
#pragma once

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
    // of one target, weight*coldness*(onehot - p).
    void backward(float * exps, const softmax_weight * weights, size_t n) const;
};
