"""Values for the tests of the optimizer and the utilities, computed by PyTorch from the specification alone.

    .venv/bin/python specification.py         # writes specification.json in five to ten minutes; set-up as for make.py

The models are two of make.py's, and the GGUF files are those it wrote. Prompts and completions are lists of token ids.
The mathematics is in spec_steering.py, spec_descent.py and spec_search.py; this program says what is computed and
writes it down. SPECIFICATION.md describes every key, and what is assumed where the specification leaves a choice.

Everything is computed twice, by a float32 model and by the same one in float64; the first is what the file holds, the
difference is in it, too. It ends with an error if a result hangs on rounding: a decision too close, a float32 error
that is too large, two beams too similar.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import tempfile
from pathlib import Path

import torch

import architectures
from fixture import Unfit, float32_is_float64, plain_fields, require, write_json
from make import Draws, in_float64
from spec_descent import automatic_rates, automatic_start_norms, constrain, descend, median_norms, stream_norms
from spec_search import Search, activations, beam_search, logprob
from spec_steering import Example, Job, Options, Part, Steering, completions, evaluate, leaves, log_softmax

HERE = Path(__file__).resolve().parent

SEED = 20  # of all inputs
KINDS = {  # name: kind, c, rank
    "add": ("add", None, 0),
    "affine1": ("affine", None, 1),
    "affine2": ("affine", None, 2),
    "ablate": ("ablate", 0.0, 0),
    "clamp1": ("clamp", 1.0, 0),
    "clamp-2.5": ("clamp", -2.5, 0),
}
MIDDLE, LAST = 2, 3
VECTOR_NORM = 2.0
ROW_NORM = 1.0
NO_REGULARIZERS = {"regularization_weight": 0.0, "sparsity_weight": 0.0, "entropy_weight": 0.0}

# What float32 may add. Gradients and parameters are compared tensor by tensor, relative to the norm.
FLOAT32 = {
    "losses": 2e-5,
    "totals": 2e-4,
    "gradients": 1e-5,
    "parameters": 1e-4,
    "tangent_gradients": 2e-5,
    "objectives": 1e-4,
    "infeasibilities": 1e-4,
    "slacks": 1e-4,
    "multipliers": 1e-4,
    "probs": 1e-5,
    "logprob": 1e-5,
    "norms": 1e-5,
    "activations": 2e-5,
}
CLEAR_DECISION = 5e-4  # the least distance of a comparison that a descent hangs on
CLEAR_CONSTRAINT = 2e-5  # the same in an output-constrained stage
CLEAR_BEAMS = 2e-3  # the least relative distance of two scores


class Model:
    """One of the tiny models, in float32 and float64, and its GGUF file."""

    def __init__(self, name):
        architecture = next(a for a in architectures.ARCHITECTURES if a.name == name)
        self.name = name
        self.single = architectures.random_model(architecture, Draws(architecture.seed).generator)
        with float32_is_float64():
            self.double = in_float64(architecture, self.single)
        committed = (HERE / f"{name}.gguf").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / f"{name}.gguf"
            architectures.write(written, architecture, self.single)
            require(written.read_bytes() == committed, f"{name}.gguf is not the model that architectures.py makes")
        self.file = {
            "file": f"{name}.gguf",
            "sha256": hashlib.sha256(committed).hexdigest(),
            "layers": architecture.config.num_hidden_layers,
            "width": architectures.WIDTH,
            "vocabulary": architectures.VOCABULARY,
        }

    def both(self, function, *arguments):
        """function(model, …) in float32 and in float64."""
        value = function(self.single, *arguments)
        with float32_is_float64():
            return value, function(self.double, *arguments)

    def own_words(self, prompt, count):
        """What the model says, as a source completion in practice is: random tokens have no probability to lose."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(log_softmax(self.single, tokens, 1.0)[-1].argmax()))
        return tokens[len(prompt) :]


# Inputs


def short(tensor, denominator=64):
    """In multiples of 1/denominator: few digits in the file, exact in float32."""
    return (tensor * denominator).round() / denominator


def steering(draws, label, groups, norm=VECTOR_NORM):
    """A start for a kind of KINDS, one part for each group of layers."""
    kind, clamp, rank = KINDS[label]
    parts = []
    for layers in groups:
        part = Part(list(layers), short(draws.rows(1, norm)[0]))
        if rank:
            part.left, part.right = short(draws.rows(rank, ROW_NORM)), short(draws.rows(rank, ROW_NORM))
        parts.append(part)
    return Steering(kind, parts, clamp)


def three_examples(draws, model):
    """One source and two targets that share their first token; a target; a source."""
    first, second, third = draws.tokens(9), draws.tokens(4), draws.tokens(6)
    target = draws.tokens(7)
    return [
        Example(first, [model.own_words(first, 5)], [target, target[:1] + draws.tokens(2)]),
        Example(second, [], [draws.tokens(4)]),
        Example(third, [model.own_words(third, 6)], []),
    ]


def two_examples(draws, model):
    """A source and a target; a target."""
    first, second = draws.tokens(7), draws.tokens(5)
    return [Example(first, [model.own_words(first, 4)], [draws.tokens(4)]), Example(second, [], [draws.tokens(3)])]


