// Sessions: the forward and backward graph of llama.cpp's own model code, over a
// batch in which every shared prefix stands once.

#include "internal.h"
#include "softmax.h"

#include "ggml-alloc.h"
#include "ggml-impl.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <unordered_set>
#include <vector>

namespace {

// ---- which graphs have a gradient -------------------------------------------

// The operations that ggml_compute_backward has a rule for, as patched: it
// aborts on any other.
bool has_backward(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_NONE: case GGML_OP_DUP: case GGML_OP_ADD: case GGML_OP_ADD_ID: case GGML_OP_SUB: case GGML_OP_MUL: case GGML_OP_DIV:
        case GGML_OP_SQR: case GGML_OP_SQRT: case GGML_OP_LOG: case GGML_OP_SIN: case GGML_OP_COS:
        case GGML_OP_SUM: case GGML_OP_SUM_ROWS: case GGML_OP_MEAN: case GGML_OP_REPEAT: case GGML_OP_CONCAT: case GGML_OP_CLAMP:
        case GGML_OP_NORM: case GGML_OP_RMS_NORM: case GGML_OP_MUL_MAT: case GGML_OP_MUL_MAT_ID: case GGML_OP_OUT_PROD: case GGML_OP_SCALE:
        case GGML_OP_CPY: case GGML_OP_CONT: case GGML_OP_RESHAPE: case GGML_OP_VIEW: case GGML_OP_PERMUTE: case GGML_OP_TRANSPOSE:
        case GGML_OP_GET_ROWS: case GGML_OP_SOFT_MAX: case GGML_OP_ROPE:
            return true;
        case GGML_OP_UNARY:
            switch (ggml_get_unary_op(t)) {
                case GGML_UNARY_OP_ABS: case GGML_UNARY_OP_SGN: case GGML_UNARY_OP_NEG: case GGML_UNARY_OP_STEP: case GGML_UNARY_OP_RELU:
                case GGML_UNARY_OP_SILU: case GGML_UNARY_OP_EXP: case GGML_UNARY_OP_EXPM1: case GGML_UNARY_OP_SOFTPLUS:
                case GGML_UNARY_OP_TANH: case GGML_UNARY_OP_SIGMOID: case GGML_UNARY_OP_GELU:
                    return true;
                default:
                    return false;
            }
        case GGML_OP_GLU:
            switch (ggml_get_glu_op(t)) {
                case GGML_GLU_OP_SWIGLU: case GGML_GLU_OP_GEGLU: case GGML_GLU_OP_REGLU: case GGML_GLU_OP_SWIGLU_OAI:
                    return true;
                default:
                    return false;
            }
        default:
            return false;
    }
}

// An operation that has a backward pass although it computes nothing, or into its second source.
bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE || t->op == GGML_OP_CPY;
}

// The nodes that a parameter reaches, in order.
std::vector<ggml_tensor *> variable_nodes(ggml_cgraph * graph) {
    std::unordered_set<const ggml_tensor *> variable;
    std::vector<ggml_tensor *> nodes;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * t = ggml_graph_node(graph, i);
        bool reached = t->flags & GGML_TENSOR_FLAG_PARAM;
        for (int j = 0; j < GGML_MAX_SRC && !reached; ++j) {
            reached = t->src[j] && variable.count(t->src[j]);
        }
        if (reached) {
            variable.insert(t);
            nodes.push_back(t);
        }
    }
    return nodes;
}

// A refusal that names the architecture and the operations without a rule.
void check_backward(const steer_model & m, ggml_cgraph * graph) {
    std::set<std::string> missing;
    for (const ggml_tensor * t : variable_nodes(graph)) {
        if (t->type == GGML_TYPE_I32) {
            continue;
        }
        if (!has_backward(t)) {
            missing.insert(ggml_op_desc(t));
        } else if (t->view_src && !is_view(t)) {
            missing.insert(std::string(ggml_op_desc(t)) + " in place");
        }
    }
    if (!missing.empty()) {
        std::string names;
        for (const auto & name : missing) {
            names += (names.empty() ? "" : ", ") + name;
        }
        steer_throw(STEER_BAD_INPUT, "models of architecture %s have no gradient here: the operation %s has no backward pass", llm_arch_name(m.model->arch), names.c_str());
    }
}

