// The backend is built without flash attention: it has no backward pass, and its
// kernels take longer to compile than all others together.

#include "fattn.cuh"

bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor *) {
    return false;
}

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context &, ggml_tensor *) {
    GGML_ABORT("flash attention is not in this backend");
}
