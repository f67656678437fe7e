#include "softmax.h"

#include "processors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

// e[i] = exp(k*(z[i] - max)) for arguments up to 0, 2e-7 relative; 0 below -87.
// Written so that compilers vectorize it.
STEER_PROCESSORS
static void exp_all(const float * z, float * e, int64_t n, float k, float max) {
    constexpr int BLOCK = 64;
    for (int64_t i0 = 0; i0 < n; i0 += BLOCK) {
        const int m = (int) std::min<int64_t>(BLOCK, n - i0);
        float block[BLOCK];
        for (int i = 0; i < m; ++i) {
            const float x = k*(z[i0 + i] - max);
            const float c = x < -87.0f ? -87.0f : x;
            // exp x = 2^n exp r; adding 1.5*2^23 rounds to an integer
            const float shifted = c*1.44269504088896f + 12582912.0f;
            const float n2 = shifted - 12582912.0f;
            const float r = (c - n2*0.693145751953125f) - n2*1.42860682030941723e-6f;
            float p = 1.0f/5040;
            p = p*r + 1.0f/720;
            p = p*r + 1.0f/120;
            p = p*r + 1.0f/24;
            p = p*r + 1.0f/6;
            p = p*r + 0.5f;
            p = p*r + 1.0f;
            p = p*r + 1.0f;
            const int32_t bits = ((int32_t) n2 + 127) << 23;
            float scale;
            memcpy(&scale, &bits, sizeof(scale));
            // NaN must stay NaN: the comparison is false for it
            block[i] = x < -87.0f ? 0.0f : p*scale;
        }
        memcpy(e + i0, block, m*sizeof(float));
    }
}

STEER_PROCESSORS
static double sum_of(const float * e, int64_t n) {
    constexpr int LANES = 16;
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; ++l) {
            lanes[l] += e[i + l];
        }
    }
    double sum = 0;
    for (; i < n; ++i) {
        sum += e[i];
    }
    for (const double lane : lanes) {
        sum += lane;
    }
    return sum;
}

template <typename F> static void parallel(int32_t threads, int64_t n, F f) {
    const int64_t used = std::min<int64_t>(threads, n);
    std::vector<std::thread> others;
    for (int64_t t = 1; t < used; ++t) {
        others.emplace_back([=] { for (int64_t i = t; i < n; i += used) f(i); });
    }
    for (int64_t i = 0; i < n; i += std::max<int64_t>(1, used)) {
        f(i);
    }
    for (auto & t : others) {
        t.join();
    }
}

template <typename T> static std::vector<std::vector<T *>> by_row(T * items, size_t n) {
    std::map<int32_t, std::vector<T *>> rows;
    for (size_t i = 0; i < n; ++i) {
        rows[items[i].row].push_back(&items[i]);
    }
    std::vector<std::vector<T *>> list;
    for (auto & r : rows) {
        list.push_back(std::move(r.second));
    }
    return list;
}

void softmax_rows::forward(const float * logits, float * exps, softmax_target * targets, size_t n) const {
    const auto rows = by_row(targets, n);
    parallel(threads, rows.size(), [&](int64_t i) {
        const int64_t offset = (int64_t) rows[i][0]->row*n_vocab;
        const float * z = logits + offset;
        std::vector<float> own(exps ? 0 : n_vocab);
        float * e = exps ? exps + offset : own.data();
        const int64_t top = std::max_element(z, z + n_vocab) - z;
        exp_all(z, e, n_vocab, (float) coldness, z[top]);
        // the largest apart, so that 1 - p is accurate when p is near 1
        const double others = sum_of(e, top) + sum_of(e + top + 1, n_vocab - top - 1);
        const double sum = others + e[top];
        for (softmax_target * t : rows[i]) {
            t->log_p   = coldness*((double) z[t->token] - z[top]) - std::log(sum);
            t->log_1mp = t->token == top ? std::log(others) - std::log(sum) : std::log1p(-e[t->token]/sum);
        }
    });
}

void softmax_rows::backward(float * exps, const softmax_weight * weights, size_t n) const {
    const auto rows = by_row(weights, n);
    parallel(threads, rows.size(), [&](int64_t i) {
        float * e = exps + (int64_t) rows[i][0]->row*n_vocab;
        std::map<int32_t, double> targets; // the weights of each, then its gradient
        double total = 0;
        int64_t top = rows[i][0]->token; // the likeliest of them
        for (const softmax_weight * w : rows[i]) {
            targets[w->token] += w->weight;
            total += w->weight;
            top = e[w->token] > e[top] ? w->token : top;
        }
        // apart, so that 1 - p is accurate when p is near 1
        const double others = sum_of(e, top) + sum_of(e + top + 1, n_vocab - top - 1);
        const double sum = others + e[top];
        for (auto & t : targets) {
            const double p = e[t.first]/sum, complement = (t.first == top ? others : sum - e[t.first])/sum;
            t.second = coldness*(t.second*complement - (total - t.second)*p);
        }
        const float factor = (float) (-total*coldness/sum);
        for (int64_t j = 0; j < n_vocab; ++j) {
            e[j] *= factor;
        }
        for (const auto & t : targets) {
            e[t.first] = (float) t.second;
        }
    });
}