// The kinds of model whose graph is not that of a causal transformer: their
// graph cannot even be built without their memory.
void check_architecture(const steer_model & m, llama_context * context) {
    const char * kind =
        llama_model_is_recurrent(m.model) ? "a recurrent" :
        llama_model_is_hybrid(m.model)    ? "a partly recurrent" :
        llama_model_is_diffusion(m.model) ? "a diffusion" :
        llama_model_has_encoder(m.model)  ? "an encoder" :
        !llama_get_memory(context)        ? "an embedding" : nullptr;
    if (kind) {
        steer_throw(STEER_BAD_INPUT, "models of architecture %s have no gradient here: it is %s architecture, and only causal transformers are differentiated", llm_arch_name(m.model->arch), kind);
    }
}

// Sessions compute on the CPU, in whose memory the weights have to be.
void check_on_cpu(const steer_model & m) {
    for (const auto & named : m.model->tensors_by_name) {
        if (named.second->buffer && !ggml_backend_buffer_is_host(named.second->buffer)) {
            steer_throw(STEER_BAD_INPUT, "gradients and exact probabilities are computed on the CPU, and %s is on %s: open the model with 0 GPU layers", named.first.c_str(), ggml_backend_buffer_name(named.second->buffer));
        }
    }
}

// ---- the batch ---------------------------------------------------------------

struct target {
    int32_t row;   // of the logits
    int32_t index; // among all targets
    steer_token token;
    int32_t node; // of the token itself, if it is in the batch
};

// A tree of tokens: sequences that agree in tokens and strengths up to a point
// share what is before it. A token belongs to the sequences that pass through
// it, and attends to the earlier tokens of all of these.
struct tree {
    struct node {
        steer_token token;
        int32_t pos;
        bool output;
        std::vector<llama_seq_id> sequences;
        std::vector<float> strengths;
        std::vector<int32_t> children;
    };
    std::vector<node> nodes;
    std::vector<int32_t> roots;
    std::vector<target> targets; // row: node, until rows() has numbered the outputs
    int32_t n_sequences = 0;

    int32_t step(std::vector<int32_t> & from, steer_token token, int32_t pos, std::vector<float> && strengths) {
        for (const int32_t i : from) {
            if (nodes[i].token == token && nodes[i].strengths == strengths) {
                return i;
            }
        }
        from.push_back(nodes.size()); // before nodes grows: from may be in it
        nodes.push_back({ token, pos, false, {}, std::move(strengths), {} });
        return nodes.size() - 1;
    }

    // strengths: [n_strengths][n_tokens]; index: of the first target among all. The last
    // token predicts nothing and is left out unless whole.
    void add(const steer_token * tokens, int32_t n_tokens, int32_t n_prompt, const float * strengths, int32_t n_strengths, int32_t index, bool whole) {
        const llama_seq_id id = n_sequences++;
        int32_t at = -1;
        for (int32_t i = 0; i < n_tokens - !whole; ++i) {
            std::vector<float> s(n_strengths);
            for (int32_t k = 0; k < n_strengths; ++k) {
                s[k] = strengths[(size_t) k*n_tokens + i];
            }
            at = step(at < 0 ? roots : nodes[at].children, tokens[i], i, std::move(s));
            nodes[at].sequences.push_back(id);
            if (i >= n_prompt) {
                targets[targets.size() - 1].node = at;
            }
            if (i + 1 >= n_prompt && i + 1 < n_tokens) {
                nodes[at].output = true;
                targets.push_back({ at, index + i + 1 - n_prompt, tokens[i + 1], -1 });
            }
        }
    }

    int32_t n_outputs() const {
        return std::count_if(nodes.begin(), nodes.end(), [](const node & n) { return n.output; });
    }

    // logits have a row for each output, in the order of the nodes; in a few
    // architectures for each node
    void number_rows(bool all) {
        std::vector<int32_t> row(nodes.size());
        int32_t n = 0;
        for (size_t i = 0; i < nodes.size(); ++i) {
            row[i] = all || nodes[i].output ? n++ : -1;
        }
        for (auto & t : targets) {
            t.row = row[t.row];
        }
    }