def with_fields(examples, **columns):
    """Examples with the values of `columns`, a list for each field."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [dataclasses.replace(example, **row) for example, row in zip(examples, rows, strict=True)]


# What is written


def described(value):
    """Jobs, steerings and examples as dicts without what is not there."""
    if isinstance(value, Part):
        return {"layers": value.layers, **value.tensors()}
    if isinstance(value, Options):
        return {name: v for name, v in plain_fields(value).items() if v != getattr(Options(), name)}
    if dataclasses.is_dataclass(value):
        return {name: described(v) for name, v in plain_fields(value).items() if v is not None}
    if isinstance(value, list):
        return [described(v) for v in value]
    return value


def job_fields(job):
    fields = {
        "name": job.name,
        "model": job.model,
        **described(job.steering),
        "examples": described(job.examples),
        "options": described(job.options),
    }
    if job.draws is not None:
        fields["draws"] = job.draws
    return fields


def tensors_of(parts):
    return [part.tensors() for part in parts]


def difference(value, exact):
    """Largest difference of numbers; of parts the largest relative to the norm of one tensor."""
    if isinstance(value, Part):
        errors = []
        for name, tensor in value.tensors().items():
            exactly = exact.tensors()[name]
            error, norm = float((tensor.double() - exactly.double()).norm()), float(exactly.norm())
            errors.append(error / norm if norm else error)
        return max(errors)
    if isinstance(value, list):
        return max((difference(v, e) for v, e in zip(value, exact, strict=True)), default=0.0)
    value, exact = torch.as_tensor(value, dtype=torch.float64), torch.as_tensor(exact, dtype=torch.float64)
    return float((value - exact).abs().max())


def errors_of(name, value, exact, what):
    """The key "float32_error": value and exact have the attributes or keys `what`."""
    errors = {key: difference(value[key], exact[key]) for key in what}
    for key, error in errors.items():
        require(error <= FLOAT32[key], f"{name}: float32 changes {key} by {error}: take another seed")
    return about(errors)


def about(errors):
    """Errors in two digits."""
    return {key: float(f"{error:.1e}") for key, error in errors.items()}


# Sections of the file


def evaluation_values(model, job):
    def once(network):
        now = evaluate(network, job, leaves(job.steering.parts, network.dtype))
        return {
            "losses": now.losses,
            "regularizers": now.regularizers,
            "total": now.total,
            "gradients": now.gradient,
        }

    value, exact = model.both(once)
    errors = errors_of(job.name, value, exact, ["losses", "gradients"])
    return job_fields(job) | value | {"gradients": tensors_of(value["gradients"]), "float32_error": errors}


def kinds(draws, model):
    """Case 1: every kind, at one layer and several, on all tokens and some."""
    examples = three_examples(draws, model)
    sliced = with_fields(examples, token=["3:-2", "-2", ":4"])
    clipped = with_fields(examples, token=["-100:5", "2:100", "1::3"])
    negative = with_fields(examples, is_negative=[True, False, False])
    mixed = with_fields(examples, token=["2:-1", "3", None], is_negative=[False, True, True])
    prompt_only = Options(only_hook_prompt=True)
    several = Options(**NO_REGULARIZERS)
    places = {
        "layer_0": ([[0]], examples, Options()),
        "middle": ([[MIDDLE]], examples, Options()),
        "last": ([[LAST]], examples, Options()),
        "several": ([[0], [MIDDLE], [LAST]], examples, several),
        "shared": ([[0, MIDDLE, LAST]], examples, Options()),
        "middle_slices": ([[MIDDLE]], sliced, Options()),
        "middle_clipped_slices": ([[MIDDLE]], clipped, Options()),
        "middle_prompt_only": ([[MIDDLE]], sliced, prompt_only),
        "middle_negative": ([[MIDDLE]], negative, Options()),
        "shared_negative_slices": ([[0, 1]], mixed, Options()),
        "several_negative_slices": ([[1], [MIDDLE]], mixed, several),
    }
    if model.name != "gemma2":
        places = {name: places[name] for name in ("middle", "several", "shared_negative_slices")}
    return [
        Job(f"{model.name}_{label}_{place}", model.name, steering(draws, label, groups), examples, options)
        for label in KINDS
        for place, (groups, examples, options) in places.items()
    ]


def variants(draws, model):
    """Case 2: the loss's options, and the regularizers of several layers."""
    examples = three_examples(draws, model)
    own = with_fields(
        examples,
        src_completions_target_losses=[[3.0], None, None],
        dst_completions_target_losses=[[5.0, 2.5], [4.5], None],
    )
    negative = with_fields(examples, is_negative=[True, False, True])
    several = [[0], [1], [LAST]]
    tutorial = {"regularization_weight": 0.1, "sparsity_weight": 0.1, "entropy_weight": 10.0}
    options = {
        "without_one_minus": ([[MIDDLE]], examples, Options(do_one_minus=False)),
        "normalized": ([[MIDDLE]], examples, Options(normalize_token_length=True)),
        "satisfice": ([[MIDDLE]], examples, Options(satisfice=True, target_loss=4.0)),
        "satisfice_own_targets": ([[MIDDLE]], own, Options(satisfice=True, target_loss=4.0)),
        "satisfice_normalized": (
            [[MIDDLE]],
            examples,
            Options(satisfice=True, target_loss=1.0, normalize_token_length=True),
        ),
        "satisfice_without_one_minus_negative": (
            [[MIDDLE]],
            negative,
            Options(satisfice=True, target_loss=-2.0, do_one_minus=False),
        ),
        "coldness_0.3": ([[MIDDLE]], examples, Options(coldness=0.3)),
        "coldness_2": ([[MIDDLE]], examples, Options(coldness=2.0)),
        "eps_1e-3": ([[MIDDLE]], examples, Options(eps=1e-3)),
        "eps_1e-3_without_one_minus": ([[MIDDLE]], examples, Options(eps=1e-3, do_one_minus=False)),
        "regularized_l1": (several, examples, Options()),
        "regularized_max": (several, examples, Options(regularization_type="max")),
        "regularized_as_the_tutorial": (several, examples, Options(**tutorial)),
        "regularized_max_as_the_tutorial": (several, examples, Options(**tutorial, regularization_type="max")),
        "regularized_satisfice": (several, examples, Options(satisfice=True, target_loss=4.0)),
    }
    jobs = []
    for label in ("add", "affine2", "ablate", "clamp1"):
        for name, (groups, listed, chosen) in options.items():
            start = steering(draws, label, groups)
            for part, norm in zip(start.parts, (0.5, 1.0, 1.5), strict=False):
                part.vector = short(part.vector * norm)
            jobs.append(Job(f"{model.name}_{label}_{name}", model.name, start, listed, chosen))
    for kind in ("l1", "max"):
        start = steering(draws, "add", several)
        start.parts[0].vector[:] = 0
        start.parts[1].vector[3:9] = 0
        options = Options(**tutorial, regularization_type=kind)
        jobs.append(Job(f"{model.name}_add_regularized_{kind}_zeros", model.name, start, examples, options))
    return jobs


