#include "graph.h"

#include "ggml-impl.h"
#include "llama-model.h"

#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

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

#define NO_HIDDEN "models of architecture %s have no gradient here: their logits are not computed from a final hidden state of each token"

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

} // namespace

graph_base::graph_base(const steer_model & m, int32_t n_ctx, steer_precision precision) : model(m), prec(steer_prec(precision)), devices(m) {
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
    allocator = devices.new_allocator();
}

// ---- computation ---------------------------------------------------------------

computation::computation(graph_base & base, const tree & tokens, const llama_adapter_steer & steer, int32_t n_outputs) : base(base), steer(steer) {
    const llama_model & model = *base.model.model;
    ubatch = tokens.ubatch(model.hparams.n_pos_per_embd());

    // more than any model has nodes, forward and backward, with attention in chunks: ggml aborts where a graph is full
    const size_t n_max = 8192 + 64*(model.tensors_by_name.size() + model.hparams.n_layer*(tokens.nodes.size()/256));
    result = std::make_unique<llm_graph_result>(n_max);
    llm_graph_params params = {
        model.arch, model.hparams, base.cparams, ubatch, LLM_GRAPH_TYPE_DEFAULT, nullptr, base.devices.backends.back(),
        &base.no_cvec, &base.no_loras, nullptr, &base.no_cross, (uint32_t) n_outputs,
        [this](const llama_ubatch &, ggml_tensor * t, const char * name, int il) {
            if (il >= 0) {
                ggml_format_name(t, "%s-%d", name, il);
            } else {
                ggml_set_name(t, name);
            }
            if (strcmp(name, "kqv_out") == 0) {
                attended.push_back(t);
            } else if (strcmp(name, "steer") == 0) {
                steered[il] = t;
            }
        },
        result.get(), &this->steer, 0,
    };
    nodes = model.build_graph(params);
}

computation::~computation() {
    for (ggml_backend_buffer_t buffer : kept) {
        ggml_backend_buffer_free(buffer);
    }
}

std::vector<ggml_tensor *> computation::differentiate(const std::vector<ggml_tensor *> & of) {
    check_backward(base.model, nodes);
    for (ggml_tensor * t : of) {
        t->flags |= GGML_TENSOR_FLAG_LOSS;
    }
    nodes = ggml_graph_dup(result->get_ctx(), nodes, true);
    ggml_build_backward_expand(result->get_ctx(), nodes, nullptr);
    n_nodes = ggml_graph_n_nodes(nodes);
    ggml_graph_set_prec(nodes, base.prec);
    // what no device can compute: it would abort
    for (int i = 0; i < n_nodes; ++i) {
        const ggml_tensor * t = nodes->nodes[i];
        if (!base.devices.support(t)) {
            steer_throw(STEER_BAD_INPUT, "models of architecture %s have no gradient here: the backend cannot compute %s of %s", llm_arch_name(base.model.model->arch), ggml_op_desc(t), t->src[0] ? ggml_type_name(t->src[0]->type) : "nothing");
        }
    }
    std::vector<ggml_tensor *> gradients;
    for (const ggml_tensor * t : of) {
        gradients.push_back(ggml_graph_get_grad_acc(nodes, t));
        ggml_set_input(gradients.back());
    }
    return gradients;
}

void computation::settle(const std::vector<ggml_tensor *> & lasting, int n_constant) {
    placement->connect({ n_constant, n_forward, n_nodes }, 1);
    for (size_t device = 0; device < base.devices.backends.size(); ++device) {
        ggml_backend_buffer_type_t type = base.devices.memory(device);
        const size_t align = ggml_backend_buft_get_alignment(type);
        std::vector<ggml_tensor *> tensors;
        size_t size = 0;
        for (ggml_tensor * t : lasting) {
            if (!t->buffer && placement->of(t) == (int) device) {
                tensors.push_back(t);
                size += GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), align);
            }
        }
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, size);
        if (!buffer) {
            throw std::bad_alloc();
        }
        kept.push_back(buffer);
        char * at = (char *) ggml_backend_buffer_get_base(buffer);
        for (ggml_tensor * t : tensors) {
            ggml_backend_tensor_alloc(buffer, t, at);
            at += GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), align);
        }
    }
}

// ---- graph -----------------------------------------------------------------------