    llama_ubatch ubatch(int32_t n_pos_per_embd) const {
        auto data = std::make_shared<llama_ubatch::data_t>();
        const size_t n = nodes.size();
        size_t n_ids = 0;
        for (const auto & node : nodes) {
            data->token.push_back(node.token);
            data->n_seq_id.push_back(node.sequences.size());
            data->output.push_back(node.output);
            n_ids += node.sequences.size();
        }
        // M-RoPE: text has the same position in each of the first three dimensions, and none in the fourth
        for (int32_t d = 0; d < n_pos_per_embd; ++d) {
            for (const auto & node : nodes) {
                data->pos.push_back(d < 3 ? node.pos : 0);
            }
        }
        data->seq_id_data.reserve(n_ids);
        for (const auto & node : nodes) {
            data->seq_id.push_back(data->seq_id_data.data() + data->seq_id_data.size());
            data->seq_id_data.insert(data->seq_id_data.end(), node.sequences.begin(), node.sequences.end());
        }
        data->seq_idx.assign(LLAMA_MAX_SEQ, -1);
        for (int32_t s = 0; s < n_sequences; ++s) {
            data->seq_id_unq.push_back(s);
            data->seq_idx[s] = s;
        }
        llama_ubatch u = {};
        u.n_tokens     = n;
        u.n_seq_tokens = 1;
        u.n_seqs       = n;
        u.n_seqs_unq   = n_sequences;
        u.n_pos        = n_pos_per_embd;
        u.token        = data->token.data();
        u.pos          = data->pos.data();
        u.n_seq_id     = data->n_seq_id.data();
        u.seq_id       = data->seq_id.data();
        u.seq_id_unq   = data->seq_id_unq.data();
        u.seq_idx      = data->seq_idx.data();
        u.output       = data->output.data();
        u.data         = data;
        return u;
    }
};

// ---- the graph of a batch -----------------------------------------------------

// Allocates tensors in a buffer of their own, which graphs leave alone.
ggml_backend_buffer_t keep(ggml_backend_t backend, const std::vector<ggml_tensor *> & tensors) {
    ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(backend);
    const size_t align = ggml_backend_buft_get_alignment(type);
    size_t size = 0;
    for (ggml_tensor * t : tensors) {
        size += GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), align);
    }
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, size);
    if (!buffer) {
        throw std::bad_alloc();
    }
    char * at = (char *) ggml_backend_buffer_get_base(buffer);
    for (ggml_tensor * t : tensors) {
        ggml_backend_tensor_alloc(buffer, t, at);
        at += GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), align);
    }
    return buffer;
}

// What the graphs of a session have in common.
struct shared_state {
    const steer_model & model;
    ggml_prec prec;
    steer_backend backend;
    llama_cparams cparams;
    llama_adapter_cvec  no_cvec;
    llama_adapter_loras no_loras;
    llama_cross         no_cross;
    ggml_gallocr_t allocator;

    shared_state(const steer_model & m, int32_t n_ctx, steer_precision precision) : model(m), prec(steer_prec(precision)), backend(m.threads) {
        check_on_cpu(m);
        llama_context * context = steer_context(m, n_ctx, 1, true);
        cparams = context->get_cparams();
        try {
            check_architecture(m, context);
        } catch (...) {
            llama_free(context);
            throw;
        }
        llama_free(context);
        cparams.embeddings = false;
        no_cross.n_embd = m.model->hparams.n_embd;
        allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.backend));
    }
    ~shared_state() { ggml_gallocr_free(allocator); }
};

class graph {
public:
    // observed: the layer whose input is observed, or -1
    graph(shared_state & shared, tree && t, const llama_adapter_steer & steer, int32_t observed) : tokens(std::move(t)), shared(shared), steer(steer) {
        ubatch = tokens.ubatch(shared.model.model->hparams.n_pos_per_embd());
        this->steer.strength = [this](int32_t k, const llama_ubatch &, uint32_t i) { return tokens.nodes[i].strengths[k]; };

        // more than any model has nodes, forward and backward: ggml aborts where a graph is full
        const size_t n_max = 8192 + 64*shared.model.model->tensors_by_name.size();
        result = std::make_unique<llm_graph_result>(n_max);
        llm_graph_params params = {
            shared.model.model->arch, shared.model.model->hparams, shared.cparams, ubatch, LLM_GRAPH_TYPE_DEFAULT, nullptr, shared.backend.backend,
            &shared.no_cvec, &shared.no_loras, nullptr, &shared.no_cross, (uint32_t) tokens.n_outputs(),
            [](const llama_ubatch &, ggml_tensor * t, const char * name, int il) {
                if (il >= 0) {
                    ggml_format_name(t, "%s-%d", name, il);
                } else {
                    ggml_set_name(t, name);
                }
            },
            result.get(), &this->steer, 0,
        };
        nodes = shared.model.model->build_graph(params);
        n_forward = n_nodes = ggml_graph_n_nodes(nodes);
        ggml_graph_set_prec(nodes, shared.prec);
        logits = result->get_logits();
        logits->flags |= GGML_TENSOR_FLAG_OUTPUT;
        const bool all_rows = ggml_nrows(logits) == (int64_t) tokens.nodes.size();
        if (!all_rows && ggml_nrows(logits) != tokens.n_outputs()) {
            steer_throw(STEER_BAD_INPUT, "models of architecture %s have no gradient here: logits of %lld tokens, where those of %d were wanted", llm_arch_name(shared.model.model->arch), (long long) ggml_nrows(logits), tokens.n_outputs());
        }
        tokens.number_rows(all_rows);
        if (observed >= 0) {
            stream = layer_input(observed);
            stream->flags |= GGML_TENSOR_FLAG_OUTPUT;
        }
    }

