"""Reference values for the tests of llsteer's engine and optimizer, computed by PyTorch and transformers.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python make.py                  # every architecture, about a minute and a half
    .venv/bin/python make.py gemma2 llama     # some

For each architecture of architectures.py it makes a tiny random model, writes it as NAME.gguf, and writes to NAME.json
what PyTorch computes for it: log-probabilities, losses (docs/steering.md, the loss of one completion) and gradients of
steered completions (the steering operator), logits, a greedy continuation, runs of Adam with and without the
regularizers of several layers, and norms of the residual stream. README.md describes every key of that file.

The values are those of a float32 model on one thread; the objective is computed from its logits in float64. All of it is
computed once more in float64 throughout, and the difference is in the file too: tolerances below it would test
PyTorch's rounding.

It ends with an error, and leaves the files as they were, if llama.cpp does not find the same logits for the GGUF file,
unsteered and with a control vector at the middle layer; if float32 is not accurate enough to be a reference; or if a
greedy choice is too close to call.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import architectures
import llama_cpp
from fixture import (
    Unfit,
    float32_is_float64,
    largest_difference,
    plain_fields,
    relative_difference,
    require,
    write_json,
)
from steering import Operation, Strengths, log_probabilities, loss, regularizers, residual_norms, steered

HERE = Path(__file__).resolve().parent

COLDNESS = 0.7
EPS = 1e-6
VECTOR_NORM = 2.0  # about; the stream's own norm is 2 to 30 in these models
ROW_NORM = 1.0  # of the rows of a matrix
RANK = 2
LEARNING_RATE = 0.05
STEPS = 10
CONTINUATION = 12

# What llama.cpp's logits may differ by. Its GELU is a table of float16 values, and so coarse.
LLAMA_CPP_SILU, LLAMA_CPP_GELU = 2e-4, 5e-3
# What float32 may add to the values here: a tenth of what the engine is allowed.
FLOAT32_CASE = {"logp": 1e-5, "losses": 1e-5, "gradient": 3e-6}
FLOAT32_RUN = {"totals": 5e-5, "vectors": 1e-5}
CLEAR_CHOICE = 2e-3  # the least distance of the two largest logits in a greedy continuation: ten times their tolerance


@dataclass
class Sequence:
    """A prompt with one completion."""

    example: int
    kind: str  # "src" or "dst"
    prompt: int  # number of tokens
    tokens: list[int]


@dataclass
class Case:
    """One evaluation of the objective."""

    name: str
    operations: list[Operation]
    strengths: list[Strengths]  # parallel to the sequences
    one_minus: bool = True
    normalize_token_length: bool = False
    satisfice: float | None = None  # the target, or None
    token: list[str] | None = None  # where the strengths come from a token mask: that of each example
    negative: list[bool] | None = None  # or from negative examples


@dataclass
class Run:
    """An optimization with Adam, one vector for each layer or one shared by all."""

    name: str
    layers: list[int]
    start: torch.Tensor  # layers × width, or 1 × width
    regularization_type: str | None = None

    def operations(self, vectors):
        shared = len(vectors) == 1
        return [Operation(layer, vectors[0 if shared else i][None]) for i, layer in enumerate(self.layers)]


class Draws:
    """Random numbers of one architecture's fixture."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def tokens(self, count):
        return torch.randint(0, architectures.VOCABULARY, (count,), generator=self.generator).tolist()

    def rows(self, count, norm):
        """Random directions of about that norm, in multiples of 1/1024: short in a file, exact in float32."""
        rows = torch.randn(count, architectures.WIDTH, generator=self.generator)
        return (rows * (norm / rows.norm(dim=1, keepdim=True)) * 1024).round() / 1024

    def vectors(self, count=1):
        return self.rows(count, VECTOR_NORM)


def make_sequences(draws, model):
    """Three examples: one source with two targets, one target alone, one source alone.

    A source completion is what the model itself says, as in practice: random tokens have a probability next to 0
    already, and their loss would be 0. The two targets of the first example share their first token.
    """

    def own_words(prompt, count):
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens

    first, second, third = draws.tokens(9), draws.tokens(4), draws.tokens(6)
    target = draws.tokens(7)
    return [
        Sequence(0, "src", 9, own_words(first, 5)),
        Sequence(0, "dst", 9, first + target),
        Sequence(0, "dst", 9, first + target[:1] + draws.tokens(2)),
        Sequence(1, "dst", 4, second + draws.tokens(4)),
        Sequence(2, "src", 6, own_words(third, 6)),
    ]


