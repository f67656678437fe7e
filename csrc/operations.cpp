#include "internal.h"

#include "llama-model.h"

#include <algorithm>
#include <vector>

steer_operations::steer_operations(const steer_model & model, const steer_operation * operations, int32_t n, int32_t n_strengths) {
    std::vector<int32_t> layers;
    for (int32_t i = 0; i < n; ++i) {
        layers.push_back(operations[i].layer);
    }
    // the input of a block that would follow the last one is its output
    const int32_t n_layer = steer_n_layer(model);
    steer_check_layers(model, layers.data(), n, n_layer + 1);
    auto check = [&](int32_t layer, const int32_t * s, int32_t n) {
        for (int32_t i = 0; i < n; ++i) {
            if (s[i] < 0 || s[i] >= n_strengths) {
                steer_throw(STEER_BAD_INPUT, "the operation at layer %d has strength %d as a factor, and there are %d", layer, s[i], n_strengths);
            }
        }
    };
    for (int32_t i = 0; i < n; ++i) {
        check(layers[i], operations[i].s_vectors, operations[i].n_vectors);
        check(layers[i], operations[i].s_rows, operations[i].rank);
    }

    for (int32_t i = 0; i < n; ++i) {
        const steer_operation & o = operations[i];
        auto & leaves = of_device[model.model->dev_layer(std::min(o.layer, n_layer - 1))];
        if (!leaves.context) {
            leaves.context.reset(ggml_init({ 3*n*ggml_tensor_overhead(), nullptr, true }));
        }
        auto leaf = [&](int64_t rows) { return rows ? ggml_new_tensor_2d(leaves.context.get(), GGML_TYPE_F32, model.model->hparams.n_embd, rows) : nullptr; };
        auto & op = of_layer[o.layer];
        op.vectors = leaf(o.n_vectors);
        op.left    = leaf(o.rank);
        op.right   = leaf(o.rank);
        op.s_vectors.assign(o.s_vectors, o.s_vectors + o.n_vectors);
        op.s_rows.assign(o.s_rows, o.s_rows + o.rank);
    }
    for (auto & device : of_device) {
        device.second.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(device.second.context.get(), ggml_backend_dev_buffer_type(device.first)));
        if (!device.second.buffer) {
            throw std::bad_alloc();
        }
    }
    for (int32_t i = 0; i < n; ++i) {
        const steer_operation & o = operations[i];
        const auto & op = of_layer[o.layer];
        for (const auto & leaf : { std::make_pair(op.vectors, o.vectors), std::make_pair(op.left, o.left), std::make_pair(op.right, o.right) }) {
            if (leaf.first) {
                ggml_backend_tensor_set(leaf.first, leaf.second, 0, ggml_nbytes(leaf.first));
            }
        }
    }
}
