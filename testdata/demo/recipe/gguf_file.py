"""The demo model as a GGUF file: written after training, read back for evaluation.

Names and keys are those of llama.cpp's gemma2; the gguf library does the bytes. The tokenizer travels inside the file,
so one file is all that evaluation needs.
"""

import os

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from sentencepiece import sentencepiece_model_pb2

import settings
from model import Gemma2
from settings import Shape

ARCHITECTURE = "gemma2"

# The part of a tensor's name behind "layers.N." here and behind "blk.N." in the file.
BLOCK_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def tensor_name(parameter):
    """GGUF's name of a parameter of model.Gemma2."""
    if parameter == "embed_tokens.weight":
        return "token_embd.weight"
    if parameter == "norm.gain":
        return "output_norm.weight"
    _, block, rest = parameter.split(".", 2)
    return f"blk.{block}.{BLOCK_TENSORS[rest.rsplit('.', 1)[0]]}.weight"


def write(path, model, tokenizer):
    """Writes matrices as Q8_0 and norms as F32. `path` appears only when it is complete."""
    shape = model.shape
    partial = path.with_name(path.name + ".part")
    writer = GGUFWriter(partial, ARCHITECTURE)
    writer.add_name("llsteer-demo-en-es")
    writer.add_description("Gemma-2 of 5.8 million parameters on English and Spanish help and game texts")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_attn_logit_softcapping(shape.attention_cap)
    writer.add_final_logit_softcapping(shape.logit_cap)
    writer.add_sliding_window(settings.SLIDING_WINDOW)

    pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialized_model_proto()).pieces
    writer.add_tokenizer_model("llama")  # llama.cpp's name for SentencePiece; it merges by score, as BPE does
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece.encode() for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])  # GGUF took its numbers from SentencePiece
    writer.add_pad_token_id(settings.PAD)
    writer.add_eos_token_id(settings.EOS)
    writer.add_bos_token_id(settings.BOS)
    writer.add_unk_token_id(settings.UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)

    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(tensor_name(name), values)
        else:
            q8_0 = GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor_name(name), gguf.quants.quantize(values, q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def read(path):
    """The model, in float32 with Q8_0 dequantized, and its tokenizer."""
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read as a GGUF file: {error}") from error

    def value(key):
        field = reader.get_field(key)
        if field is None:
            raise SystemExit(f"{path}: a GGUF file of the demo model should hold the key {key}, and this one does not")
        return field.contents()

    architecture = value("general.architecture")
    if architecture != ARCHITECTURE:
        raise SystemExit(f"{path}: the architecture is {architecture!r}, and {ARCHITECTURE!r} was expected")
    shape = Shape(
        vocabulary=len(value("tokenizer.ggml.tokens")),
        context=value("gemma2.context_length"),
        width=value("gemma2.embedding_length"),
        blocks=value("gemma2.block_count"),
        heads=value("gemma2.attention.head_count"),
        kv_heads=value("gemma2.attention.head_count_kv"),
        head_width=value("gemma2.attention.key_length"),
        feed_forward=value("gemma2.feed_forward_length"),
        norm_epsilon=value("gemma2.attention.layer_norm_rms_epsilon"),
        rope_base=value("gemma2.rope.freq_base"),
        attention_cap=value("gemma2.attn_logit_softcapping"),
        logit_cap=value("gemma2.final_logit_softcapping"),
    )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    model = Gemma2(shape)
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = tensors[tensor_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weights[name] = torch.from_numpy(values.reshape(parameter.shape))
    model.load_state_dict(weights)
    tokenizer = read_tokenizer(*(value(f"tokenizer.ggml.{part}") for part in ("tokens", "scores", "token_type")))
    return model.eval().requires_grad_(False), tokenizer


def read_tokenizer(pieces, scores, types):
    """A SentencePiece processor for the vocabulary of a GGUF file."""
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = True
    for role, token in (("pad", settings.PAD), ("eos", settings.EOS), ("bos", settings.BOS), ("unk", settings.UNKNOWN)):
        setattr(proto.trainer_spec, f"{role}_id", token)
        setattr(proto.trainer_spec, f"{role}_piece", pieces[token])
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    tokenizer = sentencepiece.SentencePieceProcessor()
    tokenizer.load_from_serialized_proto(proto.SerializeToString())
    return tokenizer
