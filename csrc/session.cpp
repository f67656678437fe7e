// Sessions: losses and gradients over batches in which every shared prefix stands once.

#include "graph.h"

#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

// Bytes of activations that a batch takes, forward and backward, fitted to Gemma-2-2B's shape.
struct footprint {
    double token, block, checkpoint; // of a token: in all variable blocks, in one, and what is kept of each if they are computed twice
    double pair;                     // of a token and one that it attends to, in all variable blocks
    int32_t n_variable;

    footprint(const llama_hparams & h, int32_t first_layer) : n_variable(std::max<int32_t>(1, h.n_layer - first_layer)) {
        block      = 4.0*(8.0*h.n_embd + 2.2*h.n_ff());
        token      = n_variable*block;
        checkpoint = 4.0*n_variable*(h.n_embd + h.n_embd_head_v*h.n_head());
        pair       = 4.0*n_variable*1.4*h.n_head();
    }
    double once(double n) const { return n*token + n*n*pair; }
    double twice(double n) const { return n*(checkpoint + 1.5*block) + std::min(n, 512.0)*n*pair/n_variable*4; }
};

// of a row of logits, forward and backward
double row_bytes(int32_t n_vocab) { return 4*2.8*n_vocab; }

// What a session's activations take is about this, unless the caller says otherwise. Of it, the
// head has two fifths. A batch that would take more becomes several graphs, one after the
// other, each with the prompts of its own sequences; or, where its sequences have most
// tokens in common, one that is computed twice.
constexpr double MEMORY = 1.5e9;
constexpr double HEAD_PART = 0.4;
// a graph that is computed twice may take more than its part: otherwise its sequences' common tokens were computed more often still
constexpr double MOST_TWICE = 3;

} // namespace

struct steer_session {
    steer_session_options options;
    std::vector<int32_t> layers;
    std::unique_ptr<graph_base> base;
    ggml_context * params_context = nullptr;
    ggml_backend_buffer_t params_buffer = nullptr;
    std::vector<ggml_tensor *> params; // at each layer vectors, left, right: those that there are
    std::vector<std::unique_ptr<graph>> graphs;
    std::unique_ptr<head> last;      // of all graphs, for n_block of their rows at a time
    int32_t n_block = 0;
    graph * allocated = nullptr;     // which of the graphs has the allocator's memory
    graph * evaluated = nullptr;     // whose activations are there, for a backward pass to use up
    int32_t in_head = -1;            // the first of its rows whose exponentials are there, too
    bool has_params = false;     // from a forward that succeeded
    int32_t n_targets = 0;
    std::vector<float> copy;     // of a result that is on a GPU

