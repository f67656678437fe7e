"""What steering does to the model: the demo job in PyTorch, float32, and how often it turns the language.

The objective is that of the job file: for each example the target ("dst") completions become likely and the source
("src") completions unlikely. The values found are written as a fixture that other implementations are tested against;
README.md describes its keys.
"""

import hashlib
import json
import os
from dataclasses import dataclass

import numpy
import torch
import yaml

import gguf_file
import languages
import settings

OTHER = {"english": "spanish", "spanish": "english"}
TOWARDS_OTHER = {"english": 1, "spanish": -1}  # the vector points from English to Spanish


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    sources: list[list[int]]  # the tokens of each completion, without the prompt's
    targets: list[list[int]]


def read_job(tokenizer):
    """The examples of spanish.yaml as tokens, and its layer, learning rate and number of steps."""
    job = yaml.safe_load(settings.JOB.read_text(encoding="utf-8"))

    def encode(text):
        return [settings.BOS, *tokenizer.encode(text)]

    def encode_example(example):
        prompt = encode(example["prompt"])
        # Prompt and completion are tokenized as one text; the completion's tokens are what follows the prompt's.
        sources, targets = (
            [encode(example["prompt"] + text)[len(prompt) :] for text in example[key]]
            for key in ("src_completions", "dst_completions")
        )
        return Example(prompt, sources, targets)

    return list(map(encode_example, job["examples"])), job["layer"], job["lr"], job["max_iters"]


def log_probabilities(model, prompt, completion, steering):
    """log p of each completion token, at the job's coldness."""
    tokens = torch.tensor([prompt + completion[:-1]])
    logits = model(tokens, steering)[0, len(prompt) - 1 :]
    return (settings.COLDNESS * logits).log_softmax(-1)[range(len(completion)), completion]


def losses(model, examples, steering):
    """[[log p of each source, …], [log p of each target, …]] and the losses, nested alike, for each example.

    A loss is -Σ log(p + ε) of a target and -Σ log(1 - p + ε) of a source, in nats.
    """
    log_ps, values = [], []
    for example in examples:
        pair = [
            [log_probabilities(model, example.prompt, completion, steering) for completion in completions]
            for completions in (example.sources, example.targets)
        ]
        sources, targets = pair
        log_ps.append(pair)
        values.append(
            [
                [-(settings.EPSILON - log_p.expm1()).log().sum() for log_p in sources],
                [-(settings.EPSILON + log_p.exp()).log().sum() for log_p in targets],
            ]
        )
    return log_ps, values


def flat(nested):
    return [value for pair in nested for completions in pair for value in completions]


@dataclass
class Run:
    seed: int
    start: torch.Tensor
    first_log_ps: list  # at the start, as losses() nests them
    first_losses: list
    first_gradient: torch.Tensor
    totals: list[float]  # totals[k]: after k steps
    vector: torch.Tensor


def find_vector(model, examples, layer, rate, steps, seed):
    """Adam from a random direction of norm STARTING_NORM."""
    direction = torch.randn(model.shape.width, generator=torch.Generator().manual_seed(seed))
    start = (direction * (settings.STARTING_NORM / direction.norm())).to(model.norm.gain.dtype)
    vector = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([vector], lr=rate)
    totals = []
    for step in range(steps + 1):
        adam.zero_grad()
        log_ps, values = losses(model, examples, (layer, vector))
        total = torch.stack(flat(values)).sum()
        totals.append(total.item())
        if step == steps:
            break
        total.backward()
        if step == 0:
            first = log_ps, values, vector.grad.clone()
        adam.step()
    return Run(seed, start, *first, totals, vector.detach())


@torch.no_grad()
def continue_greedily(model, tokenizer, prompts, layer, vectors):
    """Behind each prompt the CONTINUATION_TOKENS most likely tokens; row i is steered with vectors[i].

    The special tokens are never chosen: the model was trained on documents in a row, and BOS is how it says that one
    has ended. Returned with each continuation: how many tokens came before the first where BOS (or another of them) was
    more likely.

    Prompts are padded on the right: attention is causal, so padding behind a row's end changes nothing before it.
    """
    rows = [[settings.BOS, *tokenizer.encode(prompt)] for prompt in prompts]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), lengths.max() + settings.CONTINUATION_TOKENS), settings.PAD)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    each = torch.arange(len(rows))
    special = torch.tensor(settings.SPECIAL_TOKENS)
    unforced = torch.full((len(rows),), settings.CONTINUATION_TOKENS)
    for step in range(settings.CONTINUATION_TOKENS):
        hidden = model.hidden(tokens[:, : lengths.max()], (layer, vectors[:, None, :]))
        logits = model.logits(hidden[each, lengths - 1])
        would_end = torch.isin(logits.argmax(-1), special)
        unforced[would_end] = unforced[would_end].clamp(max=step)
        logits[:, special] = -torch.inf
        tokens[each, lengths] = logits.argmax(-1)
        lengths += 1
    continuations = [
        row[len(ids) :][: settings.CONTINUATION_TOKENS] for row, ids in zip(tokens.tolist(), rows, strict=True)
    ]
    return zip(continuations, unforced.tolist(), strict=True)


