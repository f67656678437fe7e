// Decoders: llama.cpp's own decoding, steered.

#include "internal.h"
#include "processors.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <vector>

// y[i] += s*x[i]
STEER_PROCESSORS
static void add_scaled(float * y, const float * x, float s, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] += s*x[i];
    }
}

STEER_PROCESSORS
static float dot(const float * x, const float * y, int64_t n) {
    constexpr int LANES = 16;
    float lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; ++l) {
            lanes[l] += x[i + l]*y[i + l];
        }
    }
    float sum = 0;
    for (; i < n; ++i) {
        sum += x[i]*y[i];
    }
    for (const float lane : lanes) {
        sum += lane;
    }
    return sum;
}

// The steering operation as one node of the graph. As several it made the threads wait for each other six times
// a layer, and decoding 3 % slower. Each thread has every n_threads-th token.
static void steer_kernel(ggml_tensor * y, int thread, int n_threads, void *) {
    const int64_t n_embd = y->ne[0], n_tokens = y->ne[1];
    // behind x are two sources, or three, or both
    const bool adds = !y->src[3] || y->src[4];
    const ggml_tensor * vectors = adds ? y->src[1] : nullptr, * s_vectors = adds ? y->src[2] : nullptr;
    const int at = adds ? 3 : 1;
    const ggml_tensor * left = y->src[at], * right = y->src[at + 1], * s_rows = y->src[at + 2];

    auto row = [&](const ggml_tensor * t, int64_t i) { return (float *) ((char *) t->data + i*t->nb[1]); };
    for (int64_t i = thread; i < n_tokens; i += n_threads) {
        const float * x = row(y->src[0], i);
        float * out = row(y, i);
        std::copy(x, x + n_embd, out);
        // what has no strength for a token leaves its bits as they are
        for (int64_t k = 0; vectors && k < vectors->ne[1]; ++k) {
            if (const float s = row(s_vectors, k)[i]) {
                add_scaled(out, row(vectors, k), s, n_embd);
            }
        }
        for (int64_t j = 0; left && j < left->ne[1]; ++j) {
            if (const float s = row(s_rows, j)[i]) {
                add_scaled(out, row(left, j), s*dot(row(right, j), x, n_embd), n_embd);
            }
        }
    }
}

struct steer_decoder {
    const steer_model & model;
    steer_decoder_options options;
    llama_context * context;

    // the steering in use, and its numbers
    llama_adapter_steer steer;
    std::unique_ptr<steer_operations> operations;

    std::vector<llama_pos> position; // of each sequence's next token
    // of the tokens that are being decoded: strengths [n_strengths][n], and where a token of a sequence stands in them
    const float * strengths = nullptr;
    int32_t n_decoding = 0;
    std::map<std::pair<llama_seq_id, llama_pos>, int32_t> column;
    const int32_t * cancel = nullptr;

    steer_decoder(const steer_model & m, const steer_decoder_options & options) :
        model(m), options(options), context(steer_context(m, options.n_ctx, options.n_seq, options.precision != STEER_ORDINARY, options.n_cells)), position(options.n_seq) {
        context->set_prec(steer_prec(options.precision));
        llama_set_abort_callback(context, [](void * self) {
            const int32_t * cancel = ((const steer_decoder *) self)->cancel;
            return cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0;
        }, this);
        if (!steer_off_cpu(model)) {
            steer.kernel = steer_kernel;
        }
        steer.strength = [this](int32_t k, const llama_ubatch & u, uint32_t i) {
            const auto found = column.find({ u.seq_id[i][0], u.pos[i] });
            return found == column.end() ? 0.0f : strengths[(size_t) k*n_decoding + found->second];
        };
    }

    ~steer_decoder() {
        llama_free(context);
    }
    steer_decoder(const steer_decoder &) = delete;

    // cuts a sequence off after n tokens, or after 0 where it could not be continued from there
    void cut(int32_t seq, int32_t n) {
        llama_memory_t memory = llama_get_memory(context);
        // a window's cache may give away the cells of tokens that no later token attends to, always the first ones
        // of a sequence; the token at position n attends to n_swa - 1 before it at most
        const llama_hparams & hparams = model.model->hparams;
        const bool windows = hparams.swa_type != LLAMA_SWA_TYPE_NONE;
        bool whole = llama_memory_seq_rm(memory, seq, n, -1);
        if (whole && windows && n > 0) {
            const llama_pos first = llama_memory_seq_pos_min(memory, seq);
            whole = first >= 0 && first <= std::max<llama_pos>(0, n - (llama_pos) hparams.n_swa + 1);
        }
        if (!whole) { // recurrent models cannot go back, either
            llama_memory_seq_rm(memory, seq, -1, -1);
            n = 0;
        }
        position[seq] = n;
    }
};

steer_status steer_decoder_new(const steer_model * m, const steer_decoder_options * options, steer_decoder ** decoder, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        if (options->n_ctx < 1 || options->n_seq < 1 || options->n_seq > (int32_t) llama_max_parallel_sequences()) {
            steer_throw(STEER_BAD_INPUT, "a decoder has at least one sequence of one token and at most %zu sequences, not %d of %d", llama_max_parallel_sequences(), options->n_seq, options->n_ctx);
        }
        if (options->n_cells < 0 || options->n_cells > (int64_t) options->n_ctx*options->n_seq) {
            steer_throw(STEER_BAD_INPUT, "%d sequences of %d tokens have no use for a cache of %d", options->n_seq, options->n_ctx, options->n_cells);
        }
        if (!llama_model_has_decoder(m->model) || llama_model_has_encoder(m->model)) {
            steer_throw(STEER_BAD_INPUT, "models of architecture %s do not continue text", llm_arch_name(m->model->arch));
        }
        *decoder = new steer_decoder(*m, *options);
    });
}