graph::graph(graph_base & base, tree && t, const llama_adapter_steer & steer, int32_t observed) :
    computation(base, t, steer, std::count_if(t.nodes.begin(), t.nodes.end(), [](const tree::node & n) { return n.output; })), tokens(std::move(t)) {
    this->steer.strength = [this](int32_t k, const llama_ubatch &, uint32_t i) { return tokens.nodes[i].strengths[k]; };
    outputs = tokens.number_rows();
    hidden = result->get_embd();
    int n = 0;
    while (hidden && n < nodes->n_nodes && nodes->nodes[n] != hidden) {
        ++n;
    }
    if (!hidden || n == nodes->n_nodes || !ggml_is_contiguous(hidden) || (ggml_nrows(hidden) != n_rows() && ggml_nrows(hidden) != (int64_t) tokens.nodes.size())) {
        steer_throw(STEER_BAD_INPUT, NO_HIDDEN, llm_arch_name(base.model.model->arch));
    }
    n_forward = n_nodes = nodes->n_nodes = n + 1; // what follows is the head
    ggml_graph_set_prec(nodes, base.prec);
    hidden->flags |= GGML_TENSOR_FLAG_OUTPUT;
    if (observed >= 0) {
        stream = layer_input(observed);
        stream->flags |= GGML_TENSOR_FLAG_OUTPUT;
    }
    for (const auto & layer : steer.ops) {
        if (!steered.count(layer.first)) {
            steer_throw(STEER_BAD_INPUT, STEER_IGNORED, llm_arch_name(base.model.model->arch), layer.first);
        }
    }
}

size_t graph::row(int32_t i) const {
    // in a few architectures all tokens have hidden states
    return hidden->ne[0]*(ggml_nrows(hidden) == n_rows() ? i : outputs[i]);
}

ggml_tensor * graph::layer_input(int32_t layer) const {
    const auto found = result->t_layer_inp.find(layer);
    if (found == result->t_layer_inp.end() || found->second->ne[0] != base.model.model->hparams.n_embd || ggml_nrows(found->second) != (int64_t) tokens.nodes.size()) {
        steer_throw(STEER_BAD_INPUT, "models of architecture %s show no residual stream at layer %d", llm_arch_name(base.model.model->arch), layer);
    }
    return found->second;
}

ggml_tensor * graph::layer_read(int32_t layer) const {
    ggml_tensor * input = layer_input(layer);
    const auto found = steered.find(layer);
    return found == steered.end() ? input : found->second;
}

void graph::differentiate(bool twice) {
    if (stream) {
        const auto d = computation::differentiate({ hidden, stream });
        d_hidden = d[0];
        d_stream = d[1];
    } else {
        d_hidden = computation::differentiate({ hidden })[0];
    }
    if (twice) {
        compute_twice();
    }
}

// Before each backward node come copies of the forward nodes that it reads, and of what
// these read, back to a checkpoint. A copy stands for all backward nodes behind it, and the
// allocator gives its memory away after the last of them.
void graph::compute_twice() {
    ggml_cgraph forward_nodes = ggml_graph_view(nodes, 0, n_forward);
    const auto variable = variable_nodes(&forward_nodes);
    std::unordered_set<const ggml_tensor *> dropped(variable.begin(), variable.end());
    for (const ggml_tensor * t : variable) {
        if (t->op == GGML_OP_NONE) {
            dropped.erase(t);
        }
    }
    dropped.erase(hidden);
    dropped.erase(stream);
    for (const ggml_tensor * t : attended) {
        dropped.erase(t);
    }
    for (const auto & input : result->t_layer_inp) {
        dropped.erase(input.second);
    }

    std::vector<ggml_tensor *> order(nodes->nodes, nodes->nodes + n_forward);
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copies;
    std::function<ggml_tensor *(ggml_tensor *)> again = [&](ggml_tensor * t) {
        if (!dropped.count(t)) {
            return t;
        }
        const auto found = copies.find(t);
        if (found != copies.end()) {
            return found->second;
        }
        ggml_tensor * copy = ggml_dup_tensor(result->get_ctx(), t);
        memcpy(copy->nb, t->nb, sizeof(t->nb));
        memcpy(copy->op_params, t->op_params, sizeof(t->op_params));
        memcpy(copy->name, t->name, sizeof(t->name));
        copy->op = t->op;
        for (int i = 0; i < GGML_MAX_SRC; ++i) {
            copy->src[i] = again(t->src[i]);
            if (copy->src[i] && copy->src[i] == t->src[i]) { // a checkpoint has one more reader, which the backend should know
                ++nodes->use_counts[ggml_hash_find(&nodes->visited_hash_set, t->src[i])];
            }
        }
        copy->view_src  = again(t->view_src);
        copy->view_offs = t->view_offs;
        copies[t] = copy;
        order.push_back(copy);
        return copy;
    };
    for (int i = n_forward; i < n_nodes; ++i) {
        ggml_tensor * t = nodes->nodes[i];
        for (ggml_tensor *& src : t->src) {
            src = again(src);
        }
        t->view_src = again(t->view_src);
        order.push_back(t);
    }
    if ((int) order.size() > nodes->size) {
        steer_throw(STEER_FAILED, "a graph of %zu nodes, where %d were expected at most", order.size(), nodes->size);
    }
    std::copy(order.begin(), order.end(), nodes->nodes);
    n_nodes = nodes->n_nodes = order.size();
}

