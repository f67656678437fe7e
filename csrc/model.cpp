#include "internal.h"

#include "ggml-backend-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include <dlfcn.h>

void steer_throw(steer_status status, const char * format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    throw steer_error(status, text);
}

uint64_t steer_next_version() {
    static std::atomic<uint64_t> version{0};
    return ++version;
}

// ---- log -------------------------------------------------------------------

static thread_local std::string logged;

static void keep_errors(ggml_log_level level, const char * text, void *) {
    static thread_local bool keeping = false;
    if (level != GGML_LOG_LEVEL_CONT) {
        keeping = level == GGML_LOG_LEVEL_ERROR;
    }
    if (keeping && logged.size() < 4096) {
        logged += text;
    }
}

std::string steer_take_log() {
    std::string text = std::move(logged);
    logged.clear();
    while (!text.empty() && text.back() == '\n') {
        text.pop_back();
    }
    std::replace(text.begin(), text.end(), '\n', ';');
    return text;
}

// ---- backends --------------------------------------------------------------

static std::string modules_folder(const char * folder) {
    std::string path = folder ? folder : "";
    Dl_info self;
    if (path.empty() && dladdr((const void *) modules_folder, &self)) {
        path = self.dli_fname;
        const size_t slash = path.rfind('/');
        path = slash == std::string::npos ? "." : path.substr(0, slash);
    }
    return path;
}

static void load_cpu(const std::string & folder) {
    static std::once_flag once;
    std::call_once(once, [&] {
        llama_log_set(keep_errors, nullptr);
        // Threads that wait for each other spin for some 50 microseconds, which covers
        // most waits, and then sleep: by default they spin for milliseconds, and where
        // another program has one of the cores a step took four times as long. Read
        // when the backend, with its OpenMP, is loaded below.
        if (!getenv("OMP_WAIT_POLICY")) {
            setenv("GOMP_SPINCOUNT", "1000", 0);
        }
        ggml_backend_load_named("cpu", folder.c_str());
        llama_backend_init();
    });
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        steer_throw(STEER_FAILED, "no ggml CPU backend for this processor lies beside the library (libggml-cpu-*.so; `make release` builds those for all processors)");
    }
}

static bool is_gpu(ggml_backend_dev_t device) {
    const auto type = ggml_backend_dev_type(device);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

static bool gpu_device() {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (is_gpu(ggml_backend_dev_get(i))) {
            return true;
        }
    }
    return false;
}

// The module for GPUs, when the first model asks for one: starting CUDA takes time. Returns why there
// is no GPU, or nothing.
static std::string load_gpu(const std::string & folder) {
    static std::once_flag once;
    static std::string why;
    std::call_once(once, [&] {
        steer_take_log();
        ggml_backend_reg_t reg = ggml_backend_load_named("cuda", folder.c_str());
        if (const char * path = getenv("GGML_BACKEND_PATH")) { // as ggml has it: a module from elsewhere
            reg = ggml_backend_load(path);
        }
        const std::string log = steer_take_log();
        why = reg ? "the module of the GPU backend was loaded and found no GPU" : log.empty() ? "there is no libggml-cuda.so beside the library (`make cuda` builds it)" : log;
    });
    return gpu_device() ? "" : why;
}

template <typename F> static F cpu_function(const char * name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return (F) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name);
}

steer_backend::steer_backend(int32_t threads) : backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)) {
    if (!backend) {
        steer_throw(STEER_FAILED, "the CPU backend did not start");
    }
    cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")(backend, threads);
}

static bool is_cancelled(void * cancel) {
    return __atomic_load_n((const int32_t *) cancel, __ATOMIC_RELAXED) != 0;
}

void steer_backend::set_cancel(const int32_t * cancel) {
    cpu_function<ggml_backend_set_abort_callback_t>("ggml_backend_set_abort_callback")(backend, cancel ? is_cancelled : nullptr, (void *) cancel);
}

// ---- model -----------------------------------------------------------------

steer_status steer_model_open(const char * path, const steer_model_options * options, steer_model ** model, char * err, size_t err_size) {
    return steer_guard(err, err_size, [&] {
        const std::string folder = modules_folder(options->backends);
        load_cpu(folder);
        auto m = std::make_unique<steer_model>();
        m->threads = std::max(1, options->threads);

        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = options->gpu_layers < 0 ? INT32_MAX/2 : options->gpu_layers;
        ggml_backend_dev_t none[] = { nullptr };
        if (options->gpu_layers == 0) {
            params.devices = none;
        } else {
            m->no_gpu = load_gpu(folder);
        }
        params.use_extra_bufts = false; // weights in another layout than the file's have no gradient
        steer_take_log();
        m->model = llama_model_load_from_file(path, params);
        if (!m->model) {
            const std::string log = steer_take_log();
            steer_throw(STEER_BAD_INPUT, "%s: llama.cpp cannot load this model: %s", path, log.empty() ? "it does not say why" : log.c_str());
        }
        *model = m.release();
    });
}

void steer_model_free(steer_model * model) {
    delete model;
}