    ~graph() {
        ggml_backend_buffer_free(kept);
    }
    graph(const graph &) = delete;

    // The residual stream at the input of a layer, of all tokens, steered.
    ggml_tensor * layer_input(int32_t layer) const {
        const auto found = result->t_layer_inp.find(layer);
        if (found == result->t_layer_inp.end() || found->second->ne[0] != shared.model.model->hparams.n_embd || ggml_nrows(found->second) != (int64_t) tokens.nodes.size()) {
            steer_throw(STEER_BAD_INPUT, "models of architecture %s show no residual stream at layer %d", llm_arch_name(shared.model.model->arch), layer);
        }
        return found->second;
    }

    void check_steered() const {
        for (const auto & layer : steer.ops) {
            if (!steer.applied.count(layer.first)) {
                steer_throw(STEER_BAD_INPUT, STEER_IGNORED, llm_arch_name(shared.model.model->arch), layer.first);
            }
        }
    }

    // Refuses what the backend cannot compute: it would abort.
    void check_supported() const {
        for (int i = 0; i < n_nodes; ++i) {
            const ggml_tensor * t = nodes->nodes[i];
            if (!ggml_backend_supports_op(shared.backend.backend, t)) {
                steer_throw(STEER_BAD_INPUT, "models of architecture %s have no gradient here: the backend cannot compute %s of %s", llm_arch_name(shared.model.model->arch), ggml_op_desc(t), t->src[0] ? ggml_type_name(t->src[0]->type) : "nothing");
            }
        }
    }

    // Appends the backward nodes; the gradients of the logits and of the observed
    // stream become inputs.
    void differentiate() {
        check_steered();
        check_backward(shared.model, nodes);
        logits->flags |= GGML_TENSOR_FLAG_LOSS;
        if (stream) {
            stream->flags |= GGML_TENSOR_FLAG_LOSS;
        }
        nodes = ggml_graph_dup(result->get_ctx(), nodes, true);
        ggml_build_backward_expand(result->get_ctx(), nodes, nullptr);
        n_nodes = ggml_graph_n_nodes(nodes);
        ggml_graph_set_prec(nodes, shared.prec);
        d_logits = ggml_graph_get_grad_acc(nodes, logits);
        ggml_set_input(d_logits);
        if (stream) {
            d_stream = ggml_graph_get_grad_acc(nodes, stream);
            ggml_set_input(d_stream);
        }
        check_supported();
    }

    ggml_tensor * gradient(const ggml_tensor * param) const { return ggml_graph_get_grad(nodes, param); }