def table_row(model, tokenizer, prompts, layer, vector, strength):
    """For both groups of prompts: the continuations, and the shares of them that are in the other language."""
    texts = prompts["english"] + prompts["spanish"]
    signs = [TOWARDS_OTHER[group] for group in ("english", "spanish") for _ in prompts[group]]
    vectors = strength * torch.tensor(signs, dtype=vector.dtype)[:, None] * vector
    continuations = []
    for tokens, unforced in continue_greedily(model, tokenizer, texts, layer, vectors):
        text = tokenizer.decode(tokens)
        continuations.append(
            {
                "tokens": tokens,
                "unforced": unforced,
                "text": text,
                "language": languages.language(text),
                "loops": languages.loops(text),
            }
        )
    count = len(prompts["english"])
    row = {"strength": strength}
    for group, part in (("english", continuations[:count]), ("spanish", continuations[count:])):
        turned = [item for item in part if item["language"] == OTHER[group]]
        row[group] = {
            "share": len(turned) / len(part),
            "share_without_loops": sum(not item["loops"] for item in turned) / len(part),
            "continuations": part,
        }
    return row


@torch.no_grad()
def median_norms(model, examples):
    """Median ‖x‖ at the input of each block, unsteered, over all tokens of the examples but BOS, a prompt counted once."""
    norms = [[] for _ in model.layers]
    skipped = 0

    def collect(to):
        return lambda _, inputs: to.append(inputs[0][0, skipped:].norm(dim=-1))

    hooks = [block.register_forward_pre_hook(collect(to)) for block, to in zip(model.layers, norms, strict=True)]
    for example in examples:
        skipped = 1
        for completion in example.sources + example.targets:
            model.hidden(torch.tensor([example.prompt + completion]))
            skipped = len(example.prompt)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts).median().item() for parts in norms]


def evaluate(model_path, reference_path=None):
    """Prints the table of README.md for a GGUF file; with reference_path, also writes the fixture there."""
    torch.set_num_threads(1)  # sums in one order: the same values on every run
    model, tokenizer = gguf_file.read(model_path)
    examples, layer, rate, steps = read_job(tokenizer)
    prompts = json.loads(settings.PROMPTS.read_text(encoding="utf-8"))
    norms = median_norms(model, examples)
    print("median norm of the residual stream at the input of each block:", " ".join(f"{norm:.1f}" for norm in norms))

    runs, table = [], []
    for seed in settings.SEEDS:
        run = find_vector(model, examples, layer, rate, steps, seed)
        runs.append(run)
        print(f"seed {seed}: loss {run.totals[0]:.2f} -> {run.totals[-1]:.2f}, norm {run.vector.norm():.2f}")
        for strength in settings.STRENGTHS:
            if strength == 0 and seed != settings.SEEDS[0]:
                continue  # the same for every vector
            row = {"seed": seed, **table_row(model, tokenizer, prompts, layer, run.vector, strength)}
            table.append(row)
            shares = (f"{row[group]['share']:.2f} ({row[group]['share_without_loops']:.2f})" for group in OTHER)
            print(f"  strength {strength}: {' / '.join(shares)}", flush=True)
    if reference_path is not None:
        write_reference(reference_path, model_path, examples, norms, runs, table)


def write_reference(path, model_path, examples, norms, runs, table):
    first = runs[0]
    reference = {
        "model": {"file": model_path.name, "sha256": hashlib.sha256(model_path.read_bytes()).hexdigest()},
        "made_with": f"PyTorch {torch.__version__}, float32",
        "examples": [
            {"prompt": example.prompt, "completions": [example.sources, example.targets]} for example in examples
        ],
        "median_norms": numbers(norms),
        "start": {
            "seed": first.seed,
            "loss": numbers(first.totals[0]),
            "losses": numbers(first.first_losses),
            "log_probabilities": numbers(first.first_log_ps),
            "gradient": numbers(first.first_gradient),
        },
        "runs": [
            {
                "seed": run.seed,
                "start": numbers(run.start),
                "losses": numbers(run.totals),
                "vector": numbers(run.vector),
                "norm": numbers(run.vector.norm()),
            }
            for run in runs
        ],
        "table": table,
    }
    partial = path.with_name(path.name + ".part")
    partial.write_text(to_json(reference), encoding="utf-8")
    os.replace(partial, path)


def numbers(value):
    """Nested lists of numbers in which each float32 is the shortest decimal that reads back to it."""
    if isinstance(value, torch.Tensor):
        return numbers(value.tolist())
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(str(numpy.float32(value)))


def to_json(document):
    """JSON with a line for each member of the document and for each item of its lists."""

    def dump(value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def member(value):
        if isinstance(value, list):
            return "[\n  " + ",\n  ".join(dump(item) for item in value) + "\n ]"
        return dump(value)

    return "{\n" + ",\n".join(f" {dump(key)}: {member(value)}" for key, value in document.items()) + "\n}\n"