def descent_values(model, job, keep):
    """`keep(iters)` are the steps after which the parameters are written."""

    def once(network):
        run = descend(network, job)
        return {
            "rates": run.rates,
            "iters": run.iters,
            "stop": run.stop,
            "closest_decision": run.closest_decision,
            "losses": [now.losses for now in run.evaluations],
            "totals": torch.stack([now.total for now in run.evaluations]),
            "gradients": [now.gradient for now in run.evaluations],
            "parameters": run.parameters,
            "tangent_gradients": run.tangents,
        }

    value, exact = model.both(once)
    same = value["iters"] == exact["iters"] and value["stop"] == exact["stop"]
    require(same, f"{job.name}: float32 changes when it stops: take another seed")
    require(value["closest_decision"] >= CLEAR_DECISION, f"{job.name}: {value['closest_decision']} decides")
    kept = keep(value["iters"])
    with_gradients = kept if job.draws is not None else [0]
    for result in (value, exact):
        result["gradients"] = [result["gradients"][step] for step in with_gradients]
    what = ["losses", "totals", "gradients", "parameters"]
    if value["tangent_gradients"] is None:
        del value["tangent_gradients"]
    else:
        what.append("tangent_gradients")
    errors = errors_of(job.name, value, exact, [w for w in what if w != "losses"])
    errors |= about({"losses": difference(value["losses"], exact["losses"])})
    del value["closest_decision"]

    def at(steps, listed):
        return [{"step": step, "parts": tensors_of(parts)} for step, parts in zip(steps, listed, strict=True)]

    stepped = [step for step in kept if step > 0]
    value["parameters"] = at(stepped, [value["parameters"][step] for step in stepped])
    value["gradients"] = at(with_gradients, value["gradients"])
    return job_fields(job) | value | {"float32_error": errors}


def some_steps(iters):
    return sorted({0, min(1, iters), iters})


def descents(draws, model):
    """Case 3."""
    examples = three_examples(draws, model)

    def job(name, label, groups, norm=VECTOR_NORM, examples=examples, **options):
        options = {"lr": 0.05, "max_iters": 10} | options
        start = steering(draws, label, groups, norm)
        return Job(f"{model.name}_{name}", model.name, start, examples, Options(**options))

    middle, several = [[MIDDLE]], [[0], [MIDDLE]]
    if model.name != "gemma2":
        return [job(label, label, middle) for label in ("add", "affine2", "clamp1")]
    jobs = [job(label, label, middle) for label in KINDS]
    jobs += [job(f"{label}_max_norm", label, middle, max_norm=2.1) for label in ("add", "affine2", "clamp1")]
    jobs.append(job("add_max_norm_below_the_start", "add", middle, norm=3.0, max_norm=2.0))
    jobs += [job(f"{label}_max_affine_norm", label, middle, max_affine_norm=1.05) for label in ("affine1", "affine2")]
    jobs.append(job("affine2_both_limits", "affine2", middle, max_affine_norm=0.75, max_norm=1.5))
    jobs += [job(f"{label}_several", label, several) for label in ("add", "affine2", "clamp1", "ablate")]
    jobs.append(job("add_several_max_norm", "add", several, max_norm=2.05, regularization_type="max"))
    jobs += [job(f"{label}_shared", label, [[0, MIDDLE]]) for label in ("add", "affine2", "clamp1")]
    jobs.append(job("affine2_several_max_affine_norm", "affine2", several, max_affine_norm=1.05))
    negative = with_fields(examples, is_negative=[False, True, True], token=["2:", None, "1:-1"])
    jobs += [job(f"{label}_negative_slices", label, middle, examples=negative) for label in ("affine2", "clamp1")]
    jobs.append(job("clamp1_satisfice", "clamp1", middle, satisfice=True, target_loss=5.0, do_target_loss_sum=False))
    return jobs


