// What the engine's files share.
#pragma once

#include "steer.h"

#include "ggml-backend.h"
#include "llama.h"
#include "llama-adapter.h"

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

struct steer_model {
    llama_model * model = nullptr;
    int32_t threads = 1;
    std::string no_gpu; // why there is none, where one was asked for

    ~steer_model() { llama_model_free(model); }
};

// An error with its status: what the C functions return.
struct steer_error : std::runtime_error {
    steer_status status;
    steer_error(steer_status status, const std::string & text) : std::runtime_error(text), status(status) {}
};

[[noreturn]] void steer_throw(steer_status status, const char * format, ...) __attribute__((format(printf, 2, 3)));

// Runs f and turns what it throws into a status and a text.
template <typename F> steer_status steer_guard(char * err, size_t err_size, F f) {
    steer_status status = STEER_FAILED;
    std::string text;
    try {
        f();
        return STEER_OK;
    } catch (const steer_error & e) {
        status = e.status;
        text = e.what();
    } catch (const std::bad_alloc &) {
        text = "out of memory";
    } catch (const std::exception & e) {
        text = e.what();
    }
    if (err && err_size) {
        snprintf(err, err_size, "%s", text.c_str());
    }
    return status;
}

// The error lines that llama.cpp and ggml have logged on this thread since the
// last call, the last of them last.
std::string steer_take_log();

// for an architecture and a layer
#define STEER_IGNORED "models of architecture %s cannot be steered at layer %d: llama.cpp's graph has no such place"

// A number that was never given before: see llama_adapter_steer::version.
uint64_t steer_next_version();

// The CPU backend with the model's number of threads.
struct steer_backend {
    ggml_backend_t backend;

    explicit steer_backend(int32_t threads);
    ~steer_backend() { ggml_backend_free(backend); }
    steer_backend(const steer_backend &) = delete;

    // computations end early once *cancel is not 0; nullptr: never
    void set_cancel(const int32_t * cancel);
};

// Is a weight in another memory than the CPU's?
bool steer_off_cpu(const steer_model & model);

// The blocks that a text goes through: some models end with blocks for predicting ahead.
int32_t steer_n_layer(const steer_model & model);

// Are layers[0..n) among the first n_layer, ascending and each once? Throws if not.
void steer_check_layers(const steer_model & model, const int32_t * layers, int32_t n, int32_t n_layer);

// Operations as a graph reads them, their numbers copied: each in the memory of the device that computes its block.
struct steer_operations {
    std::map<int32_t, llama_adapter_steer_op> of_layer;

    steer_operations(const steer_model & model, const steer_operation * operations, int32_t n, int32_t n_strengths);
    steer_operations(const steer_operations &) = delete;

private:
    struct leaves {
        ggml_context_ptr context;
        ggml_backend_buffer_ptr buffer;
    };
    std::map<ggml_backend_dev_t, leaves> of_device;
};

inline ggml_prec steer_prec(steer_precision p) { return p == STEER_F32 ? GGML_PREC_EXACT : p == STEER_BF16 ? GGML_PREC_FIXED : GGML_PREC_DEFAULT; }

// a context of the model for n_seq sequences of n_ctx tokens; exact: float32 but for products with weights; n_cells:
// of the cache that all share, 0: enough for sequences that have nothing in common
llama_context * steer_context(const steer_model & model, int32_t n_ctx, int32_t n_seq, bool exact, int32_t n_cells = 0);