    // Decides what outlives a computation: inputs, outputs, their gradients, and where a
    // constant part borders on the rest. To be called once, before compute.
    void settle(const std::vector<ggml_tensor *> & outputs) {
        for (ggml_tensor * t : outputs) {
            t->flags |= GGML_TENSOR_FLAG_OUTPUT;
        }
        const auto variable = variable_nodes(nodes); // the backward nodes are among them
        const std::unordered_set<const ggml_tensor *> is_variable(variable.begin(), variable.end());
        std::vector<ggml_tensor *> order;
        for (int i = 0; i < n_forward; ++i) {
            if (!is_variable.count(nodes->nodes[i])) {
                order.push_back(nodes->nodes[i]);
            }
        }
        n_constant = order.size();
        for (int i = 0; i < n_forward; ++i) {
            if (is_variable.count(nodes->nodes[i])) {
                order.push_back(nodes->nodes[i]);
            }
        }
        std::copy(order.begin(), order.end(), nodes->nodes);

        const std::unordered_set<const ggml_tensor *> is_constant(order.begin(), order.begin() + n_constant);
        std::unordered_set<const ggml_tensor *> seen;
        std::vector<ggml_tensor *> lasting;
        auto last = [&](ggml_tensor * t) {
            t = t->view_src ? t->view_src : t;
            if (!t->buffer && !t->data && seen.insert(t).second) {
                lasting.push_back(t);
            }
        };
        for (int i = 0; i < n_nodes; ++i) {
            ggml_tensor * t = nodes->nodes[i];
            for (ggml_tensor * src : t->src) {
                if (src && ((src->flags & GGML_TENSOR_FLAG_INPUT) || (i >= n_constant && is_constant.count(src)))) {
                    last(src);
                }
            }
        }
        for (ggml_tensor * d : { d_logits, d_stream }) {
            if (d) {
                last(d);
            }
        }
        kept = keep(shared.backend.backend, lasting);
        result->set_inputs(&ubatch);
    }

    // The shared allocator's memory is about to be used by another graph.
    void leave() {
        for (int i = 0; i < n_nodes; ++i) {
            leave(nodes->nodes[i]);
        }
        for (int i = 0; i < nodes->n_leafs; ++i) {
            leave(nodes->leafs[i]);
        }
        allocated = false;
    }

    void forward() {
        if (!allocated) {
            if (!ggml_gallocr_alloc_graph(shared.allocator, nodes)) {
                throw std::bad_alloc();
            }
            allocated = true;
        }
        if (!constant_done) {
            compute(0, n_constant);
            constant_done = true;
        }
        compute(n_constant, n_forward);
    }

    void backward() { compute(n_forward, n_nodes); }

    tree tokens;
    ggml_tensor * logits   = nullptr; // [n_vocab, n_outputs]
    ggml_tensor * stream   = nullptr; // observed, [n_embd, n_tokens]
    ggml_tensor * d_logits = nullptr;
    ggml_tensor * d_stream = nullptr;
    std::unique_ptr<llm_graph_result> result;

private:
    void compute(int begin, int end) {
        if (begin == end) {
            return;
        }
        ggml_cgraph part = ggml_graph_view(nodes, begin, end);
        const ggml_status status = ggml_backend_graph_compute(shared.backend.backend, &part);
        if (status == GGML_STATUS_ABORTED) {
            steer_throw(STEER_CANCELLED, "cancelled");
        }
        if (status != GGML_STATUS_SUCCESS) {
            steer_throw(STEER_FAILED, "the computation failed (ggml status %d)", status);
        }
    }

    // only the allocator's buffers are of this usage
    static void leave(ggml_tensor * t) {
        const ggml_tensor * owner = t->view_src ? t->view_src : t;
        if (!owner->buffer || ggml_backend_buffer_get_usage(owner->buffer) == GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
            t->data   = nullptr;
            t->buffer = nullptr;
        }
    }

    shared_state & shared;
    llama_adapter_steer steer;
    llama_ubatch ubatch;
    ggml_cgraph * nodes = nullptr;
    int n_constant = 0, n_forward = 0, n_nodes = 0;
    ggml_backend_buffer_t kept = nullptr;
    bool allocated = false, constant_done = false;
};

// Bytes that a batch takes, forward and backward: used to cut a session into graphs. Fitted
// to Gemma-2-2B's shape, where it is at most 20 % off, and rather too much for smaller models.
struct footprint {
    double token, pair, row; // a token; a pair of tokens, in attention; a row of logits

    footprint(const llama_hparams & h, int32_t n_vocab, int32_t first_layer) {
        const int32_t n_variable = h.n_layer - first_layer;
        token = 4.0*n_variable*(8.0*h.n_embd + 2.2*h.n_ff());
        pair  = 4.0*n_variable*1.4*h.n_head();
        row   = 4.0*2.8*n_vocab;
    }
    double of(const tree & t) const {
        const double n = t.nodes.size();
        return n*token + n*n*pair + t.n_outputs()*row;
    }
};
// a session whose batch would take more is computed in several graphs, one after the
// other, each with the prompts of its own sequences
constexpr double GRAPH_BYTES = 1.5e9;

} // namespace

