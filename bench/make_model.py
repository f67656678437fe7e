#!/usr/bin/env python3
"""Writes a GGUF in the shape of Gemma-2-2B or 9B with random weights, in BF16, and in
Q8_0, Q4_K_M or Q6_K, which llama.cpp's own quantizer makes of it, in the library of
llama-server that scripts/fetch-server.sh fetches.

    bench/make_model.py [--shape 2b|9b|tiny] [--types bf16,q8_0,q4_k_m,q6_k] FOLDER

Weights are normal, scaled so that the residual stream and the logits have ordinary sizes;
the vocabulary has made-up tokens. Files that are there are kept. Needs numpy and gguf."""
import argparse
import ctypes
import os
import pathlib
import subprocess
import sys

import gguf
import numpy as np

SHAPES = {
    "2b": dict(blocks=26, width=2304, ff=9216, heads=8, kv_heads=4, head=256, vocab=256000),
    "9b": dict(blocks=42, width=3584, ff=14336, heads=16, kv_heads=8, head=256, vocab=256000),
    "tiny": dict(blocks=4, width=256, ff=1024, heads=4, kv_heads=2, head=64, vocab=2048),
}
FTYPES = {"q8_0": 7, "q4_k_m": 15, "q6_k": 18}  # llama_ftype of llama.h


def write(path, blocks, width, ff, heads, kv_heads, head, vocab):
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, "gemma2")
    w.add_name("random weights in Gemma-2's shape")
    w.add_context_length(8192)
    w.add_embedding_length(width)
    w.add_block_count(blocks)
    w.add_feed_forward_length(ff)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_key_length(head)
    w.add_value_length(head)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_attn_logit_softcapping(50.0)
    w.add_final_logit_softcapping(30.0)
    w.add_sliding_window(4096)
    w.add_file_type(32)  # mostly BF16
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = special + [f"<0x{i:02X}>" for i in range(256)]
    pieces += [f"\u2581w{i}" for i in range(vocab - len(pieces))]
    types = [3, 3, 3, 2] + [6]*256 + [1]*(vocab - 260)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(pieces)
    w.add_token_scores([0.0]*260 + [-float(i) for i in range(vocab - 260)])
    w.add_token_types(types)
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)
    w.add_unk_token_id(3)
    w.add_pad_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)

    tensors = [("token_embd.weight", (vocab, width), width**-0.5), ("output_norm.weight", (width,), None)]
    for i in range(blocks):
        b = f"blk.{i}."
        tensors += [
            (b + "attn_norm.weight", (width,), None),
            (b + "attn_q.weight", (heads*head, width), width**-0.5),
            (b + "attn_k.weight", (kv_heads*head, width), width**-0.5),
            (b + "attn_v.weight", (kv_heads*head, width), width**-0.5),
            (b + "attn_output.weight", (width, heads*head), (heads*head)**-0.5),
            (b + "post_attention_norm.weight", (width,), None),
            (b + "ffn_norm.weight", (width,), None),
            (b + "ffn_gate.weight", (ff, width), width**-0.5),
            (b + "ffn_up.weight", (ff, width), width**-0.5),
            (b + "ffn_down.weight", (width, ff), ff**-0.5),
            (b + "post_ffw_norm.weight", (width,), None),
        ]
    bf16 = gguf.GGMLQuantizationType.BF16
    for name, shape, deviation in tensors:
        if deviation is None:
            w.add_tensor_info(name, shape, np.dtype(np.float32), 4*shape[0])
        else:
            w.add_tensor_info(name, (shape[0], 2*shape[1]), np.dtype(np.uint8), 2*shape[0]*shape[1], raw_dtype=bf16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for name, shape, deviation in tensors:
        if deviation is None:
            w.write_tensor_data(np.ones(shape, np.float32))
            continue
        x = rng.standard_normal(shape, np.float32)
        x *= deviation
        w.write_tensor_data((x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8))
    w.close()


def quantize(library, source, to, ftype):
    """llama_model_quantize with the defaults, but for the file's type and the threads."""
    library.llama_model_quantize_default_params.restype = Params = type(
        "Params", (ctypes.Structure,), {"_fields_": [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("rest", ctypes.c_byte*120)]})
    params = library.llama_model_quantize_default_params()
    params.nthread, params.ftype = os.cpu_count(), ftype
    if library.llama_model_quantize(str(source).encode(), str(to).encode(), ctypes.byref(params)):
        sys.exit(f"{to}: llama.cpp's quantizer failed")


def llama_library():
    root = pathlib.Path(__file__).resolve().parent.parent
    folder = pathlib.Path(subprocess.run([root/"scripts/fetch-server.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    for name in ("libggml-base", "libggml"):  # in its order, and found without a search path
        ctypes.CDLL(str(next(folder.glob(name + ".so*"))), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(next(folder.glob("libllama.so*"))))
    library.no_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
    library.llama_log_set(library.no_log, None)
    return library


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--shape", choices=SHAPES, default="2b")
    p.add_argument("--types", default="bf16,q8_0,q4_k_m")
    args = p.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = lambda t: args.folder/f"gemma2-{args.shape}-{t}.gguf"

    def finished(to, make):
        if not to.exists():
            part = to.with_suffix(".part")
            make(part)
            part.rename(to)
        print(to)

    finished(path("bf16"), lambda to: write(to, **SHAPES[args.shape]))
    for t in args.types.split(","):
        if t in FTYPES:
            finished(path(t), lambda to: quantize(llama_library(), path("bf16"), to, FTYPES[t]))


if __name__ == "__main__":
    main()
