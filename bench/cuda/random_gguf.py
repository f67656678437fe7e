#!/usr/bin/env python3
"""Writes a GGUF in the shape of Gemma-2-2B or 9B with random weights. Unlike bench/make_model.py
it needs nothing but numpy, and quantized blocks are random bytes with sensible scales:
good for timing on a machine without network, not for anything else.

    bench/cuda/random_gguf.py [--shape 2b|9b|tiny] --type bf16|q8_0|q4_k FILE"""
import argparse
import struct

import numpy as np

SHAPES = {
    "2b": dict(blocks=26, width=2304, ff=9216, heads=8, kv_heads=4, head=256, vocab=256000),
    "9b": dict(blocks=42, width=3584, ff=14336, heads=16, kv_heads=8, head=256, vocab=256000),
    "tiny": dict(blocks=4, width=256, ff=1024, heads=4, kv_heads=2, head=64, vocab=2048),
}
# ggml_type, numbers and bytes of a block
TYPES = {"f32": (0, 1, 4), "bf16": (30, 1, 2), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144)}
ALIGNMENT = 32


def blocks_of(rng, type, n, size):
    """n random blocks whose numbers have about the standard deviation `size`"""
    _, _, width = TYPES[type]
    if type == "bf16":
        return (rng.standard_normal(n, dtype=np.float32)*size).view(np.uint32) >> 16 & 0xffff
    data = rng.integers(0, 256, (n, width), dtype=np.uint8)
    if type == "q8_0":  # d*q, q uniform in -128 ... 127: 74 is its deviation
        data[:, 0:2] = np.frombuffer(np.float16(size/74).tobytes(), np.uint8)
    else:  # d*scale*q - dmin*min: scales of 6 bits and q of 4 bits; the means cancel where dmin = 7.5 d
        data[:, 0:2] = np.frombuffer(np.float16(size/300).tobytes(), np.uint8)
        data[:, 2:4] = np.frombuffer(np.float16(7.5*size/300).tobytes(), np.uint8)
    return data


def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def entry(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, list):
        kind, pack = (8, text) if isinstance(value[0], str) else (6, lambda x: struct.pack("<f", x)) if isinstance(value[0], float) else (5, lambda x: struct.pack("<i", x))
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(pack, value))
    return text(key) + struct.pack("<II", 4, value)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="2b")
    p.add_argument("--type", choices=("bf16", "q8_0", "q4_k"), required=True)
    p.add_argument("file")
    args = p.parse_args()
    c = argparse.Namespace(**SHAPES[args.shape])
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"\u2581t{i}" for i in range(c.vocab - len(tokens))]
    entries = {
        "general.architecture": "gemma2", "general.name": "random weights in Gemma-2's shape",
        "gemma2.context_length": 8192, "gemma2.embedding_length": c.width, "gemma2.block_count": c.blocks, "gemma2.feed_forward_length": c.ff,
        "gemma2.attention.head_count": c.heads, "gemma2.attention.head_count_kv": c.kv_heads, "gemma2.attention.key_length": c.head,
        "gemma2.attention.value_length": c.head, "gemma2.attention.layer_norm_rms_epsilon": 1e-6, "gemma2.attention.sliding_window": 4096,
        "gemma2.attn_logit_softcapping": 50.0, "gemma2.final_logit_softcapping": 30.0,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [0.0]*c.vocab,
        "tokenizer.ggml.token_type": [3]*3 + [2] + [6]*256 + [1]*(c.vocab - 260),
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.padding_token_id": 0,
    }
    tensors = [("token_embd.weight", args.type, (c.width, c.vocab), c.width**-0.5), ("output_norm.weight", "f32", (c.width,), 0)]
    for i in range(c.blocks):
        q, kv = c.heads*c.head, c.kv_heads*c.head
        for name, shape in dict(attn_q=(c.width, q), attn_k=(c.width, kv), attn_v=(c.width, kv), attn_output=(q, c.width),
                                ffn_gate=(c.width, c.ff), ffn_up=(c.width, c.ff), ffn_down=(c.ff, c.width)).items():
            tensors.append((f"blk.{i}.{name}.weight", args.type, shape, shape[0]**-0.5))
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensors.append((f"blk.{i}.{name}.weight", "f32", (c.width,), 0))

    rng = np.random.default_rng(1)
    with open(args.file, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)))
        for key, value in entries.items():
            f.write(entry(key, value))
        at = 0
        sizes = []
        for name, type, shape, _ in tensors:
            number, per, width = TYPES[type]
            f.write(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", number, at))
            sizes.append(int(np.prod(shape))//per*width)
            at += -(-sizes[-1]//ALIGNMENT)*ALIGNMENT
        f.write(b"\0"*(-f.tell() % ALIGNMENT))
        for (name, type, shape, size), n_bytes in zip(tensors, sizes):
            if type == "f32":
                f.write(np.ones(shape, np.float32).tobytes())
            else:
                _, per, _ = TYPES[type]
                left = int(np.prod(shape))//per
                while left:  # in parts that fit into memory
                    n = min(left, 1 << 22)
                    data = blocks_of(rng, type, n, size)
                    f.write(data.astype(np.uint16).tobytes() if type == "bf16" else data.tobytes())
                    left -= n
            f.write(b"\0"*(-n_bytes % ALIGNMENT))


if __name__ == "__main__":
    main()