def make_cases(draws, sequences, layers):
    middle, last = layers // 2, layers - 1

    def everywhere(factor=1.0):
        return [Strengths(torch.full((1, len(s.tokens)), factor)) for s in sequences]

    def operations(*layers):
        return [Operation(layer, draws.vectors()) for layer in layers]

    def affine(*layers):
        return [
            Operation(layer, draws.vectors(), draws.rows(RANK, ROW_NORM), draws.rows(RANK, ROW_NORM))
            for layer in layers
        ]

    def with_matrix(strengths):
        return [Strengths(s.vectors, torch.ones(s.vectors.shape[1])) for s in strengths]

    def masked(span):
        """Strength 1 at the tokens that span(sequence), a slice, selects."""
        strengths = everywhere(0.0)
        for sequence, strength in zip(sequences, strengths, strict=True):
            strength.vectors[0, span(sequence)] = 1
        return strengths

    def negative(example):
        return [
            Strengths(s.vectors * (-1 if q.example == example else 1))
            for s, q in zip(everywhere(), sequences, strict=True)
        ]

    at_random = [Strengths(torch.randint(-3, 5, (1, len(s.tokens)), generator=draws.generator) / 4) for s in sequences]
    of_two = [
        Strengths(torch.tensor([share]).T.expand(2, len(s.tokens)).contiguous())
        for s, share in zip(sequences, [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)], strict=True)
    ]
    spans, negatives = ["3:-2", "-2", ":4"], [True, False, False]
    slices = [slice(3, -2), slice(-2, -1), slice(0, 4)]
    return [
        Case("unsteered", [], everywhere()),
        Case("layer_0", operations(0), everywhere()),
        Case("layer_1", operations(1), everywhere()),
        Case("middle", operations(middle), everywhere()),
        Case("last", operations(last), everywhere()),
        Case("all", operations(*range(layers)), everywhere()),
        Case("middle_slices", operations(middle), masked(lambda s: slices[s.example]), token=spans),
        Case("middle_prompt_only", operations(middle), masked(lambda s: slice(s.prompt))),
        Case("middle_strengths", operations(middle), at_random),
        Case("middle_negative", operations(middle), negative(0), negative=negatives),
        Case("middle_affine", affine(middle), with_matrix(everywhere())),
        Case("layer_0_and_middle_affine", affine(0, middle), with_matrix(everywhere())),
        Case("middle_affine_negative", affine(middle), with_matrix(negative(0)), negative=negatives),
        Case("middle_two_vectors", [Operation(middle, draws.vectors(2))], of_two),
        Case("middle_without_one_minus", operations(middle), everywhere(), one_minus=False),
        Case("middle_normalized", operations(middle), everywhere(), normalize_token_length=True),
        Case("middle_satisfice", operations(middle), everywhere(), satisfice=4.0),
    ]


def make_runs(draws, layers):
    middle = layers // 2
    return [
        Run("middle", [middle], draws.vectors()),
        Run("shared", [0, middle], draws.vectors()),
        Run("all", list(range(layers)), draws.vectors(layers), "l1"),
        Run("all_max", list(range(layers)), draws.vectors(layers), "max"),
    ]


def evaluate(model, sequences, case):
    """log p of every completion token, the losses, and what is differentiated."""
    logp, losses, objective = [], [], 0
    for sequence, strengths in zip(sequences, case.strengths, strict=True):
        strengths = strengths.to(model.dtype)
        p = log_probabilities(model, sequence.tokens, sequence.prompt, case.operations, strengths, COLDNESS)
        one = loss(p, sequence.kind, EPS, case.one_minus)
        if case.normalize_token_length:
            one = one / len(p)
        objective = objective + (one if case.satisfice is None else (one - case.satisfice) ** 2)
        logp.append(p.detach())
        losses.append(one.detach())
    return logp, torch.stack(losses), objective


