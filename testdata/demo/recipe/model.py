"""Gemma-2 in plain PyTorch: small enough to read, and with a place to steer.

The mathematics is that of the Gemma-2 report (Gemma Team, 2024, arXiv 2408.00118): grouped-query attention with rotary
positions, RMS norms before and after both halves of a block, a gated feed-forward with the tanh form of GELU, and
soft caps on attention scores and logits. `make_demo.py check` compares it with the transformers library.

Parameter names are those of the checkpoint format of transformers, save that a norm holds its factor itself (`gain`),
as a GGUF file does, where the checkpoint format holds gain - 1.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        # The mean square is taken in float32 even where training runs in bfloat16: it sums hundreds of squares.
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.gain


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, queries, bias=False)
        self.k_proj = nn.Linear(shape.width, keys, bias=False)
        self.v_proj = nn.Linear(shape.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.width, bias=False)

    def forward(self, x, rotation, capped):
        shape = self.shape
        rows, length, _ = x.shape

        def split(projected, heads):
            return projected.view(rows, length, heads, shape.head_width).transpose(1, 2)

        q = rotate(split(self.q_proj(x), shape.heads), rotation)
        k = rotate(split(self.k_proj(x), shape.kv_heads), rotation)
        v = split(self.v_proj(x), shape.kv_heads)
        # Each key-value head serves heads / kv_heads query heads.
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scale = shape.head_width**-0.5
        if capped:
            scores = shape.attention_cap * torch.tanh(q @ k.transpose(-1, -2) * (scale / shape.attention_cap))
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True, scale=scale)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


class FeedForward(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.pre_feedforward_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.post_feedforward_layernorm = RMSNorm(shape.width, shape.norm_epsilon)

    def forward(self, x, rotation, capped):
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotation, capped))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma2(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)  # also the output matrix
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = RMSNorm(shape.width, shape.norm_epsilon)
        # cos and sin of every position and frequency, each frequency twice: for both halves of a head.
        frequencies = shape.rope_base ** (-torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies).repeat(1, 2)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def initialize(self):
        """Random weights to train from.

        The two norms that end a block's halves start at 1 / sqrt(blocks): what each half adds to the residual stream
        has then a norm that does not grow with the depth, and training is steady at large rates from the first steps.
        """
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for block in self.layers:
            for matrix in (p for p in block.parameters() if p.dim() == 2):
                nn.init.normal_(matrix, std=0.8 / math.sqrt(matrix.shape[1]))
            for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
                nn.init.constant_(norm.gain, self.shape.blocks**-0.5)
        return self

    def hidden(self, tokens, steering=None, capped=True):
        """What the output matrix is applied to: rows × length × width.

        steering: (layer, vector); the vector, broadcast over rows and positions, is added at the input of that block.
        capped=False leaves the soft cap of the attention scores out and lets PyTorch use its fused attention.
        """
        x = self.embed_tokens(tokens) * math.sqrt(self.shape.width)
        rotation = self.cosines[: x.shape[1]], self.sines[: x.shape[1]]
        layer, vector = steering or (None, None)
        for i, block in enumerate(self.layers):
            x = block(x + vector if i == layer else x, rotation, capped)
        return self.norm(x)

    def logits(self, hidden):
        cap = self.shape.logit_cap
        return cap * torch.tanh(F.linear(hidden, self.embed_tokens.weight) / cap)

    def forward(self, tokens, steering=None):
        return self.logits(self.hidden(tokens, steering))


def rotate(x, rotation):
    """Rotary positions (Su et al., 2021): pairs are (i, i + head_width / 2)."""
    cosines, sines = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
