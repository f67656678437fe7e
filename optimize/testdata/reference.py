#!/usr/bin/env python3
"""Writes reference.json, for the tests of this folder: losses, gradients and optimizer steps on a tiny model, and slices.

    python3 reference.py > reference.json

Written from docs/steering.md, with the standard library only and no derivative worked out by hand: gradients are
complex-step derivatives, f(x + ih) = f(x) + ih f'(x) + O(h²), which lose no digits for h as small as 1e-30.
"""

import cmath
import json
import math
import random

WIDTH, VOCABULARY, BLOCKS = 3, 5, 2
STEP = 1e-30


def make_model(rng):
    def matrix(rows, columns, scale):
        return [[round(rng.gauss(0, scale), 3) for _ in range(columns)] for _ in range(rows)]

    return {
        "embedding": matrix(VOCABULARY, WIDTH, 1.0),
        "blocks": [matrix(WIDTH, WIDTH, 0.8) for _ in range(BLOCKS)],
        "head": matrix(VOCABULARY, WIDTH, 1.2),
    }


def product(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector)) for row in matrix]


def target_probabilities(model, tokens, prompt, strengths, vectors, coldness):
    """p of each token from `prompt` on; vectors[l] is added at the input of block l with each token's strength."""
    stream = [list(model["embedding"][t]) for t in tokens]
    for layer, block in enumerate(model["blocks"]):
        if layer in vectors:
            stream = [[x + s * v for x, v in zip(xs, vectors[layer])] for xs, s in zip(stream, strengths)]
        # every token sees the mean of itself and those before it
        mixed = [[sum(xs[k] for xs in stream[: i + 1]) / (i + 1) for k in range(WIDTH)] for i in range(len(stream))]
        stream = [[x + cmath.tanh(y) for x, y in zip(xs, product(block, m))] for xs, m in zip(stream, mixed)]
    result = []
    for i in range(prompt, len(tokens)):
        exponentials = [cmath.exp(coldness * y) for y in product(model["head"], stream[i - 1])]
        result.append(exponentials[tokens[i]] / sum(exponentials))
    return result


def magnitude(z):
    """|x| for a real x, continued to x + ih."""
    return z if z.real > 0 else -z if z.real < 0 else 0


def completion_loss(sequence, vectors, model, options):
    loss = 0
    for p in target_probabilities(model, sequence["tokens"], sequence["prompt"], sequence["strengths"], vectors, options["coldness"]):
        if sequence["side"] == 1:
            loss -= cmath.log(p + options["eps"])
        elif options["do_one_minus"]:
            loss -= cmath.log(1 - p + options["eps"])
        else:
            loss += cmath.log(p + options["eps"])
    if options["normalize_token_length"]:
        loss /= len(sequence["tokens"]) - sequence["prompt"]
    return loss


def regularizers(vectors, options):
    total = 0
    norms = []
    for v in vectors:
        magnitudes = [magnitude(x) for x in v]
        largest = max(magnitudes, key=lambda z: z.real if isinstance(z, complex) else z)
        total += options["regularization_weight"] * (largest if options["regularization_type"] == "max" else sum(magnitudes))
        norms.append(cmath.sqrt(sum(x * x for x in v)))
    total += options["sparsity_weight"] * sum(norms)
    exponentials = [cmath.exp(n) for n in norms]
    shares = [e / sum(exponentials) for e in exponentials]
    return total - options["entropy_weight"] * sum(q * cmath.log(q) for q in shares)


def evaluate(parameters, case, model):
    """(total loss, completions' losses, what is differentiated) at one vector for each layer, or one for all."""
    options, layers, shared = case["options"], case["layers"], case["shared"]
    vectors = {layer: parameters[0 if shared else i] for i, layer in enumerate(layers)}
    losses = [completion_loss(s, vectors, model, options) for s in case["sequences"]]
    extra = regularizers(parameters, options) if len(layers) > 1 and not shared else 0
    objective = sum(losses) + extra
    if options["satisfice"]:
        objective = extra + sum((loss - s["target"]) ** 2 for loss, s in zip(losses, case["sequences"]))
    return sum(losses) + extra, losses, objective


def gradient(parameters, case, model):
    result = []
    for i, vector in enumerate(parameters):
        row = []
        for k in range(len(vector)):
            moved = [list(v) for v in parameters]
            moved[i][k] += 1j * STEP
            row.append(complex(evaluate(moved, case, model)[2]).imag / STEP)
        result.append(row)
    return result


