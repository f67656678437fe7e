// The engine of llsteer: models, sessions that differentiate, decoders.
//
// Ownership: what a ..._new or ..._open function gives is freed by the function
// next to it, sessions and decoders before their model. Pointers that are
// passed in are read or written during the call only.
//
// Errors: every function that can fail returns a steer_status and, unless it is
// STEER_OK, writes a text of at most err_size bytes, its final NUL included,
// into err. Nothing exits or aborts; no state is shared between calls.
//
// Threads: a model may be used by several threads at once, a session or a
// decoder by one at a time. A call that takes a cancel flag returns
// STEER_CANCELLED soon after another thread has made *cancel non-zero.
//
// Arrays are in row order, the last index named moving fastest. Logarithms are
// natural.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t steer_token;

typedef enum {
    STEER_OK        = 0,
    STEER_FAILED    = 1, // during the work
    STEER_BAD_INPUT = 2, // the caller's to mend
    STEER_CANCELLED = 3,
} steer_status;

// How products with the model's weights are computed.
typedef enum {
    STEER_ORDINARY = 0, // as llama.cpp does: activations are rounded to what its fastest kernels take. On
                        // processors with AVX-512, batches of 32 tokens or more are computed as with STEER_BF16
    STEER_F32      = 1, // with weights exactly as they dequantize, and float32 everywhere else
    STEER_BF16     = 2, // the same, but for both operands in 16 bits, no less precise than bfloat16
} steer_precision;

// ---- model ----------------------------------------------------------------

typedef struct steer_model steer_model;

typedef struct {
    const char * backends;   // folder of the ggml backend modules; NULL: that of this library. Only the first model's counts
    int32_t      threads;    // at least 1
    int32_t      gpu_layers; // blocks to put on the GPU, -1: all. Where there is no GPU all stay on the CPU
} steer_model_options;

typedef struct {
    char    name[256];         // general.name, may be empty
    char    arch[64];          // general.architecture
    char    quantization[128]; // as llama.cpp describes it
    int32_t n_embd;            // width of the residual stream
    int32_t n_layer;           // blocks
    int32_t n_vocab;
    int32_t n_ctx_train;       // tokens
    int32_t has_chat_template;
    int32_t gpu_layers;        // blocks that are on a GPU
    char    no_gpu[512];       // why there is no GPU, where one was asked for
} steer_info;

// The file must have been checked: llama.cpp aborts on some that are damaged.
steer_status steer_model_open(const char * path, const steer_model_options * options, steer_model ** model, char * err, size_t err_size);
void         steer_model_free(steer_model * model);
void         steer_model_info(const steer_model * model, steer_info * info);

// The number of tokens, of which at most n_max are written. add_special: BOS
// and the like as the model asks; parse_special: control tokens written in the
// text are those tokens. -1: the model has no tokenizer.
int32_t steer_tokenize(const steer_model * model, const char * text, int32_t size, int add_special, int parse_special, steer_token * tokens, int32_t n_max);

// The number of bytes of a token's text, of which at most size are written
// (without a NUL). Control tokens have text only if special.
int32_t steer_token_text(const steer_model * model, steer_token token, int special, char * text, int32_t size);

int steer_token_ends(const steer_model * model, steer_token token); // does it end a generation?

// The chat template around messages, up to the assistant's header, with at most size
// bytes written (without a NUL). Roles are system, user and assistant. -1: the model has
// no template, or llama.cpp does not know it.
int32_t steer_chat(const steer_model * model, const char * const * roles, const char * const * texts, int32_t n, char * text, int32_t size);

// ---- session: losses and gradients ----------------------------------------
//
// A session holds sequences, each a prompt with one completion, and evaluates
// the log-probability of every completion token as a function of a steering at
// the input of some layers:
//
//   x <- x + sum_k s_k v_k + sum_j s_j left_j (right_j . x)
//
// with the strengths s_k and s_j given for each token of each sequence. Prefixes
// that agree in tokens and strengths are computed once, and what no parameter
// reaches is computed once for the session's life. What would take more memory than it
// may is computed in parts. Where these have long prompts in common or are long themselves, their
// activations are computed once more for the gradient, block by block: the same bits.

typedef struct steer_session steer_session;

typedef struct {
    const int32_t * layers;  // ascending, from 0
    int32_t n_layers;        // 0: probabilities only, there is no gradient then
    int32_t n_vectors;       // vectors at each layer, k
    int32_t rank;            // rows of the matrices at each layer, j
    double  coldness;        // p = softmax(coldness*logits)
    int32_t observed_layer;  // a layer whose input is observed as well, as the layers below it leave it, steered themselves; -1: none
    steer_precision precision; // not STEER_ORDINARY
    double  memory;          // about how many bytes activations may take: see below; 0: 1.5e9
} steer_session_options;

typedef struct {
    int32_t             n_sequences;
    const int32_t     * n_tokens;  // [n_sequences]: prompt and completion
    const int32_t     * n_prompt;  // [n_sequences], at least 1 and less than n_tokens
    const steer_token * tokens;    // the sequences one after the other
    const float       * strengths; // for each sequence [n_vectors + rank][n_tokens], one after the other
} steer_sequences;

typedef struct {
    double log_p;   // of a target token
    double log_1mp; // log(1 - p)
} steer_prob;

// Is there a gradient with respect to a steering at these layers? If not, the
// error names the architecture and what is missing.
steer_status steer_differentiable(const steer_model * model, const int32_t * layers, int32_t n_layers, char * err, size_t err_size);