def stops(draws, model):
    """Case 3, of its end: when a target or a stall stops it."""
    examples = two_examples(draws, model)

    def job(name, examples=examples, norm=VECTOR_NORM, label="add", **options):
        options = {"lr": 0.2, "max_iters": 60} | options
        start = steering(draws, label, [[MIDDLE]], norm)
        return Job(f"{model.name}_stop_{name}", model.name, start, examples, Options(**options))

    own = with_fields(
        examples, src_completions_target_losses=[[0.8], None], dst_completions_target_losses=[[20.5], None]
    )
    several = job("target_with_regularizers", target_loss=36.0, max_iters=30)
    several.steering = steering(draws, "add", [[1], [MIDDLE]])
    return [
        job("target", target_loss=42.0),
        job("target_clamp", label="clamp1", target_loss=45.5),
        job("target_patience", target_loss=42.0, target_loss_target_iters=4),
        job("target_at_start", target_loss=200.0),
        job("target_at_start_patience", target_loss=200.0, target_loss_target_iters=3),
        job("target_each", target_loss=20.0, do_target_loss_sum=False),
        job("target_each_own", examples=own, target_loss=22.0, do_target_loss_sum=False),
        job("target_satisfice", target_loss=21.0, do_target_loss_sum=False, satisfice=True, target_loss_target_iters=2),
        several,
        job("no_steps", max_iters=0),
        job("stall", lr=0.002, eps=0.1, max_iters=8),
        job("stall_patience", lr=0.002, eps=0.1, target_loss_target_iters=3, max_iters=8),
        job("stall_and_target", lr=0.002, eps=0.1, target_loss=1.0, target_loss_target_iters=2, max_iters=8),
        *interrupted_patience(model),
    ]


def interrupted_patience(model):
    """Seeds with which a target is met, and a descent stalls, for less than the patience first."""
    draws = Draws(722)
    prompt = draws.tokens(6)
    start = steering(draws, "add", [[MIDDLE]])
    options = Options(lr=0.9, max_iters=20, eps=0.05, target_loss_target_iters=3)
    stalling = Job(f"{model.name}_stop_stall_twice", model.name, start, [], options)
    stalling.examples = [Example(prompt, [], [model.own_words(prompt, 8)])]

    examples, draws = two_examples(Draws(621), model), Draws(702)
    start = steering(draws, "add", [[MIDDLE]])
    options = Options(
        lr=0.05,
        max_iters=12,
        noise_scale=0.5,
        do_tangent_space_noise=False,
        target_loss=44.6,
        target_loss_target_iters=3,
    )
    numbers = torch.randn(13, 1, 3, 1, architectures.WIDTH, generator=draws.generator)
    numbers = short(numbers, 32)
    meeting = Job(f"{model.name}_stop_target_twice", model.name, start, examples, options, numbers)
    return [stalling, meeting]


def noisy(draws, model):
    """Case 4."""
    examples = two_examples(draws, model)
    negative = with_fields(examples, is_negative=[False, True], token=["2:", None])
    middle, several, shared = [[MIDDLE]], [[0], [MIDDLE]], [[0, MIDDLE]]

    def job(name, label, groups, examples=examples, **options):
        options = Options(**{"lr": 0.05, "max_iters": 4, "noise_scale": 0.15} | options)
        shape = options.max_iters + 1, options.noise_iters, len(completions(examples)), len(groups)
        numbers = torch.randn(*shape, architectures.WIDTH, generator=draws.generator)
        start = steering(draws, label, groups)
        numbers = short(numbers, 32)
        return Job(f"{model.name}_noise_{name}", model.name, start, examples, options, numbers)

    plain, relu, anti = {"do_tangent_space_noise": False}, {"do_noise_abl_relu": True}, {"do_antipgd": True}
    satisfice = {"satisfice": True, "target_loss": 5.0, "do_target_loss_sum": False}
    return [
        job("plain", "add", middle, **plain),
        job("plain_3_draws", "add", middle, noise_iters=3, **plain),
        job("plain_several", "add", several, **plain),
        job("plain_shared", "add", shared, **plain),
        job("plain_affine", "affine2", middle, **plain),
        job("plain_clamp", "clamp1", middle, **plain),
        job("plain_ablate", "ablate", middle, **plain),
        job("plain_negative", "add", middle, negative, **plain),
        job("plain_max_norm", "add", middle, max_norm=2.02, **plain),
        job("plain_satisfice_2_draws", "add", middle, noise_iters=2, **plain, **satisfice),
        job("tangent", "add", middle),
        job("tangent_3_draws", "add", middle, noise_iters=3),
        job("tangent_several", "add", several),
        job("tangent_shared", "add", shared),
        job("tangent_affine", "affine2", middle),
        job("tangent_negative", "add", middle, negative),
        job("tangent_satisfice_2_draws", "add", middle, noise_iters=2, **satisfice),
        job("tangent_relu", "add", middle, **relu),
        job("tangent_relu_several", "add", several, **relu),
        job("tangent_relu_negative", "add", middle, negative, **relu),
        job("tangent_relu_affine", "affine2", middle, **relu),
        job("antipgd", "add", middle, **anti),
        job("antipgd_2_draws", "add", middle, noise_iters=2, **anti),
        job("antipgd_several", "add", several, **anti),
        job("antipgd_affine", "affine2", middle, **anti),
        job("antipgd_clamp", "clamp1", middle, **anti),
    ]


