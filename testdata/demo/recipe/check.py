"""Step 6: is our model Gemma-2? Compares its logits with those of transformers' Gemma2 with the same weights."""

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import gguf_file
import settings

# Both compute in float32 (rounding 6e-8), along sums of up to 768 products through 6 blocks; logits are below 30.
# 1e-4 allows some fifty roundings of the largest logit in a row; the other form of GELU alone differs by 7e-4.
MAX_DIFFERENCE = 1e-4


def as_transformers(model):
    shape = model.shape
    config = Gemma2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        query_pre_attn_scalar=shape.head_width,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_epsilon,
        rope_theta=shape.rope_base,
        sliding_window=settings.SLIDING_WINDOW,
        attn_logit_softcapping=shape.attention_cap,
        final_logit_softcapping=shape.logit_cap,
        tie_word_embeddings=True,
        pad_token_id=settings.PAD,
        bos_token_id=settings.BOS,
        eos_token_id=settings.EOS,
        attn_implementation="eager",  # the one that applies the soft cap of the scores
    )
    other = Gemma2ForCausalLM(config).eval()
    weights = {}
    for name, parameter in model.state_dict().items():
        if name.endswith(".gain"):
            name, parameter = name.removesuffix("gain") + "weight", parameter - 1
        weights[f"model.{name}"] = parameter
    missing, unexpected = other.load_state_dict(weights, strict=False)
    if set(missing) != {"lm_head.weight"} or unexpected:  # the head is the embedding, under a second name
        raise SystemExit(f"transformers' Gemma2 has other parameters: missing {missing}, unexpected {unexpected}")
    return other


@torch.no_grad()
def check(model_path):
    model, tokenizer = gguf_file.read(model_path)
    other = as_transformers(model)
    # Text of both languages, and random tokens, on which scores reach the soft caps.
    text = "When you open the program, the main window shows the list of your files.\nEl viejo rey miró a los soldados."
    context = model.shape.context
    random_tokens = torch.randint(
        model.shape.vocabulary, (2, context), generator=torch.Generator().manual_seed(settings.SEED)
    )
    for name, tokens in (
        ("text", torch.tensor([[settings.BOS, *tokenizer.encode(text)]])),
        ("random tokens", random_tokens),
    ):
        ours, theirs = model(tokens), other(tokens).logits
        difference = (ours - theirs).abs().max().item()
        print(f"{name}: largest difference of logits {difference:.2e}, largest logit {theirs.abs().max():.1f}")
        if not difference <= MAX_DIFFERENCE:
            raise SystemExit(f"the models differ: a difference of at most {MAX_DIFFERENCE} was expected")