def adam(case, model, steps, lr, max_norm):
    """Adam as in algorithm 1 of arXiv 1412.6980; after each step, vectors longer than max_norm are scaled down."""
    parameters = [list(v) for v in case["start"]]
    first = [[0.0] * WIDTH for _ in parameters]
    second = [[0.0] * WIDTH for _ in parameters]
    trajectory = []
    for t in range(1, steps + 2):
        total = complex(evaluate(parameters, case, model)[0]).real
        trajectory.append({"loss": total, "vectors": [list(v) for v in parameters]})
        for i, slopes in enumerate(gradient(parameters, case, model)):
            for k, g in enumerate(slopes):
                first[i][k] = 0.9 * first[i][k] + 0.1 * g
                second[i][k] = 0.999 * second[i][k] + 0.001 * g * g
                parameters[i][k] -= lr * (first[i][k] / (1 - 0.9**t)) / (math.sqrt(second[i][k] / (1 - 0.999**t)) + 1e-8)
            norm = math.hypot(*parameters[i])
            if norm > max_norm:
                parameters[i] = [x * max_norm / norm for x in parameters[i]]
    return trajectory


def slices(length):
    """What Python's slices of range(length) select."""
    bounds = [None, -length - 1, -2, 0, 2, length, length + 1]
    found = {}
    for start in bounds:
        for stop in bounds:
            for step in [None, 2, -1, -3]:
                written = ":".join("" if n is None else str(n) for n in (start, stop, step))
                found[written] = list(range(length))[start:stop:step]
    return {"length": length, "selected": found}


def main():
    rng = random.Random(20260)
    model = make_model(rng)
    # two examples: the first with a src and a dst completion, the second, negative and masked, with two dst
    sequences = [
        {"example": 0, "side": 0, "tokens": [0, 3, 1, 2, 4], "prompt": 3, "strengths": [1] * 5, "target": 0.25},
        {"example": 0, "side": 1, "tokens": [0, 3, 1, 4], "prompt": 3, "strengths": [1] * 4, "target": 0.5},
        {"example": 1, "side": 1, "tokens": [0, 2, 2, 3, 1], "prompt": 2, "strengths": [0, -1, -1, -1, -1], "target": 3},
        {"example": 1, "side": 1, "tokens": [0, 2, 1], "prompt": 2, "strengths": [0, -1, -1], "target": 0.5},
    ]
    defaults = {
        "coldness": 0.7,
        "eps": 1e-6,
        "do_one_minus": True,
        "normalize_token_length": False,
        "satisfice": False,
        "regularization_weight": 0.01,
        "regularization_type": "l1",
        "sparsity_weight": 0.1,
        "entropy_weight": 0.01,
    }
    strong = {"regularization_weight": 0.3, "sparsity_weight": 0.4, "entropy_weight": 2.0}
    variants = [
        ("defaults", [1], False, {}),
        ("layer 0", [0], False, {}),
        ("two layers", [0, 1], False, {}),
        ("two layers, strong regularizers", [0, 1], False, strong),
        ("two layers, max", [0, 1], False, {**strong, "regularization_type": "max"}),
        ("shared", [0, 1], True, strong),
        ("one layer, strong regularizers", [1], False, strong),
        ("without one-minus", [1], False, {"do_one_minus": False}),
        ("normalized", [1], False, {"normalize_token_length": True}),
        ("satisfice", [1], False, {"satisfice": True}),
        ("satisfice, normalized, two layers", [0, 1], False, {"satisfice": True, "normalize_token_length": True, **strong}),
        ("cold", [1], False, {"coldness": 3.0, "eps": 1e-3}),
    ]
    cases = []
    for name, layers, shared, changed in variants:
        # float32 holds these numbers exactly
        start = [[round(rng.gauss(0, 0.7) * 1024) / 1024 for _ in range(WIDTH)] for _ in ([0] if shared else layers)]
        case = {"name": name, "layers": layers, "shared": shared, "start": start, "options": {**defaults, **changed}, "sequences": sequences}
        total, losses, _ = evaluate(start, case, model)
        case["loss"] = complex(total).real
        case["losses"] = [complex(loss).real for loss in losses]
        case["gradient"] = gradient(start, case, model)
        cases.append(case)
    descents = []
    for name, lr, max_norm in [("two layers", 0.05, 1e9), ("shared", 0.05, 1e9), ("defaults", 0.3, 1.25)]:
        case = next(c for c in cases if c["name"] == name)
        descents.append({"case": name, "lr": lr, "max_norm": max_norm, "steps": adam(case, model, 10, lr, max_norm)})
    for case in cases:
        del case["sequences"]
    reference = {"model": model, "sequences": sequences, "cases": cases, "descents": descents, "slices": slices(5)}
    # a line for each case and descent
    text = json.dumps(reference)
    for opening in ('"sequences"', '"cases"', '"descents"', '"slices"', '{"example"', '{"name"', '{"case"'):
        text = text.replace(opening, "\n" + opening)
    print(text)


if __name__ == "__main__":
    main()