void steer_decoder_free(steer_decoder * decoder) {
    delete decoder;
}

steer_status steer_decoder_steer(steer_decoder * d, const steer_operation * operations, int32_t n, int32_t n_strengths, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        auto made = std::make_unique<steer_operations>(d->model, operations, n, n_strengths);
        d->steer.ops = made->of_layer;
        d->steer.version = steer_next_version();
        d->steer.applied.clear();
        d->operations = std::move(made);
        d->context->steer = n ? &d->steer : nullptr;
    });
}

void steer_decoder_clear(steer_decoder * d) {
    llama_memory_clear(llama_get_memory(d->context), false);
    d->position.assign(d->position.size(), 0);
}

int32_t steer_decoder_keep(steer_decoder * d, int32_t seq, int32_t n) {
    if (n < d->position[seq]) {
        d->cut(seq, n);
    }
    return d->position[seq];
}

void steer_decoder_copy(steer_decoder * d, int32_t from, int32_t to) {
    if (from == to) {
        return;
    }
    // one cache for all sequences: a copy is a second owner of the same cells
    llama_memory_t memory = llama_get_memory(d->context);
    llama_memory_seq_rm(memory, to, -1, -1);
    llama_memory_seq_cp(memory, from, to, -1, -1);
    d->position[to] = d->position[from];
}

steer_status steer_decode(steer_decoder * d, int32_t n, const steer_token * tokens, const int32_t * seq, const int8_t * want_logits, const float * strengths, const int32_t * cancel, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(d->model.model));
        std::vector<llama_pos> position = d->position;
        std::vector<llama_pos> pos(n);
        std::vector<int32_t> n_seq_id(n, 1);
        std::vector<llama_seq_id> ids(seq, seq + n);
        std::vector<llama_seq_id *> seq_id(n);
        std::vector<int8_t> logits(want_logits, want_logits + n);
        d->column.clear();
        for (int32_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= n_vocab) {
                steer_throw(STEER_BAD_INPUT, "token %d is not of the vocabulary, which has %d", tokens[i], n_vocab);
            }
            if (seq[i] < 0 || seq[i] >= d->options.n_seq) {
                steer_throw(STEER_BAD_INPUT, "there is no sequence %d, the decoder has %d", seq[i], d->options.n_seq);
            }
            pos[i] = position[seq[i]]++;
            if (pos[i] >= d->options.n_ctx) {
                steer_throw(STEER_BAD_INPUT, "the context of %d tokens is full", d->options.n_ctx);
            }
            seq_id[i] = &ids[i];
            d->column[{ seq[i], pos[i] }] = i;
        }
        d->strengths  = strengths;
        d->n_decoding = n;
        d->cancel     = cancel;
        const llama_batch batch = { n, (llama_token *) tokens, nullptr, pos.data(), n_seq_id.data(), seq_id.data(), logits.data() };
        steer_take_log();
        const int32_t rc = llama_decode(d->context, batch);
        d->strengths = nullptr;
        d->cancel    = nullptr;
        d->column.clear();
        int32_t ignored = -1;
        for (const auto & layer : d->steer.ops) {
            if (rc == 0 && !d->steer.applied.count(layer.first)) {
                ignored = layer.first;
            }
        }
        if (rc != 0 || ignored >= 0) {
            for (int32_t s = 0; s < d->options.n_seq; ++s) {
                if (position[s] > d->position[s]) {
                    d->cut(s, d->position[s]);
                }
            }
        }
        if (rc == 2) {
            steer_throw(STEER_CANCELLED, "cancelled");
        }
        if (rc != 0) {
            const std::string log = steer_take_log();
            steer_throw(STEER_FAILED, "decoding failed (llama.cpp's code %d): %s", rc, log.empty() ? "it does not say why" : log.c_str());
        }
        if (ignored >= 0) {
            steer_throw(STEER_BAD_INPUT, STEER_IGNORED, llm_arch_name(d->model.model->arch), ignored);
        }
        d->position = position;
    });
}

const float * steer_decoder_logits(steer_decoder * d, int32_t i) {
    return llama_get_logits_ith(d->context, i);
}

// ---- sampling --------------------------------------------------------------

struct steer_sampler {
    llama_sampler * chain;
};

steer_sampler * steer_sampler_new(const steer_sampler_options * options) {
    llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    const int32_t last_n = 64;
    const size_t min_keep = 1;
    if (options->repeat_penalty != 1) {
        llama_sampler_chain_add(chain, llama_sampler_init_penalties(last_n, options->repeat_penalty, 0, 0));
    }
    if (options->top_k > 0) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_k(options->top_k));
    }
    if (options->top_p < 1) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_p(options->top_p, min_keep));
    }
    if (options->min_p > 0) {
        llama_sampler_chain_add(chain, llama_sampler_init_min_p(options->min_p, min_keep));
    }
    llama_sampler_chain_add(chain, llama_sampler_init_temp(options->temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(options->seed));
    return new steer_sampler{ chain };
}

void steer_sampler_free(steer_sampler * sampler) {
    if (sampler) {
        llama_sampler_free(sampler->chain);
        delete sampler;
    }
}

steer_token steer_sample(steer_sampler * sampler, steer_decoder * decoder, int32_t i) {
    return llama_sampler_sample(sampler->chain, decoder->context, i);
}

void steer_sampler_accept(steer_sampler * sampler, steer_token token) {
    llama_sampler_accept(sampler->chain, token);
}