    ~steer_session() {
        graphs.clear();
        last.reset();
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
    const int64_t n_embd = s.base->model.model->hparams.n_embd;
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
    s.params_buffer = ggml_backend_alloc_ctx_tensors(s.params_context, s.base->devices.backends.back());
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
    auto s = std::make_unique<steer_session>();
    s->options = options;
    s->layers.assign(options.layers, options.layers + options.n_layers);
    s->options.layers = s->layers.data();
    s->base = std::make_unique<graph_base>(m, *std::max_element(in.n_tokens, in.n_tokens + in.n_sequences), options.precision);
    const llama_adapter_steer steer = make_params(*s);

    const bool observes = options.observed_layer >= 0;
    const int32_t n_strengths = s->layers.empty() ? 0 : options.n_vectors + options.rank;
    const footprint bytes(m.model->hparams, s->layers.empty() ? m.model->hparams.n_layer : s->layers[0]);
    const double memory = options.memory > 0 ? options.memory : MEMORY;
    const double of_graph = memory*(1 - HEAD_PART);
    int32_t n_rows = 0;
    auto finish = [&](tree && t) {
        const bool twice = bytes.once(t.nodes.size()) > of_graph;
        auto g = std::make_unique<graph>(*s->base, std::move(t), steer, options.observed_layer);
        std::vector<ggml_tensor *> gradients;
        if (!s->layers.empty()) {
            g->differentiate(twice);
            for (const ggml_tensor * p : s->params) {
                gradients.push_back(g->gradient(p));
            }
        }
        g->settle(gradients);
        n_rows = std::max(n_rows, g->n_rows());
        s->graphs.push_back(std::move(g));
    };
    tree t;
    const steer_token * tokens = in.tokens;
    const float * strengths = in.strengths;
    for (int32_t i = 0; i < in.n_sequences; ++i) {
        tree with = t;
        with.add(tokens, in.n_tokens[i], in.n_prompt[i], strengths, n_strengths, s->n_targets, observes);
        const size_t n = with.nodes.size(), n_new = n - t.nodes.size();
        const bool fits = bytes.once(n) <= of_graph || (2*n_new < (size_t) in.n_tokens[i] && bytes.twice(n) <= MOST_TWICE*of_graph);
        if (t.n_sequences > 0 && (!fits || with.n_sequences > LLAMA_MAX_SEQ)) {
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
    const int32_t most = std::max(1.0, std::floor(memory*HEAD_PART/row_bytes(llama_vocab_n_tokens(llama_model_get_vocab(m.model)))));
    const int32_t n_blocks = (n_rows + most - 1)/most;
    s->n_block = (n_rows + n_blocks - 1)/n_blocks;
    s->last = std::make_unique<head>(*s->base, s->n_block, options.coldness, !s->layers.empty());
    return s;
}

// ---- API -----------------------------------------------------------------------

steer_status steer_differentiable(const steer_model * m, const int32_t * layers, int32_t n_layers, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        steer_check_layers(*m, layers, n_layers, steer_n_layer(*m));
        if (n_layers < 1) {
            steer_throw(STEER_BAD_INPUT, "a gradient is with respect to a steering at some layer, and none is given");
        }
        graph_base base(*m, 2, STEER_F32);
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
        graph(base, std::move(t), steer, -1).differentiate(false);
        head(base, 1, 1, true);
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

int64_t steer_session_nodes(const steer_session * s, char * text, int64_t size) {
    std::string all;
    for (const auto & g : s->graphs) {
        all += g->describe();
    }
    all += s->last->describe();
    std::copy_n(all.data(), std::min<int64_t>(size, all.size()), text);
    return all.size();
}

// Runs the head on the rows of a graph from first on, and reads their targets; the
// exponentials stay for backward.
static void evaluate_rows(steer_session & s, const graph & g, int32_t first, steer_prob * probs) {
    s.in_head = -1;
    const int32_t n = std::min(s.n_block, g.n_rows() - first);
    const size_t row_size = s.last->hidden->nb[1];
    const float * hidden = steer_numbers(g.hidden, s.copy);
    for (int32_t i = 0; i < n; ++i) {
        memcpy((char *) s.last->hidden->data + i*row_size, hidden + g.row(first + i), row_size);
    }
    std::vector<softmax_target> targets;
    std::vector<int32_t> index;
    for (const auto & t : g.tokens.targets) {
        if (t.row >= first && t.row < first + n) {
            targets.push_back({ t.row - first, t.token, 0, 0 });
            index.push_back(t.index);
        }
    }
    s.last->forward(n, targets);
    for (size_t i = 0; i < targets.size(); ++i) {
        probs[index[i]] = { targets[i].log_p, targets[i].log_1mp };
    }
    s.in_head = first;
}

// Runs a graph forward. probs is null or gets what becomes of its targets, streams is null
// or gets the observed stream of each.
static void evaluate(steer_session & s, graph & g, steer_prob * probs, float * streams) {
    s.evaluated = nullptr;
    s.in_head = -1;
    s.forward(g);
    s.evaluated = &g;
    for (int32_t first = 0; probs && first < g.n_rows(); first += s.n_block) {
        evaluate_rows(s, g, first, probs);
    }
    if (streams && g.stream) {
        const int64_t n_embd = g.stream->ne[0];
        const float * of_nodes = steer_numbers(g.stream, s.copy);
        for (const auto & t : g.tokens.targets) {
            const float * x = of_nodes + t.node*n_embd;
            std::copy(x, x + n_embd, streams + t.index*n_embd);
        }
    }
}

steer_status steer_session_forward(steer_session * s, const float * params, steer_prob * probs, float * streams, const int32_t * cancel, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        s->base->devices.set_cancel(cancel);
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
        s->base->devices.set_cancel(cancel);
        std::vector<double> sum(s->n_params());
        std::vector<steer_prob> again(s->n_targets);
        for (size_t i = 0; i < s->graphs.size(); ++i) {
            // the last forward left the last graph evaluated: begin there
            graph & g = *s->graphs[s->graphs.size() - 1 - i];
            if (s->evaluated != &g) {
                evaluate(*s, g, nullptr, nullptr);
            }
            std::fill((float *) g.d_hidden->data, (float *) g.d_hidden->data + ggml_nelements(g.d_hidden), 0.0f);
            // and of its rows with those that are in the head
            const int32_t n_blocks = (g.n_rows() + s->n_block - 1)/s->n_block;
            for (int32_t first = (n_blocks - 1)*s->n_block; first >= 0; first -= s->n_block) {
                if (s->in_head != first) {
                    evaluate_rows(*s, g, first, again.data());
                }
                s->in_head = -1;
                std::vector<softmax_weight> of_rows;
                for (const auto & t : g.tokens.targets) {
                    if (t.row >= first && t.row < first + s->n_block) {
                        of_rows.push_back({ t.row - first, t.token, weights[t.index] });
                    }
                }
                s->last->backward(of_rows);
                const int64_t n_embd = g.d_hidden->ne[0];
                const float * d = steer_numbers(s->last->d_hidden, s->copy);
                for (int32_t i = 0; i < std::min(s->n_block, g.n_rows() - first); ++i) {
                    std::copy(d + i*n_embd, d + (i + 1)*n_embd, (float *) g.d_hidden->data + g.row(first + i));
                }
            }
            s->evaluated = nullptr;
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
                const float * d = steer_numbers(g.gradient(p), s->copy);
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

steer_status steer_activations(const steer_model * m, const steer_token * tokens, int32_t n_tokens, const steer_operation * operations, int32_t n_operations,
    const float * strengths, int32_t n_strengths, const int32_t * layers, int32_t n_layers, float * x, const int32_t * cancel, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        steer_check_layers(*m, layers, n_layers, steer_n_layer(*m));
        // the batch leaves out the last token
        const int32_t n = n_tokens + 1;
        std::vector<steer_token> with_target(tokens, tokens + n_tokens);
        with_target.push_back(0);
        std::vector<float> strengths_with_target;
        for (int32_t k = 0; k < n_strengths; ++k) {
            strengths_with_target.insert(strengths_with_target.end(), strengths + (size_t) k*n_tokens, strengths + (size_t) (k + 1)*n_tokens);
            strengths_with_target.push_back(0);
        }
        check_sequences(*m, { 1, &n, &n_tokens, with_target.data(), nullptr });
        const steer_operations given(*m, operations, n_operations, n_strengths);
        llama_adapter_steer steer;
        steer.ops = given.of_layer;
        graph_base base(*m, n, STEER_F32);
        base.devices.set_cancel(cancel);
        tree t;
        t.add(with_target.data(), n, n_tokens, strengths_with_target.data(), n_strengths, 0, false);
        graph g(base, std::move(t), steer, -1);
        std::vector<ggml_tensor *> streams;
        for (int32_t i = 0; i < n_layers; ++i) {
            streams.push_back(g.layer_read(layers[i]));
        }
        g.settle(streams);
        g.forward();
        for (const ggml_tensor * stream : streams) {
            ggml_backend_tensor_get(stream, x, 0, ggml_nbytes(stream));
            x += ggml_nelements(stream);
        }
    });
}