def minibatches(draws, model):
    """Case 5."""
    target = draws.tokens(4)
    prompts = [draws.tokens(count) for count in (6, 4, 7, 5, 3)]
    source = model.own_words(prompts[0], 3)
    examples = [Example(prompt, [source], [target, target[:2] + draws.tokens(1)]) for prompt in prompts]
    for example in examples:  # the shared list
        example.dst_completions = examples[0].dst_completions

    def job(name, label, groups, size, **options):
        options = Options(lr=0.05, max_iters=6, minibatch_size=size, **options)
        return Job(f"{model.name}_minibatch_{name}", model.name, steering(draws, label, groups), examples, options)

    def noisy(name, label, groups, size, **options):
        made = job(name, label, groups, size, noise_scale=0.15, **options)
        shape = made.options.max_iters + 1, made.options.noise_iters, len(completions(examples)), len(groups)
        made.draws = short(torch.randn(*shape, architectures.WIDTH, generator=draws.generator), 32)
        return made

    return [
        job("of_2", "add", [[MIDDLE]], 2),
        job("of_3", "add", [[MIDDLE]], 3),
        job("of_5", "add", [[MIDDLE]], 5),
        job("of_2_clamp", "clamp1", [[MIDDLE]], 2),
        job("of_3_affine", "affine2", [[MIDDLE]], 3),
        job("of_3_shared", "add", [[0, MIDDLE]], 3),
        job("of_2_max_norm_normalized", "add", [[MIDDLE]], 2, max_norm=2.02, normalize_token_length=True),
        job("of_2_several", "add", [[0], [MIDDLE]], 2),
        job("of_3_several_affine", "affine2", [[0], [MIDDLE]], 3, regularization_type="max"),
        noisy("of_2_noise", "add", [[MIDDLE]], 2, do_tangent_space_noise=False),
        noisy("of_3_noise_several_2_draws", "add", [[0], [MIDDLE]], 3, noise_iters=2, do_tangent_space_noise=False),
        noisy("of_2_tangent", "add", [[MIDDLE]], 2),
        noisy("of_3_tangent_relu_several", "add", [[0], [MIDDLE]], 3, do_noise_abl_relu=True),
        noisy("of_3_antipgd", "add", [[MIDDLE]], 3, do_antipgd=True),
        noisy("of_2_antipgd_affine", "affine2", [[MIDDLE]], 2, do_antipgd=True),
    ]


def constrained_values(model, job):
    def once(network):
        run = constrain(network, job)
        columns = {
            name: torch.stack([getattr(iterate, name) for iterate in run.iterates])
            for name in ("objective", "size", "losses", "infeasibilities", "slacks", "multipliers")
        }
        return {
            "limits": run.limits,
            "scale": run.scale,
            "rates": run.rates,
            "iters": len(run.iterates) - 1,
            "stop": run.stop,
            "closest_decision": run.closest_decision,
            "objectives": columns.pop("objective"),
            "sizes": columns.pop("size"),
            **columns,
            "meets": [iterate.meets for iterate in run.iterates],
            "returned": run.returned,
            "parameters": run.iterates[-1].parts,
            "returned_parameters": run.iterates[run.returned].parts,
        }

    value, exact = model.both(once)
    for what in ("iters", "stop", "meets", "returned"):
        require(value[what] == exact[what], f"{job.name}: float32 changes {what}: take another seed")
    require(value["closest_decision"] >= CLEAR_CONSTRAINT, f"{job.name}: {value['closest_decision']} decides")
    errors = {}
    for what in ("losses", "objectives", "infeasibilities", "slacks", "multipliers", "parameters"):
        errors[what] = difference(value[what], exact[what])
        limit = FLOAT32["totals" if what == "losses" else what]
        require(errors[what] <= limit, f"{job.name}: float32 changes {what} by {errors[what]}")
    for what in ("parameters", "returned_parameters"):
        value[what] = tensors_of(value[what])
    if value["returned"] in (0, value["iters"]):
        del value["returned_parameters"]  # they are parts or parameters
    if job.options.output_constr_objective == "norm":
        del value["sizes"]  # they are the objectives
    return job_fields(job) | value | {"float32_error": about(errors)}


