"""Steering and its loss, in PyTorch: the operator, the loss of one completion, the regularizers.

The formulas are those of docs/steering.md. A model of the transformers library runs as it is; steering is a hook that
changes the residual stream x before a block reads it. Everything that the model computes is float32 (or float64, in the
second evaluation that measures float32's error); what is computed from its logits is always float64.
"""

import contextlib
from dataclasses import dataclass

import torch


@dataclass
class Operation:
    """What is done to x at the input of block `layer`, with strengths s of each token:

    x + Σ_k s_k · vectors[k] + s · leftᵀ right x
    """

    layer: int
    vectors: torch.Tensor  # vectors × width
    left: torch.Tensor | None = None  # rank × width
    right: torch.Tensor | None = None

    def tensors(self):
        """The parameters by name, without those that are not there."""
        named = {"vectors": self.vectors, "left": self.left, "right": self.right}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass
class Strengths:
    """How strongly the tokens of one sequence are steered, at all layers alike."""

    vectors: torch.Tensor  # vectors × tokens
    matrix: torch.Tensor | None = None  # tokens

    def to(self, dtype):
        return Strengths(self.vectors.to(dtype), None if self.matrix is None else self.matrix.to(dtype))


@contextlib.contextmanager
def steered(model, operations, strengths):
    """Within it, a forward pass of one sequence through the model is steered."""

    def hook(operation):
        def change(block, arguments):
            x = arguments[0]
            steered = x + strengths.vectors.T @ operation.vectors
            if operation.left is not None:
                steered = steered + strengths.matrix[:, None] * (x @ operation.right.T @ operation.left)
            return (steered, *arguments[1:])

        return change

    with contextlib.ExitStack() as hooks:
        for operation in operations:
            hooks.enter_context(model.model.layers[operation.layer].register_forward_pre_hook(hook(operation)))
        yield


def log_probabilities(model, tokens, prompt, operations, strengths, coldness):
    """log p_t of each token behind the first `prompt` ones, float64; p = softmax(coldness · logits)."""
    count = len(tokens) - prompt
    with steered(model, operations, strengths):
        # The last token predicts what would come after the completion: its logits are not needed.
        logits = model(torch.tensor([tokens]), use_cache=False, logits_to_keep=count + 1).logits[0, :-1]
    logp = (coldness * logits.double()).log_softmax(-1)
    return logp[torch.arange(count), torch.tensor(tokens[prompt:])]


def loss(logp, kind, eps, one_minus=True):
    """The loss of one completion in nats; kind is "src" or "dst"."""
    if kind == "dst":
        return -(logp.exp() + eps).log().sum()
    if one_minus:
        return -(-torch.expm1(logp) + eps).log().sum()  # expm1: 1 - p cancels where p is near 1
    return (logp.exp() + eps).log().sum()


def regularizers(vectors, regularization_type):
    """What several layers with a vector each add to the loss, at the default weights 0.01, 0.1 and 0.01."""
    vectors = [v.double() for v in vectors]
    norms = torch.stack([v.norm() for v in vectors])
    if regularization_type == "l1":
        size = sum(v.abs().sum() for v in vectors)
    else:
        size = sum(v.abs().max() for v in vectors)
    share = norms.softmax(0)
    entropy = -(share * share.log()).sum()
    return 0.01 * size + 0.1 * norms.sum() + 0.01 * entropy


def residual_norms(model, tokens):
    """Norm of each token's unsteered residual stream at the input of each block, layers × tokens."""
    norms = []
    with contextlib.ExitStack() as hooks:
        for block in model.model.layers:
            hooks.enter_context(
                block.register_forward_pre_hook(lambda _, inputs: norms.append(inputs[0][0].norm(dim=-1)))
            )
        model(torch.tensor([tokens]), use_cache=False)
    return torch.stack(norms)
