// Times the unpatched library for bench/unpatched/run.py: for each line "prompt N" or "decode" that it reads, it
// processes a prompt of N tokens anew, or one more token, and prints the seconds that this took.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: prompts MODEL THREADS\n");
        return 2;
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    llama_context * context = model ? llama_init_from_model(model, params) : nullptr;
    if (!context) {
        return 1;
    }
    llama_token next = 260;
    char line[64];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        int n;
        std::vector<llama_token> tokens;
        if (sscanf(line, "prompt %d", &n) == 1) {
            llama_memory_clear(llama_get_memory(context), true);
            for (int i = 0; i < n; ++i) {
                tokens.push_back(260 + i);
            }
        } else {
            tokens.push_back(next++);
        }
        const auto began = std::chrono::steady_clock::now();
        if (llama_decode(context, llama_batch_get_one(tokens.data(), tokens.size())) != 0) {
            return 1;
        }
        llama_get_logits(context); // waits
        printf("%.6f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
        fflush(stdout);
    }
}