static void meta(const llama_model * model, const char * key, char * text, size_t size) {
    if (llama_model_meta_val_str(model, key, text, size) < 0) {
        text[0] = 0;
    }
}

void steer_model_info(const steer_model * m, steer_info * info) {
    memset(info, 0, sizeof(*info));
    meta(m->model, "general.name", info->name, sizeof(info->name));
    meta(m->model, "general.architecture", info->arch, sizeof(info->arch));
    // "gemma2 2B Q4_K - Medium": the type is what follows architecture and size
    char text[sizeof(info->quantization)];
    llama_model_desc(m->model, text, sizeof(text));
    const char * type = text;
    for (int i = 0; i < 2 && type; ++i) {
        type = strchr(type, ' ');
        type = type ? type + 1 : nullptr;
    }
    snprintf(info->quantization, sizeof(info->quantization), "%s", type ? type : text);
    info->n_embd      = llama_model_n_embd(m->model);
    info->n_layer     = steer_n_layer(*m);
    info->n_vocab     = llama_vocab_n_tokens(llama_model_get_vocab(m->model));
    info->n_ctx_train = llama_model_n_ctx_train(m->model);
    for (int32_t i = 0; i < info->n_layer; ++i) {
        info->gpu_layers += is_gpu(m->model->dev_layer(i));
    }
    snprintf(info->no_gpu, sizeof(info->no_gpu), "%s", m->no_gpu.c_str());
    info->has_chat_template = llama_model_chat_template(m->model, nullptr) != nullptr;
}

bool steer_off_cpu(const steer_model & m) {
    for (const auto & named : m.model->tensors_by_name) {
        ggml_backend_buffer_t buffer = named.second->buffer;
        if (buffer && !ggml_backend_buffer_is_host(buffer)) {
            return true;
        }
    }
    return false;
}

int32_t steer_n_layer(const steer_model & m) {
    return llama_model_n_layer(m.model) - m.model->hparams.nextn_predict_layers;
}

void steer_check_layers(const steer_model & m, const int32_t * layers, int32_t n, int32_t n_layer) {
    for (int32_t i = 0; i < n; ++i) {
        if (layers[i] < 0 || layers[i] >= n_layer) {
            steer_throw(STEER_BAD_INPUT, "layer %d does not exist: the model has layers 0 to %d", layers[i], n_layer - 1);
        }
        if (i > 0 && layers[i] <= layers[i - 1]) {
            steer_throw(STEER_BAD_INPUT, "layers must ascend, but %d follows %d", layers[i], layers[i - 1]);
        }
    }
}

llama_context * steer_context(const steer_model & m, int32_t n_ctx, int32_t n_seq, bool exact, int32_t n_cells) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx      = n_cells ? n_cells : (uint32_t) n_ctx*n_seq;
    params.n_seq_max  = n_seq;
    params.n_batch    = params.n_ctx;
    params.n_ubatch   = std::min<uint32_t>(params.n_ctx, 512);
    params.kv_unified = true;
    params.no_perf    = true;
    params.n_threads  = params.n_threads_batch = m.threads;
    if (exact) {
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.type_k = params.type_v = GGML_TYPE_F32;
    }
    steer_take_log();
    llama_context * context = llama_init_from_model(m.model, params);
    if (!context) {
        const std::string log = steer_take_log();
        steer_throw(STEER_FAILED, "a context of %u tokens cannot be made: %s", params.n_ctx, log.empty() ? "llama.cpp does not say why" : log.c_str());
    }
    return context;
}

// ---- text ------------------------------------------------------------------

int32_t steer_tokenize(const steer_model * m, const char * text, int32_t size, int add_special, int parse_special, steer_token * tokens, int32_t n_max) {
    const llama_vocab * vocab = llama_model_get_vocab(m->model);
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return -1;
    }
    try {
        const int32_t n = llama_tokenize(vocab, text, size, tokens, n_max, add_special, parse_special);
        return n == INT32_MIN ? -1 : n < 0 ? -n : n;
    } catch (const std::exception &) {
        return -1;
    }
}

int32_t steer_token_text(const steer_model * m, steer_token token, int special, char * text, int32_t size) {
    const llama_vocab * vocab = llama_model_get_vocab(m->model);
    if (token < 0 || token >= llama_vocab_n_tokens(vocab) || llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return 0;
    }
    const int32_t n = llama_token_to_piece(vocab, token, text, size, 0, special);
    return n < 0 ? -n : n;
}

int steer_token_ends(const steer_model * m, steer_token token) {
    return llama_vocab_is_eog(llama_model_get_vocab(m->model), token);
}

int32_t steer_chat(const steer_model * m, const char * const * roles, const char * const * texts, int32_t n, char * text, int32_t size) {
    const char * tmpl = llama_model_chat_template(m->model, nullptr);
    if (!tmpl) {
        return -1;
    }
    std::vector<llama_chat_message> messages;
    for (int32_t i = 0; i < n; ++i) {
        messages.push_back({ roles[i], texts[i] });
    }
    return llama_chat_apply_template(tmpl, messages.data(), messages.size(), true, text, size);
}