void graph::settle(const std::vector<ggml_tensor *> & outputs) {
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
    for (ggml_tensor * d : { d_hidden, d_stream }) {
        if (d) {
            last(d);
        }
    }
    place();
    computation::settle(lasting, n_constant);
    result->set_inputs(&ubatch);
}

void graph::leave() {
    placement->forget();
    allocated = false;
}

void graph::forward() {
    if (!allocated) {
        if (!placement->allocate(base.allocator)) {
            throw std::bad_alloc();
        }
        allocated = true;
    }
    if (!constant_done) {
        placement->compute(0, n_constant);
        constant_done = true;
    }
    placement->compute(n_constant, n_forward);
}

void graph::backward() { placement->compute(n_forward, n_nodes); }

// ---- head ------------------------------------------------------------------------

// the batch of the graph that the head is taken from: any of n_rows tokens
static tree any_tokens(int32_t n_rows) {
    const std::vector<steer_token> tokens(n_rows + 1);
    tree t;
    t.add(tokens.data(), n_rows + 1, 1, nullptr, 0, 0, false);
    return t;
}

head::head(graph_base & base, int32_t n_rows, double coldness, bool differentiable) :
    computation(base, any_tokens(n_rows), {}, n_rows), softmax{ llama_vocab_n_tokens(llama_model_get_vocab(base.model.model)), coldness, base.model.threads } {
    logits = result->get_logits();
    hidden = result->get_embd();
    if (!hidden || !ggml_is_contiguous(hidden) || ggml_nrows(hidden) != n_rows || ggml_nrows(logits) != n_rows) {
        steer_throw(STEER_BAD_INPUT, NO_HIDDEN, llm_arch_name(base.model.model->arch));
    }
    // an input instead of what it was computed from
    hidden->op = GGML_OP_NONE;
    hidden->view_src = nullptr;
    std::fill(std::begin(hidden->src), std::end(hidden->src), nullptr);
    hidden->flags = GGML_TENSOR_FLAG_INPUT | (differentiable ? GGML_TENSOR_FLAG_PARAM : 0);
    logits->flags |= GGML_TENSOR_FLAG_OUTPUT;

    nodes = ggml_new_graph_custom(result->get_ctx(), ggml_graph_size(nodes), false);
    ggml_build_forward_expand(nodes, logits);
    n_forward = n_nodes = ggml_graph_n_nodes(nodes);
    ggml_graph_set_prec(nodes, base.prec);
    for (int i = 0; i < nodes->n_leafs; ++i) {
        if (nodes->leafs[i] != hidden && (nodes->leafs[i]->flags & GGML_TENSOR_FLAG_INPUT)) {
            steer_throw(STEER_BAD_INPUT, NO_HIDDEN, llm_arch_name(base.model.model->arch));
        }
    }
    std::vector<ggml_tensor *> lasting = { hidden };
    if (differentiable) {
        d_logits = differentiate({ logits })[0];
        d_hidden = ggml_graph_get_grad(nodes, hidden);
        d_hidden->flags |= GGML_TENSOR_FLAG_OUTPUT;
        lasting.push_back(d_logits);
    }
    place();
    const int device = placement->of(logits);
    on_device = base.devices.softmax(device);
    if (on_device && differentiable) {
        placement->put(d_logits, device);
    }
    settle(lasting, 0);
    memset(hidden->data, 0, ggml_nbytes(hidden));
    allocator = base.devices.new_allocator();
    if (!placement->allocate(allocator)) {
        ggml_gallocr_free(allocator);
        throw std::bad_alloc();
    }
}

void head::forward(int32_t n, std::vector<softmax_target> & targets) {
    placement->compute(0, n_forward);
    float * exps = nullptr;
    if (d_logits) {
        exps = (float *) d_logits->data;
        ggml_backend_tensor_memset(d_logits, 0, n*d_logits->nb[1], ggml_nbytes(d_logits) - n*d_logits->nb[1]); // rows without a target
    }
    if (on_device) {
        on_device->forward(base.devices.backends[placement->of(logits)], softmax, (const float *) logits->data, exps, targets.data(), targets.size());
    } else {
        softmax.forward(steer_numbers(logits, copy), exps, targets.data(), targets.size());
    }
}

void head::backward(const std::vector<softmax_weight> & weights) {
    if (on_device) {
        on_device->backward(base.devices.backends[placement->of(logits)], softmax, (float *) d_logits->data, weights.data(), weights.size());
    } else {
        softmax.backward((float *) d_logits->data, weights.data(), weights.size());
    }
    placement->compute(n_forward, n_nodes);
}

std::string head::describe() const {
    const int device = on_device ? placement->of(logits) : base.devices.cpu();
    return placement->describe() + ggml_backend_name(base.devices.backends[device]) + " SOFTMAX of the vocabulary " + logits->name + "\n";
}