struct steer_session {
    steer_session_options options;
    std::vector<int32_t> layers;
    std::unique_ptr<shared_state> shared;
    ggml_context * params_context = nullptr;
    ggml_backend_buffer_t params_buffer = nullptr;
    std::vector<ggml_tensor *> params; // at each layer vectors, left, right: those that there are
    std::vector<std::unique_ptr<graph>> graphs;
    graph * allocated = nullptr; // which of them has the allocator's memory
    graph * evaluated = nullptr; // whose activations are there, for a backward pass to use up
    bool has_params = false;     // from a forward that succeeded
    int32_t n_targets = 0;
    softmax_rows softmax;

    explicit steer_session(const softmax_rows & softmax) : softmax(softmax) {}

    ~steer_session() {
        graphs.clear();
        ggml_backend_buffer_free(params_buffer);
        ggml_free(params_context);
    }

    size_t n_params() const {
        size_t n = 0;
        for (const ggml_tensor * p : params) {
            n += ggml_nelements(p);
        }
        return n;
    }

    void forward(graph & g) {
        if (allocated && allocated != &g) {
            allocated->leave();
        }
        allocated = &g;
        g.forward();
    }
};

static llama_adapter_steer make_params(steer_session & s) {
    const int64_t n_embd = s.shared->model.model->hparams.n_embd;
    const int32_t k = s.options.n_vectors, r = s.options.rank;
    llama_adapter_steer steer;
    if (s.layers.empty()) {
        return steer;
    }
    s.params_context = ggml_init({ 3*s.layers.size()*ggml_tensor_overhead(), nullptr, true });
    auto param = [&](int64_t n) {
        ggml_tensor * t = ggml_new_tensor_2d(s.params_context, GGML_TYPE_F32, n_embd, n);
        ggml_set_param(t);
        s.params.push_back(t);
        return t;
    };
    for (const int32_t layer : s.layers) {
        auto & op = steer.ops[layer];
        if (k) {
            op.vectors = param(k);
            for (int32_t i = 0; i < k; ++i) {
                op.s_vectors.push_back(i);
            }
        }
        if (r) {
            op.left  = param(r);
            op.right = param(r);
            for (int32_t i = 0; i < r; ++i) {
                op.s_rows.push_back(k + i);
            }
        }
    }
    s.params_buffer = ggml_backend_alloc_ctx_tensors(s.params_context, s.shared->backend.backend);
    if (!s.params_buffer) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_clear(s.params_buffer, 0);
    return steer;
}

static void check_sequences(const steer_model & m, const steer_sequences & in) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(m.model));
    if (in.n_sequences < 1) {
        steer_throw(STEER_BAD_INPUT, "a session needs at least one sequence");
    }
    const steer_token * tokens = in.tokens;
    for (int32_t i = 0; i < in.n_sequences; ++i) {
        if (in.n_prompt[i] < 1 || in.n_prompt[i] >= in.n_tokens[i]) {
            steer_throw(STEER_BAD_INPUT, "sequence %d has %d tokens, of which %d are its prompt: both prompt and completion need at least one", i, in.n_tokens[i], in.n_prompt[i]);
        }
        for (int32_t j = 0; j < in.n_tokens[i]; ++j, ++tokens) {
            if (*tokens < 0 || *tokens >= n_vocab) {
                steer_throw(STEER_BAD_INPUT, "token %d of sequence %d is %d, and the vocabulary has %d", j, i, *tokens, n_vocab);
            }
        }
    }
}

