"""Log-probabilities of completions, activations and beam search: section 8 of the specification."""

import contextlib
import math
from dataclasses import dataclass, field

import torch

from spec_steering import log_probabilities, log_softmax, steered


def strengths_of(steerings, length):
    """The same strength for each token. `steerings` is a list of (Steering, strength)."""
    return [torch.full((length,), strength) for _, strength in steerings]


def logprob(model, prompt, completion, steerings, coldness, complement):
    """log p_t, or log(1 − p_t), of each token of the completion."""
    with torch.no_grad():
        logp = log_probabilities(
            model,
            prompt,
            completion,
            coldness,
            [steering for steering, _ in steerings],
            strengths_of(steerings, len(prompt) + len(completion)),
        )
    return torch.log(-torch.expm1(logp)) if complement else logp


def activations(model, tokens, steerings, steered_from):
    """What each block reads, layers × tokens × width; tokens before `steered_from` are not steered."""
    strengths = strengths_of(steerings, len(tokens))
    for strength in strengths:
        strength[:steered_from] = 0
    read = []
    with contextlib.ExitStack() as hooks, torch.no_grad():
        hooks.enter_context(steered(model, [steering for steering, _ in steerings], strengths))
        for block in model.model.layers:  # hooks run in the order in which they came
            hooks.enter_context(block.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0][0])))
        model(torch.tensor([tokens]), use_cache=False)
    return torch.stack(read)


@dataclass
class Search:
    """What is searched for; `end` are the tokens that end a beam."""

    prompt: list[int]
    beams: int
    iters: int
    coldness: float = 1.0
    use_total_probs: bool = False
    reverse: bool = False
    contrast: list[int] | None = None
    end: list[int] = field(default_factory=list)


@dataclass
class Beam:
    tokens: list[int]
    probs: list[float]

    def score(self, total):
        return math.prod(self.probs) if total else self.probs[-1]


def following(model, search, steerings, tokens):
    """The probability of each token after the prompt and `tokens`, minus that after the contrast."""

    def after(prompt):
        sequence = prompt + tokens
        only = [steering for steering, _ in steerings]
        with torch.no_grad():
            logp = log_softmax(model, sequence, search.coldness, only, strengths_of(steerings, len(sequence)))
        return logp[-1].exp()

    probs = after(search.prompt)
    return probs if search.contrast is None else probs - after(search.contrast)


def beam_search(model, search, steerings):
    """The beams, best first, and how far apart, relative to the larger, neighbours in each choice were at least."""
    beams, closest = [Beam([], [])], float("inf")
    for _ in range(1 + search.iters):
        candidates = []
        for beam in beams:
            if beam.tokens and beam.tokens[-1] in search.end:
                candidates.append(beam)
                continue
            for token, p in enumerate(following(model, search, steerings, beam.tokens).tolist()):
                candidates.append(Beam([*beam.tokens, token], [*beam.probs, p]))

        def rank(beam):
            return beam.score(search.use_total_probs) * (1 if search.reverse else -1)

        candidates.sort(key=rank)
        beams = candidates[: search.beams]
        scores = [beam.score(search.use_total_probs) for beam in candidates[: search.beams + 1]]
        closest = min(
            [closest] + [abs(a - b) / max(abs(a), abs(b)) for a, b in zip(scores, scores[1:], strict=False)]
        )
    return beams, closest