steer_status steer_session_new(const steer_model * model, const steer_session_options * options, const steer_sequences * sequences, steer_session ** session, char * err, size_t err_size);
void         steer_session_free(steer_session * session);

// Tokens that one evaluation computes.
int32_t steer_session_n_tokens(const steer_session * session);

// A line for each node of the session's graphs: device, operation, types and shapes. Returns the number of
// bytes, of which at most size are written (without a NUL).
int64_t steer_session_nodes(const steer_session * session, char * text, int64_t size);

// params: [n_layers][n_vectors + 2*rank][n_embd], at each layer the vectors, then
// the left rows, then the right ones. probs: of every target, sequence by sequence.
// streams: [targets][n_embd], the residual stream of every target token at the input
// of the observed layer; NULL: not asked for.
steer_status steer_session_forward(steer_session * session, const float * params, steer_prob * probs, float * streams, const int32_t * cancel, char * err, size_t err_size);

// The gradient of sum_i weights[i]*probs[i].log_p + sum_i d_streams[i].streams[i] at the
// last forward's params, shaped as they are. d_streams may be NULL: 0.
steer_status steer_session_backward(steer_session * session, const double * weights, const float * d_streams, float * gradient, const int32_t * cancel, char * err, size_t err_size);

// ---- operations with given numbers ----------------------------------------

// The steering operation at one layer. Layers ascend and are each given once; the number of
// blocks stands for the output of the last one.
typedef struct {
    int32_t         layer;
    int32_t         n_vectors;
    const float   * vectors;   // [n_vectors][n_embd]
    const int32_t * s_vectors; // [n_vectors]: which strength is the factor
    int32_t         rank;
    const float   * left;      // [rank][n_embd]
    const float   * right;     // [rank][n_embd]
    const int32_t * s_rows;    // [rank]
} steer_operation;

// The residual stream at layers as their blocks read it, [n_layers][n_tokens][n_embd]: steered at the
// layers below and at the layer itself, other than what a session observes. strengths:
// [n_strengths][n_tokens]. Without operations it is the unsteered stream.
steer_status steer_activations(const steer_model * model, const steer_token * tokens, int32_t n_tokens, const steer_operation * operations, int32_t n_operations,
    const float * strengths, int32_t n_strengths, const int32_t * layers, int32_t n_layers, float * x, const int32_t * cancel, char * err, size_t err_size);

// ---- decoder: generation with a KV cache ----------------------------------

typedef struct steer_decoder steer_decoder;

typedef struct {
    int32_t n_ctx; // tokens of each sequence
    int32_t n_seq; // sequences side by side
    steer_precision precision; // the KV cache is float32, too, unless it is STEER_ORDINARY
    int32_t n_cells; // of the KV cache: tokens that sequences share by steer_decoder_copy take one together; 0: n_ctx*n_seq
} steer_decoder_options;

steer_status steer_decoder_new(const steer_model * model, const steer_decoder_options * options, steer_decoder ** decoder, char * err, size_t err_size);
void         steer_decoder_free(steer_decoder * decoder);

// Replaces the steering, for all tokens decoded from now on; the arrays are
// copied, and strengths are given to every decode. At the output of the last
// block only tokens with logits are steered. A layer that the model's graph does
// not have is refused by the next decode.
steer_status steer_decoder_steer(steer_decoder * decoder, const steer_operation * operations, int32_t n_operations, int32_t n_strengths, char * err, size_t err_size);

// Forgets all tokens.
void steer_decoder_clear(steer_decoder * decoder);

// Forgets the tokens of a sequence from the n-th on, and returns how many it has
// then: n, or as many as it had if they were fewer, or 0 where the tokens before n
// cannot be continued: a sliding window's cache may have lost those in front of it.
int32_t steer_decoder_keep(steer_decoder * decoder, int32_t seq, int32_t n);

// Makes sequence `to` what sequence `from` is; nothing is computed.
void steer_decoder_copy(steer_decoder * decoder, int32_t from, int32_t to);

// Decodes tokens: token i continues sequence seq[i], at the sequence's next
// position. strengths: [n_strengths][n]. After an error each sequence is as it was
// before, or empty: see steer_decoder_keep.
steer_status steer_decode(steer_decoder * decoder, int32_t n, const steer_token * tokens, const int32_t * seq, const int8_t * want_logits, const float * strengths, const int32_t * cancel, char * err, size_t err_size);

// The logits [n_vocab] after token i of the last decode, for which they were
// wanted; valid until the next call.
const float * steer_decoder_logits(steer_decoder * decoder, int32_t i);

// ---- sampling --------------------------------------------------------------

typedef struct steer_sampler steer_sampler;

typedef struct {
    float    temperature;    // above 0
    int32_t  top_k;          // 0: all
    float    top_p, min_p;   // 1 and 0: all
    float    repeat_penalty; // 1: none; over the last 64 tokens
    uint32_t seed;
} steer_sampler_options;

steer_sampler * steer_sampler_new(const steer_sampler_options * options);
void            steer_sampler_free(steer_sampler * sampler);
// Draws the token after token i of the last decode, and remembers it.
steer_token     steer_sample(steer_sampler * sampler, steer_decoder * decoder, int32_t i);
// Remembers a token of the prompt, for the repeat penalty.
void            steer_sampler_accept(steer_sampler * sampler, steer_token token);

#ifdef __cplusplus
}
#endif