static std::unique_ptr<steer_session> new_session(const steer_model & m, const steer_session_options & options, const steer_sequences & in) {
    steer_check_layers(m, options.layers, options.n_layers, steer_n_layer(m));
    if (options.observed_layer >= 0) {
        steer_check_layers(m, &options.observed_layer, 1, steer_n_layer(m));
    }
    check_sequences(m, in);
    if (options.n_vectors < 0 || options.rank < 0 || (options.n_layers > 0 && options.n_vectors + options.rank == 0)) {
        steer_throw(STEER_BAD_INPUT, "a steered layer needs vectors or a matrix, not %d and rank %d", options.n_vectors, options.rank);
    }
    if (options.precision != STEER_F32 && options.precision != STEER_BF16) {
        steer_throw(STEER_BAD_INPUT, "a session computes in float32 or in 16 bits, not in precision %d", options.precision);
    }
    if (!(options.coldness > 0) || !std::isfinite(options.coldness)) {
        steer_throw(STEER_BAD_INPUT, "coldness must be above 0, not %g", options.coldness);
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(m.model));
    auto s = std::make_unique<steer_session>(softmax_rows{ n_vocab, options.coldness, m.threads });
    s->options = options;
    s->layers.assign(options.layers, options.layers + options.n_layers);
    s->options.layers = s->layers.data();
    s->shared = std::make_unique<shared_state>(m, *std::max_element(in.n_tokens, in.n_tokens + in.n_sequences), options.precision);
    const llama_adapter_steer steer = make_params(*s);

    const bool observes = options.observed_layer >= 0;
    const int32_t n_strengths = s->layers.empty() ? 0 : options.n_vectors + options.rank;
    const footprint bytes(m.model->hparams, n_vocab, s->layers.empty() ? m.model->hparams.n_layer : s->layers[0]);
    auto finish = [&](tree && t) {
        auto g = std::make_unique<graph>(*s->shared, std::move(t), steer, options.observed_layer);
        std::vector<ggml_tensor *> gradients;
        if (!s->layers.empty()) {
            g->differentiate();
            for (const ggml_tensor * p : s->params) {
                gradients.push_back(g->gradient(p));
            }
        }
        g->settle(gradients);
        s->graphs.push_back(std::move(g));
    };
    tree t;
    const steer_token * tokens = in.tokens;
    const float * strengths = in.strengths;
    for (int32_t i = 0; i < in.n_sequences; ++i) {
        tree with = t;
        with.add(tokens, in.n_tokens[i], in.n_prompt[i], strengths, n_strengths, s->n_targets, observes);
        if (t.n_sequences > 0 && (bytes.of(with) > GRAPH_BYTES || with.n_sequences > LLAMA_MAX_SEQ)) {
            finish(std::move(t));
            t = tree();
            t.add(tokens, in.n_tokens[i], in.n_prompt[i], strengths, n_strengths, s->n_targets, observes);
        } else {
            t = std::move(with);
        }
        tokens += in.n_tokens[i];
        strengths += (size_t) n_strengths*in.n_tokens[i];
        s->n_targets += in.n_tokens[i] - in.n_prompt[i];
    }
    finish(std::move(t));
    return s;
}

// ---- API -----------------------------------------------------------------------

steer_status steer_differentiable(const steer_model * m, const int32_t * layers, int32_t n_layers, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        steer_check_layers(*m, layers, n_layers, steer_n_layer(*m));
        if (n_layers < 1) {
            steer_throw(STEER_BAD_INPUT, "a gradient is with respect to a steering at some layer, and none is given");
        }
        shared_state shared(*m, 2, STEER_F32);
        llama_adapter_steer steer;
        // the same places in the graph as a session's, of any length
        ggml_context * context = ggml_init({ (n_layers + 1)*ggml_tensor_overhead(), nullptr, true });
        std::unique_ptr<ggml_context, void (*)(ggml_context *)> free_context(context, ggml_free);
        for (int32_t i = 0; i < n_layers; ++i) {
            auto & op = steer.ops[layers[i]];
            op.vectors = ggml_new_tensor_2d(context, GGML_TYPE_F32, m->model->hparams.n_embd, 1);
            op.s_vectors = { 0 };
            ggml_set_param(op.vectors);
        }
        tree t;
        const steer_token tokens[] = { 0, 0, 0 };
        const float strengths[] = { 1, 1, 1 };
        t.add(tokens, 3, 1, strengths, 1, 0, false);
        graph(shared, std::move(t), steer, -1).differentiate();
    });
}

steer_status steer_session_new(const steer_model * m, const steer_session_options * options, const steer_sequences * sequences, steer_session ** session, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] { *session = new_session(*m, *options, *sequences).release(); });
}

void steer_session_free(steer_session * session) {
    delete session;
}

int32_t steer_session_n_tokens(const steer_session * s) {
    int32_t n = 0;
    for (const auto & g : s->graphs) {
        n += g->tokens.nodes.size();
    }
    return n;
}