def with_gradient(model, sequences, case):
    """Evaluates a case in the model's precision; the gradient has the form of the operations."""
    leaves = [
        {name: t.to(model.dtype, copy=True).requires_grad_() for name, t in o.tensors().items()}
        for o in case.operations
    ]
    operations = [Operation(o.layer, **named) for o, named in zip(case.operations, leaves, strict=True)]
    logp, losses, objective = evaluate(model, sequences, dataclasses.replace(case, operations=operations))
    if leaves:
        objective.backward()
    gradient = [Operation(o.layer, **{name: t.grad for name, t in o.tensors().items()}) for o in operations]
    return logp, losses, gradient


def adam(model, sequences, run):
    """Losses and totals of STEPS + 1 evaluations, and the vectors after the last step, which are those of the last evaluation."""
    vectors = [v.to(model.dtype, copy=True).requires_grad_() for v in run.start]
    optimizer = torch.optim.Adam(vectors, lr=LEARNING_RATE)
    strengths = [Strengths(torch.ones(1, len(s.tokens))) for s in sequences]
    all_losses, totals = [], []
    for step in range(STEPS + 1):
        _, losses, total = evaluate(model, sequences, Case(run.name, run.operations(vectors), strengths))
        if run.regularization_type:
            total = total + regularizers(vectors, run.regularization_type)
        all_losses.append(losses)
        totals.append(total.detach())
        if step < STEPS:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return torch.stack(all_losses), torch.stack(totals), torch.stack([v.detach() for v in vectors])


def logits_of(model, tokens, layer=None, vector=None):
    operations = [] if layer is None else [Operation(layer, vector[None])]
    with steered(model, operations, Strengths(torch.ones(1, len(tokens)))):
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


def continue_greedily(model, prompt, layer, vector):
    """CONTINUATION tokens, every token steered, each found from the whole sequence before it; and the closest choice."""
    tokens, closest = list(prompt), float("inf")
    for _ in range(CONTINUATION):
        best = logits_of(model, tokens, layer, vector)[-1].topk(2)
        closest = min(closest, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], closest


def in_float64(architecture, model):
    """The same weights in float64. Build and use it within float32_is_float64: its rotary angles are made anew."""
    double = transformers.AutoModelForCausalLM.from_config(architecture.config).eval().requires_grad_(False).double()
    double.load_state_dict(model.state_dict())
    return double


def case_values(case, model, double, sequences):
    logp, losses, gradient = with_gradient(model, sequences, case)
    with float32_is_float64():
        exact_logp, exact_losses, exact_gradient = with_gradient(double, sequences, case)
    errors = {
        "logp": largest_difference(logp, exact_logp),
        "losses": largest_difference(losses, exact_losses),
        "gradient": relative_difference(gradient, exact_gradient),
    }
    for what, error in errors.items():
        require(error <= FLOAT32_CASE[what], f"case {case.name}: float32 changes {what} by {error}: take another seed")
    results = {"logp": logp, "losses": losses, "total": losses.sum(), "gradient": gradient, "float32_error": errors}
    return plain_fields(case) | results


def run_values(run, model, double, sequences):
    losses, totals, vectors = adam(model, sequences, run)
    with float32_is_float64():
        _, exact_totals, exact_vectors = adam(double, sequences, run)
    errors = {
        "totals": largest_difference(totals, exact_totals),
        "vectors": largest_difference(vectors, exact_vectors),
    }
    for what, error in errors.items():
        require(error <= FLOAT32_RUN[what], f"run {run.name}: float32 changes {what} by {error}: take another seed")
    results = {"losses": losses, "totals": totals, "vectors": vectors, "float32_error": errors}
    return plain_fields(run) | {"learning_rate": LEARNING_RATE} | results


