// What a session computes. llama.cpp's graph of a batch is cut where the final hidden
// states go into the head:
//
//   graph  tokens -> hidden states of those tokens whose logits are wanted
//   head   a block of hidden states -> logits over the whole vocabulary, and the targets' probabilities
//
// so that there are never more logits in memory than a block has.
#pragma once

#include "devices.h"
#include "tree.h"

#include "llama-context.h"
#include "llama-graph.h"

#include <map>
#include <memory>
#include <vector>

// What the graphs of a session have in common.
struct graph_base {
    const steer_model & model;
    ggml_prec prec;
    steer_devices devices;
    llama_cparams cparams;
    llama_adapter_cvec  no_cvec;
    llama_adapter_loras no_loras;
    llama_cross         no_cross;
    ggml_gallocr_t allocator; // of the batches' graphs

    graph_base(const steer_model & m, int32_t n_ctx, steer_precision precision);
    ~graph_base() { ggml_gallocr_free(allocator); }
    graph_base(const graph_base &) = delete;
};

// llama.cpp's graph of a batch or a part of it, and the backward nodes behind it.
class computation {
public:
    computation(const computation &) = delete;

protected:
    computation(graph_base & base, const tree & tokens, const llama_adapter_steer & steer, int32_t n_outputs);
    ~computation();

    // Appends the backward nodes. The gradients of these tensors become inputs, which are returned.
    std::vector<ggml_tensor *> differentiate(const std::vector<ggml_tensor *> & of);

    // Decides where the nodes are computed, in their final order.
    void place() { placement = std::make_unique<steer_placement>(base.devices, nodes); }

    // After that, gives these tensors buffers of their own, which computing does not reuse. The first
    // n_constant nodes are computed once.
    void settle(const std::vector<ggml_tensor *> & lasting, int n_constant);

    graph_base & base;
    llama_adapter_steer steer;
    llama_ubatch ubatch;
    std::unique_ptr<llm_graph_result> result;
    std::vector<ggml_tensor *> attended; // what the blocks' attentions give, before their output matrix
    std::map<int32_t, ggml_tensor *> steered; // by layer: what its operation gives
    ggml_cgraph * nodes = nullptr;
    int n_forward = 0, n_nodes = 0;
    std::unique_ptr<steer_placement> placement;
    std::vector<ggml_backend_buffer_t> kept;
};

class graph : computation {
public:
    // observed: the layer whose input is observed, or -1
    graph(graph_base & base, tree && tokens, const llama_adapter_steer & steer, int32_t observed);

    // The residual stream at the input of a layer, of all tokens: as the layers below leave it, steered or not,
    // and as its block reads it, which is after the layer's own steering.
    ggml_tensor * layer_input(int32_t layer) const;
    ggml_tensor * layer_read(int32_t layer) const;

    // Appends the backward nodes. twice: activations are not kept for them, but computed
    // again from checkpoints, block by block. The same bits, in less memory.
    void differentiate(bool twice);
    ggml_tensor * gradient(const ggml_tensor * param) const { return ggml_graph_get_grad(nodes, param); }

    // Decides what outlives a computation: inputs, outputs, their gradients, and where a
    // constant part borders on the rest. To be called once, before forward.
    void settle(const std::vector<ggml_tensor *> & outputs);

    // The allocator's memory is about to be used by another graph.
    void leave();

    void forward();
    void backward();

    int32_t n_rows() const { return outputs.size(); }
    size_t row(int32_t i) const; // where in the hidden states that of the i-th token begins whose logits are wanted

    std::string describe() const { return placement->describe(); }

    tree tokens;
    ggml_tensor * hidden   = nullptr; // final hidden states
    ggml_tensor * stream   = nullptr; // observed, [n_embd, n_tokens]
    ggml_tensor * d_hidden = nullptr;
    ggml_tensor * d_stream = nullptr;

private:
    void compute_twice();

    std::vector<int32_t> outputs; // the tokens whose logits are wanted
    int n_constant = 0;
    bool allocated = false, constant_done = false;
};

class head : computation {
public:
    head(graph_base & base, int32_t n_rows, double coldness, bool differentiable);
    ~head() { ggml_gallocr_free(allocator); }

    // From the first n hidden states, each of which has a target, to log p and log(1 - p). What backward needs stays.
    void forward(int32_t n, std::vector<softmax_target> & targets);

    // From the weights of that forward's targets to d_hidden. It uses up what forward left.
    void backward(const std::vector<softmax_weight> & weights);

    std::string describe() const;

    ggml_tensor * hidden   = nullptr; // [n_embd, n_rows]
    ggml_tensor * d_hidden = nullptr;

private:
    ggml_tensor * logits   = nullptr; // [n_vocab, n_rows]
    ggml_tensor * d_logits = nullptr; // on their device, too, if the softmax is
    softmax_rows softmax;
    const softmax_on_device * on_device = nullptr; // nullptr: the CPU's
    std::vector<float> copy; // of the logits, for the CPU's
    ggml_gallocr_t allocator;
};