def constrained(draws, model):
    """Case 6: from a random start, where a shorter vector is better for the losses, and from an optimized one."""
    examples = two_examples(draws, model)
    own = with_fields(
        examples, src_completions_target_losses=[[6.0], None], dst_completions_target_losses=[[18.0], None]
    )
    sliced = with_fields(examples, token=["2:", None], is_negative=[False, True])
    middle, two, shared = [[MIDDLE]], [[0], [MIDDLE]], [[0, MIDDLE]]

    def job(name, start, examples=examples, **options):
        options = Options(
            **{"do_output_constr": True, "output_constr_lr": 0.02, "max_output_constr_iters": 15} | options
        )
        return Job(f"{model.name}_constrained_{name}", model.name, start, examples, options)

    def optimized(label, groups, eps=1e-6):
        """A start after some steps of Adam."""
        options = Options(lr=0.05, max_iters=25, eps=eps)
        run = Job("", model.name, steering(draws, label, groups), examples, options)
        last = descend(model.single, run).parameters[-1]
        return run.steering.replaced([part.map(short) for part in last])

    melbo = {"output_constr_objective": "melbo", "melbo_layer": LAST}
    jobs = []
    for label in ("add", "clamp1", "affine2"):
        jobs.append(job(f"{label}_random_start", steering(draws, label, middle, 4.0), target_loss=40.0))
        jobs.append(job(f"{label}_optimized_start", optimized(label, middle), target_loss=40.0))
        jobs.append(job(f"{label}_without_target", steering(draws, label, middle, 4.0)))
    # With a large eps the limits leave room: shorter vectors meet them, at once or after the multipliers have grown.
    loose = [("add", 0.03, 0.03), ("clamp1", 0.03, 0.1), ("affine2", 0.03, 0.003)]
    loose += [("add", 0.1, 0.1), ("clamp1", 0.1, 0.1)]
    for label, eps, rate in loose:
        start = steering(draws, label, middle, 4.0)
        jobs.append(job(f"{label}_eps_{eps}_random_start", start, eps=eps, output_constr_lr=rate))
        start = optimized(label, middle, eps)
        jobs.append(job(f"{label}_eps_{eps}_optimized_start", start, eps=eps, output_constr_lr=rate))
    jobs += [
        job("add_two_layers", steering(draws, "add", two, 4.0), target_loss=40.0),
        job("add_two_layers_optimized_start", optimized("add", two), target_loss=40.0),
        job("affine2_two_layers", steering(draws, "affine2", two, 4.0), target_loss=40.0),
        job("add_shared", steering(draws, "add", shared, 4.0), target_loss=40.0),
        job("ablate", steering(draws, "ablate", middle, 4.0), target_loss=40.0),
        job("add_own_targets", steering(draws, "add", middle, 4.0), own, target_loss=16.0),
        job("add_target_not_met_at_start", steering(draws, "add", middle, 4.0), target_loss=8.0),
        job("add_eps_0.5", optimized("add", middle), target_loss=40.0, eps=0.5),
        job("add_max_norm", steering(draws, "add", middle, 4.0), target_loss=40.0, max_norm=3.6),
        job(
            "affine2_limits",
            steering(draws, "affine2", middle, 4.0),
            target_loss=40.0,
            output_constr_lr=0.03,
            max_affine_norm=0.75,
        ),
        job("add_until_it_grows", optimized("add", middle), target_loss=40.0, output_constr_lr=0.3),
        job("melbo_add", steering(draws, "add", [[1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_add_slices", steering(draws, "add", [[1]], 4.0), sliced, target_loss=40.0, **melbo),
        job("melbo_add_eps_0.1", steering(draws, "add", [[1]], 4.0), eps=0.1, **melbo),
        job(
            "melbo_add_large_rate",
            steering(draws, "add", [[1]], 4.0),
            eps=0.3,
            output_constr_lr=0.2,
            max_output_constr_iters=30,
            **melbo,
        ),
        job("melbo_add_optimized_start", optimized("add", [[1]]), target_loss=40.0, **melbo),
        job("melbo_add_two_layers", steering(draws, "add", [[0], [1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_clamp", steering(draws, "clamp1", [[1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_affine2", steering(draws, "affine2", [[1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_shared", steering(draws, "add", [[0, 1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_affine2_two_layers", steering(draws, "affine2", [[0], [1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_affine2_shared", steering(draws, "affine2", [[0, 1]], 4.0), target_loss=40.0, **melbo),
        job("melbo_clamp_two_layers", steering(draws, "clamp1", [[0], [1]], 4.0), target_loss=40.0, **melbo),
    ]
    return jobs


def steerings_fields(steerings):
    return [described(steering) | {"strength": strength} for steering, strength in steerings]


def some_steerings(draws):
    """Steerings with strengths, by name."""
    middle = [[MIDDLE]]
    return {
        "unsteered": [],
        "add": [(steering(draws, "add", middle), 1.0)],
        "add_strength_-1.5": [(steering(draws, "add", middle), -1.5)],
        "affine2_strength_0.5": [(steering(draws, "affine2", middle), 0.5)],
        "clamp_strength_0.5": [(steering(draws, "clamp1", middle), 0.5)],
        "ablate": [(steering(draws, "ablate", middle), 1.0)],
        "add_several": [(steering(draws, "add", [[0], [LAST]]), 1.0)],
        "three_at_a_layer": [
            (steering(draws, "add", middle), 0.75),
            (steering(draws, "clamp1", [[1, MIDDLE]]), 1.0),
            (steering(draws, "affine1", middle), -0.5),
        ],
    }


def logprob_values(draws, model):
    """Case 7, the log-probability of a completion."""
    prompt = draws.tokens(7)
    completion = model.own_words(prompt, 3) + draws.tokens(2)
    values = []
    for name, steerings in some_steerings(draws).items():
        found, errors = [], {"logprob": 0.0}
        for coldness in (1.0, 0.5):
            for complement in (False, True):
                value, exact = model.both(logprob, prompt, completion, steerings, coldness, complement)
                found.append(
                    {"coldness": coldness, "complement": complement, "per_token": value, "logprob": value.sum()}
                )
                error = errors_of(name, {"logprob": value}, {"logprob": exact}, ["logprob"])
                errors = max(errors, error, key=lambda e: e["logprob"])
        values.append(
            {
                "name": f"{model.name}_{name}",
                "model": model.name,
                "prompt": prompt,
                "completion": completion,
                "steerings": steerings_fields(steerings),
                "values": found,
                "float32_error": errors,
            }
        )
    return values


def activation_values(draws, model):
    """Case 7, the stream as the blocks read it."""
    tokens = draws.tokens(5)
    clamped = steering(draws, "clamp1", [[1]])
    cases = {
        "unsteered": ([], 0),
        "add_strength_-1.5": ([(steering(draws, "add", [[1]]), -1.5)], 0),
        "add_from_2": ([(steering(draws, "add", [[1]]), 1.0)], 2),
        "clamp_strength_0.5_from_1": ([(clamped, 0.5)], 1),
        "several": ([(clamped, 1.0), (steering(draws, "affine2", [[1], [LAST]]), -0.5)], 0),
    }
    values = []
    for name, (steerings, steered_from) in cases.items():
        value, exact = model.both(activations, tokens, steerings, steered_from)
        values.append(
            {
                "name": f"{model.name}_{name}",
                "model": model.name,
                "tokens": tokens,
                "steerings": steerings_fields(steerings),
                "steered_from": steered_from,
                "activations": value,
                "float32_error": errors_of(name, {"activations": value}, {"activations": exact}, ["activations"]),
            }
        )
    return values


def search_values(seed, model, name, make_steerings, with_end=False, with_contrast=False, **options):
    """Case 7, beam search: with the first prompt, from the seed on, for which no two scores are close."""
    for attempt in range(200):
        draws = Draws(seed * 1000 + attempt)
        search = Search(draws.tokens(6), contrast=draws.tokens(5) if with_contrast else None, **options)
        steerings = make_steerings(draws)
        if with_end:
            found = beam_search(model.single, search, steerings)[0]
            search.end = [found[1].tokens[2], 7]
        beams, closest = beam_search(model.single, search, steerings)
        lengths = {len(beam.tokens) for beam in beams}
        ended = [beam for beam in beams if beam.tokens[-1] in search.end and len(beam.tokens) <= search.iters]
        different = len({tuple(beam.tokens) for beam in beams}) == len(beams)
        if closest < CLEAR_BEAMS or not different or (with_end and not (ended and len(lengths) > 1)):
            continue
        if not with_contrast and not search.reverse and not search.use_total_probs:
            scores = [beam.probs[-1] for beam in beams]
            if any(abs(a - b) < 1e-4 for a, b in zip(scores, scores[1:], strict=False)):
                continue
        _, (exact, _) = model.both(beam_search, search, steerings)
        same = [beam.tokens for beam in beams] == [beam.tokens for beam in exact]
        require(same, f"search {name}: float32 changes the beams: take another seed")
        probs, exactly = ({"probs": [beam.probs for beam in b]} for b in (beams, exact))
        return {
            "name": f"{model.name}_{name}",
            "model": model.name,
            **described(search),
            "steerings": steerings_fields(steerings),
            "completions": [described(beam) for beam in beams],
            "closest_scores": closest,
            "float32_error": errors_of(f"search {name}", probs, exactly, ["probs"]),
        }
    raise Unfit(f"search {name}: no prompt without close scores: take another seed")


def searches(model):
    def nothing(_):
        return []

    def of(label, groups=((MIDDLE,),), strength=1.0):
        return lambda draws: [(steering(draws, label, groups), strength)]

    plans = [
        ("3_beams", nothing, {"beams": 3, "iters": 3}),
        ("5_beams", nothing, {"beams": 5, "iters": 5}),
        ("1_beam", nothing, {"beams": 1, "iters": 4}),
        ("no_iters", nothing, {"beams": 5, "iters": 0}),
        ("coldness_0.5", nothing, {"beams": 3, "iters": 3, "coldness": 0.5}),
        ("total", nothing, {"beams": 3, "iters": 4, "use_total_probs": True}),
        ("total_5_beams", nothing, {"beams": 5, "iters": 3, "use_total_probs": True, "coldness": 1.5}),
        ("end", nothing, {"beams": 5, "iters": 5, "with_end": True}),
        ("end_total", nothing, {"beams": 5, "iters": 4, "with_end": True, "use_total_probs": True}),
        ("reverse", nothing, {"beams": 3, "iters": 3, "reverse": True}),
        ("reverse_total", nothing, {"beams": 3, "iters": 2, "reverse": True, "use_total_probs": True}),
        ("contrast", nothing, {"beams": 3, "iters": 4, "with_contrast": True}),
        ("contrast_total", nothing, {"beams": 3, "iters": 3, "with_contrast": True, "use_total_probs": True}),
        ("contrast_reverse", nothing, {"beams": 3, "iters": 3, "with_contrast": True, "reverse": True}),
        (
            "contrast_reverse_total",
            nothing,
            {"beams": 3, "iters": 2, "with_contrast": True, "reverse": True, "use_total_probs": True},
        ),
        ("contrast_end", nothing, {"beams": 5, "iters": 4, "with_contrast": True, "with_end": True}),
        ("add", of("add"), {"beams": 5, "iters": 5}),
        ("clamp", of("clamp1"), {"beams": 3, "iters": 4}),
        ("affine_strength_-0.5", of("affine2", strength=-0.5), {"beams": 3, "iters": 4}),
        ("add_several_end", of("add", ((0,), (MIDDLE,))), {"beams": 5, "iters": 5, "with_end": True}),
        ("add_contrast_total", of("add"), {"beams": 3, "iters": 3, "with_contrast": True, "use_total_probs": True}),
    ]
    if model.name != "gemma2":
        plans = [plan for plan in plans if plan[0] in ("5_beams", "end_total", "clamp")]
    return [search_values(SEED + i, model, name, make, **options) for i, (name, make, options) in enumerate(plans)]


def scale_values(draws, model):
    """Case 8: two sets of examples; with one completion each it does not matter how often a prompt counts.

    Every count of tokens is odd, so that the median is one of the norms.
    """
    single = [Example(draws.tokens(count), [], [draws.tokens(tokens)]) for count, tokens in ((6, 5), (5, 4), (4, 4))]
    prompts = [draws.tokens(6), draws.tokens(4)]
    mixed = [
        Example(prompts[0], [draws.tokens(4)], [draws.tokens(3), draws.tokens(6)], token="3:"),
        Example(prompts[1], [], [draws.tokens(4)], is_negative=True),
    ]
    layers = range(model.file["layers"])
    values = []
    for name, examples in (("one_completion", single), ("several_completions", mixed)):
        value, exact = model.both(median_norms, examples)
        again = median_norms(model.single, examples, prompt_once=False)
        choices = []
        for label in ("add", "affine2", "ablate", "clamp1"):
            for groups in ([[MIDDLE]], [[layer] for layer in layers], [[1, MIDDLE, LAST]]):
                start = steering(draws, label, groups)
                choices.append(
                    {
                        "kind": start.kind,
                        "layers": [part.layers for part in start.parts],
                        "lr": automatic_rates(start.kind, start.parts, value, architectures.WIDTH),
                        "starting_norms": automatic_start_norms(start.kind, start.parts, value),
                        **({"starting_affine_norm": 0.1} if start.kind == "affine" else {}),
                    }
                )
        values.append(
            {
                "name": f"{model.name}_{name}",
                "model": model.name,
                "examples": described(examples),
                "norms": [
                    stream_norms(model.single, example.prompt + completion.tokens)
                    for example in examples
                    for completion in completions([example])
                ],
                "median_norms": value,
                "median_norms_prompt_each_time": again,
                "automatic": choices,
                "float32_error": errors_of(name, {"norms": value}, {"norms": exact}, ["norms"]),
            }
        )
    return values


def automatic_descents(draws, model):
    """Case 8: descents without lr."""
    examples = [Example(draws.tokens(6), [], [draws.tokens(5)]), Example(draws.tokens(5), [], [draws.tokens(5)])]
    places = {"add": [[0], [MIDDLE], [LAST]], "clamp1": [[1], [LAST]], "affine2": [[MIDDLE]]}
    jobs = []
    for label, groups in [*places.items(), ("add_shared", [[1, LAST]])]:
        start = steering(draws, label.removesuffix("_shared"), groups)
        jobs.append(Job(f"{model.name}_auto_{label}", model.name, start, examples, Options(max_iters=6)))
    return jobs


def share_examples(values):
    """Puts equal lists of examples once into "example_sets", and their index there in place of them."""
    sets = []
    for section in values.values():
        for value in section if isinstance(section, list) else ():
            if "examples" in value:
                if value["examples"] not in sets:
                    sets.append(value["examples"])
                value["examples"] = sets.index(value["examples"])
    return {"example_sets": sets} | values


def make():
    models = {name: Model(name) for name in ("gemma2", "llama")}
    values = {
        "made_with": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf")},
        "models": {name: model.file for name, model in models.items()},
        "defaults": plain_fields(Options()),
    }

    def section(name, jobs, compute):
        """Each section has draws of its own: one can be changed without the others."""
        values.setdefault(name, [])
        for index, model in enumerate(models.values()):
            draws = Draws(SEED + 100 * len(values) + index)
            values[name] += [compute(model, job) for job in jobs(draws, model)]
        print(f"{name}: {len(values[name])}", flush=True)

    def of_gemma2(jobs):
        return lambda draws, model: jobs(draws, model) if model.name == "gemma2" else []

    def descent(model, job):
        return descent_values(model, job, some_steps)

    def as_it_is(_, value):
        return value

    section("kinds", kinds, evaluation_values)
    section("variants", of_gemma2(variants), evaluation_values)
    section("descents", descents, descent)
    section("stops", of_gemma2(stops), descent)
    section("noise", of_gemma2(noisy), descent)
    section("minibatch", of_gemma2(minibatches), descent)
    section("output_constrained", of_gemma2(constrained), constrained_values)
    section("logprob", logprob_values, as_it_is)
    section("search", lambda _, model: searches(model), as_it_is)
    section("scale", scale_values, as_it_is)
    section("automatic", automatic_descents, descent)
    section("activations", activation_values, as_it_is)
    return share_examples(values)


def report(values):
    for name, section in values.items():
        if isinstance(section, list) and name != "example_sets":
            worst = {}
            for value in section:
                for what, error in value["float32_error"].items():
                    worst[what] = max(worst.get(what, 0), error)
            print(f"{name:20} " + ", ".join(f"{what} {error:.1e}" for what, error in worst.items()))


def main():
    parser = argparse.ArgumentParser(description="Reference values of the specification, computed by PyTorch.")
    parser.add_argument("--out", type=Path, default=HERE / "specification.json", help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        values = make()
    except Unfit as problem:
        raise SystemExit(str(problem)) from None
    report(values)
    write_json(arguments.out, values, separator=",")


if __name__ == "__main__":
    main()
