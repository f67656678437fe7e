"""The tiny random models: one for each architecture, as a transformers model and as the GGUF file of the same weights.

Shapes are odd on purpose (a width of 40, heads of 10) so that kernels meet rows that are no multiple of their registers.
Norms are not 1 and biases not 0; soft caps and sliding windows are small enough to bind; weights are large enough for
attention and probabilities to be far from uniform.

A file holds what llama.cpp's converter writes for its architecture: names from the gguf library's table, Gemma's norm
weights with 1 added, the rows of llama's queries and keys in the order of its rotary kind, Llama 3's rotary factors. It
has no tokenizer: the tests give token ids.
"""

import math
import os
from dataclasses import dataclass

import torch
import transformers
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType, RopeScalingType, get_tensor_name_map

VOCABULARY = 260
WIDTH = 40
CONTEXT = 256
NORM_EPSILON = 1e-5

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": NORM_EPSILON,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}


@dataclass(frozen=True)
class Architecture:
    name: str  # of the fixture
    gguf: MODEL_ARCH
    config: transformers.PretrainedConfig
    seed: int  # of everything random; make.py says when to take another
    gelu: bool = False

    @property
    def gguf_name(self):
        return MODEL_ARCH_NAMES[self.gguf]

    def is_gemma(self):
        return self.gguf_name.startswith("gemma")


ARCHITECTURES = [
    Architecture(
        "gemma2",
        MODEL_ARCH.GEMMA2,
        transformers.Gemma2Config(
            **SHAPE,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,  # at every other block, the first one among them
            attn_logit_softcapping=5.0,
            final_logit_softcapping=6.0,
        ),
        seed=2,
        gelu=True,
    ),
    Architecture(
        "gemma3",
        MODEL_ARCH.GEMMA3,
        transformers.Gemma3TextConfig(
            **SHAPE | {"num_hidden_layers": 7},  # block 5 is the one in six that sees everything
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,
            rope_theta=1e6,
            rope_scaling={"rope_type": "linear", "factor": 4.0},  # of the blocks without a window
            rope_local_base_freq=1e4,
        ),
        seed=7,
        gelu=True,
    ),
    Architecture("gemma", MODEL_ARCH.GEMMA, transformers.GemmaConfig(**SHAPE, head_dim=16), seed=7, gelu=True),
    Architecture(
        "llama",
        MODEL_ARCH.LLAMA,
        transformers.LlamaConfig(
            **SHAPE,
            head_dim=10,
            rope_theta=5e5,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        ),
        seed=3,
    ),
    Architecture(
        "mistral",
        MODEL_ARCH.LLAMA,
        transformers.MistralConfig(**SHAPE | {"num_key_value_heads": 1}, head_dim=10, sliding_window=None),
        seed=4,
    ),
    Architecture(
        "qwen2",
        MODEL_ARCH.QWEN2,
        transformers.Qwen2Config(**SHAPE, rope_theta=1e6, tie_word_embeddings=True),
        seed=12,
    ),
    Architecture("qwen3", MODEL_ARCH.QWEN3, transformers.Qwen3Config(**SHAPE, head_dim=16, rope_theta=1e6), seed=6),
    Architecture(
        "phi3",
        MODEL_ARCH.PHI3,
        # The first 6 of a head's 10 dimensions rotate.
        transformers.Phi3Config(**SHAPE, partial_rotary_factor=0.6, sliding_window=None),
        seed=7,
    ),
]


def random_model(architecture, generator):
    """The model in float32, its weights drawn from the generator."""
    model = transformers.AutoModelForCausalLM.from_config(architecture.config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        draw = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            # A Gemma's small embedding (below) is its output matrix, too: a larger last norm makes up for it.
            gain = (2 if architecture.is_gemma() and name == "model.norm.weight" else 1) * (1 + 0.3 * draw)
            weight.copy_(gain - 1 if architecture.is_gemma() else gain)
        elif name.endswith("bias"):
            weight.copy_(0.3 * draw)
        elif "embed_tokens" in name:
            # Where it is the output matrix, too, a large one would let every token predict itself; a Gemma's enters
            # the stream √width times as large.
            tied = architecture.config.tie_word_embeddings
            weight.copy_((0.15 if architecture.is_gemma() else 0.5 if tied else 1.0) * draw)
        elif "lm_head" in name:
            weight.copy_(0.5 * draw)
        else:
            # Larger queries and keys make attention choose.
            size = 1.25 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
            weight.copy_(size / math.sqrt(weight.shape[1]) * draw)
    return model


def write(path, architecture, model):
    """Writes the model as GGUF, in F32. `path` appears only when it is complete."""
    config = architecture.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    partial = path.with_name(path.name + ".part")
    writer = GGUFWriter(partial, architecture.gguf_name)
    writer.add_name(f"tiny random {architecture.name}")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture.gguf is not MODEL_ARCH.PHI3:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_tokenizer_model("none")

    match architecture.gguf:
        case MODEL_ARCH.GEMMA2:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
            writer.add_sliding_window(config.sliding_window)
        case MODEL_ARCH.GEMMA3:
            writer.add_sliding_window(config.sliding_window)
            writer.add_rope_freq_base(config.rope_theta)
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope_scaling["factor"])
        case MODEL_ARCH.LLAMA:
            writer.add_rope_freq_base(config.rope_theta)
            writer.add_rope_dimension_count(head)
        case MODEL_ARCH.QWEN2 | MODEL_ARCH.QWEN3:
            writer.add_rope_freq_base(config.rope_theta)
        case MODEL_ARCH.PHI3:
            writer.add_rope_freq_base(config.rope_theta)
            writer.add_rope_dimension_count(int(config.partial_rotary_factor * head))
            writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
            writer.add_sliding_window(0)

    rope_scaling = getattr(config, "rope_scaling", None) or {}
    if rope_scaling.get("rope_type") == "llama3":
        plain = config.rope_theta ** -(torch.arange(0, head, 2) / head)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).float().numpy())

    names = get_tensor_name_map(architecture.gguf, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if architecture.is_gemma() and "norm" in name:
            weight = weight + 1
        if architecture.gguf is MODEL_ARCH.LLAMA and "q_proj" in name:
            weight = interleave(weight, config.num_attention_heads)
        if architecture.gguf is MODEL_ARCH.LLAMA and "k_proj" in name:
            weight = interleave(weight, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def interleave(weight, heads):
    """Rows of queries or keys in GGUF's order for llama, where rotary pairs are neighbours.

    In transformers the pair of row i is row i + half a head.
    """
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()