def logits_values(path, gelu, model, tokens, layer, vector):
    """The keys "logits" and "llama_cpp_logits" for one sequence of the GGUF file at path and the model it was made of."""
    unsteered, with_vector = logits_of(model, tokens), logits_of(model, tokens, layer, vector)
    theirs = llama_cpp.logits(path, tokens, architectures.VOCABULARY)
    theirs_with_vector = llama_cpp.logits(path, tokens, architectures.VOCABULARY, layer, vector.numpy())
    differences = {
        "unsteered": largest_difference(unsteered, torch.from_numpy(theirs)),
        "steered": largest_difference(with_vector, torch.from_numpy(theirs_with_vector)),
    }
    allowed = LLAMA_CPP_GELU if gelu else LLAMA_CPP_SILU
    for which, difference in differences.items():
        require(difference <= allowed, f"llama.cpp's {which} logits differ by {difference}, expected at most {allowed}")
    positions = [0, 7, 8, len(tokens) - 1]
    return {
        "logits": {
            "tokens": tokens,
            "positions": positions,
            "layer": layer,
            "vector": vector,
            "unsteered": unsteered[positions],
            "steered": with_vector[positions],
        },
        "llama_cpp_logits": {
            "build": llama_cpp.BUILD,
            "unsteered": theirs[positions],
            "difference": differences,
        },
    }


def continuation_values(model, prompt, layer, vector):
    tokens, closest = continue_greedily(model, prompt, layer, vector)
    require(closest >= CLEAR_CHOICE, f"two logits of the continuation are only {closest} apart: take another seed")
    require(len(set(tokens)) > 2, f"the continuation {tokens} hardly varies: take another seed")
    return {"prompt": prompt, "layer": layer, "vector": vector, "tokens": tokens, "closest_choice": closest}


def make(architecture, folder):
    draws = Draws(architecture.seed)
    model = architectures.random_model(architecture, draws.generator)
    layers = architecture.config.num_hidden_layers
    sequences = make_sequences(draws, model)
    cases = make_cases(draws, sequences, layers)
    runs = make_runs(draws, layers)
    vector = draws.vectors()[0]
    with float32_is_float64():
        double = in_float64(architecture, model)

    path = folder / f"{architecture.name}.gguf"
    trial = folder / f"{architecture.name}.trial.gguf"
    try:
        architectures.write(trial, architecture, model)
        values = {
            "name": architecture.name,
            "arch": architecture.gguf_name,
            "model": {"file": path.name, "sha256": hashlib.sha256(trial.read_bytes()).hexdigest()},
            "made_with": {
                name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", llama_cpp.PACKAGE)
            },
            "activation": "gelu" if architecture.gelu else "silu",
            "width": architectures.WIDTH,
            "layers": layers,
            "vocabulary": architectures.VOCABULARY,
            "coldness": COLDNESS,
            "eps": EPS,
            "sequences": sequences,
            "cases": [case_values(case, model, double, sequences) for case in cases],
            "adam": [run_values(run, model, double, sequences) for run in runs],
            **logits_values(trial, architecture.gelu, model, sequences[1].tokens, layers // 2, vector),
            "continuation": continuation_values(model, sequences[0].tokens[: sequences[0].prompt], layers // 2, vector),
            "residual_norms": {
                "tokens": sequences[1].tokens,
                "norms": residual_norms(model, sequences[1].tokens),
            },
        }
        write_json(path.with_suffix(".json"), values)
        os.replace(trial, path)
    finally:
        trial.unlink(missing_ok=True)
    report(architecture.name, values)


def report(name, values):
    def worst(part, what):
        return max(value["float32_error"][what] for value in values[part])

    difference = values["llama_cpp_logits"]["difference"]
    print(
        f"{name:8} float32: log p {worst('cases', 'logp'):.1e}, losses {worst('cases', 'losses'):.1e}, "
        f"gradient {worst('cases', 'gradient'):.1e}, Adam {worst('adam', 'totals'):.1e} and {worst('adam', 'vectors'):.1e}; "
        f"llama.cpp: {difference['unsteered']:.1e}, steered {difference['steered']:.1e}"
    )


def main():
    names = [architecture.name for architecture in architectures.ARCHITECTURES]
    parser = argparse.ArgumentParser(description="Reference values for the tests, computed by PyTorch.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all of them unless given")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this one)")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in names:
            parser.error(f"{name!r} is none of {', '.join(names)}")
    torch.set_num_threads(1)
    for architecture in architectures.ARCHITECTURES:
        if architecture.name in arguments.names or not arguments.names:
            try:
                make(architecture, arguments.out)
            except Unfit as problem:
                raise SystemExit(f"{architecture.name}: {problem}") from None


if __name__ == "__main__":
    main()