// Runs a graph forward and reads its targets; the exponentials stay for backward.
// streams is null or gets the observed stream of each target.
static void evaluate(steer_session & s, graph & g, steer_prob * probs, float * streams) {
    s.evaluated = nullptr;
    s.forward(g);
    std::vector<softmax_target> targets;
    for (const auto & t : g.tokens.targets) {
        targets.push_back({ t.row, t.token, 0, 0 });
    }
    if (g.d_logits && ggml_nrows(g.d_logits) > g.tokens.n_outputs()) { // rows without a target
        memset(g.d_logits->data, 0, ggml_nbytes(g.d_logits));
    }
    s.softmax.forward((const float *) g.logits->data, g.d_logits ? (float *) g.d_logits->data : nullptr, targets.data(), targets.size());
    for (size_t i = 0; i < targets.size(); ++i) {
        probs[g.tokens.targets[i].index] = { targets[i].log_p, targets[i].log_1mp };
    }
    if (streams && g.stream) {
        const int64_t n_embd = g.stream->ne[0];
        for (const auto & t : g.tokens.targets) {
            const float * x = (const float *) g.stream->data + t.node*n_embd;
            std::copy(x, x + n_embd, streams + t.index*n_embd);
        }
    }
    s.evaluated = &g;
}

steer_status steer_session_forward(steer_session * s, const float * params, steer_prob * probs, float * streams, const int32_t * cancel, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        s->shared->backend.set_cancel(cancel);
        s->has_params = false;
        for (ggml_tensor * p : s->params) {
            ggml_backend_tensor_set(p, params, 0, ggml_nbytes(p));
            params += ggml_nelements(p);
        }
        for (auto & g : s->graphs) {
            evaluate(*s, *g, probs, streams);
        }
        s->has_params = true;
    });
}

steer_status steer_session_backward(steer_session * s, const double * weights, const float * d_streams, float * gradient, const int32_t * cancel, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        if (s->layers.empty()) {
            steer_throw(STEER_BAD_INPUT, "a session without steered layers has no gradient");
        }
        if (!s->has_params) {
            steer_throw(STEER_BAD_INPUT, "a gradient needs a forward evaluation before it");
        }
        s->shared->backend.set_cancel(cancel);
        std::vector<double> sum(s->n_params());
        std::vector<steer_prob> again(s->n_targets);
        for (size_t i = 0; i < s->graphs.size(); ++i) {
            // the last forward left the last graph evaluated: begin there
            graph & g = *s->graphs[s->graphs.size() - 1 - i];
            if (s->evaluated != &g) {
                evaluate(*s, g, again.data(), nullptr);
            }
            std::vector<softmax_weight> of_rows;
            for (const auto & t : g.tokens.targets) {
                of_rows.push_back({ t.row, t.token, weights[t.index] });
            }
            s->evaluated = nullptr;
            s->softmax.backward((float *) g.d_logits->data, of_rows.data(), of_rows.size());
            if (g.d_stream) {
                // several targets share a node where completions share a prefix
                const int64_t n_embd = g.d_stream->ne[0];
                float * d = (float *) g.d_stream->data;
                std::fill(d, d + ggml_nelements(g.d_stream), 0.0f);
                for (const auto & t : g.tokens.targets) {
                    for (int64_t j = 0; d_streams && j < n_embd; ++j) {
                        d[t.node*n_embd + j] += d_streams[t.index*n_embd + j];
                    }
                }
            }
            g.backward();
            size_t at = 0;
            for (const ggml_tensor * p : s->params) {
                const float * d = (const float *) g.gradient(p)->data;
                const int64_t n = ggml_nelements(p);
                for (int64_t j = 0; j < n; ++j) {
                    sum[at + j] += d[j];
                }
                at += n;
            }
        }
        std::copy(sum.begin(), sum.end(), gradient);
    });
}

steer_status steer_activations(const steer_model * m, const steer_token * tokens, int32_t n_tokens, const int32_t * layers, int32_t n_layers, float * x, const int32_t * cancel, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        steer_check_layers(*m, layers, n_layers, steer_n_layer(*m));
        std::vector<steer_token> with_target(tokens, tokens + n_tokens); // the batch leaves out the last token
        with_target.push_back(0);
        const int32_t n = n_tokens + 1;
        check_sequences(*m, { 1, &n, &n_tokens, with_target.data(), nullptr });
        shared_state shared(*m, n, STEER_F32);
        shared.backend.set_cancel(cancel);
        tree t;
        t.add(with_target.data(), n, n_tokens, nullptr, 0, 0, false);
        graph g(shared, std::move(t), {}, -1);
        std::vector<ggml_tensor *> streams;
        for (int32_t i = 0; i < n_layers; ++i) {
            streams.push_back(g.layer_input(layers[i]));
        }
        g.settle(streams);
        g.forward();
        for (const ggml_tensor * stream : streams) {
            ggml_backend_tensor_get(stream, x, 0, ggml_nbytes(stream));
            x += ggml_nelements(stream);
        }
    });
}
