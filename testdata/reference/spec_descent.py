"""Descents with Adam, the output-constrained stage, and automatic scales: sections 4, 7 and 10 of the specification."""

from dataclasses import dataclass

import torch

from spec_steering import (
    Evaluation,
    Part,
    completion_loss,
    completions,
    evaluate,
    leaves,
    log_softmax,
    tangent_gradients,
    target_of,
)


def stream_norms(model, tokens):
    """Norm of the unsteered stream at each layer and token."""
    streams = {}
    log_softmax(model, tokens, 1.0, streams=streams)
    return torch.stack([streams[layer].double().norm(dim=-1) for layer in sorted(streams)])


def median_norms(model, examples, prompt_once=True):
    """For each layer the median over all tokens but those at position 0.

    With prompt_once a prompt's tokens count once for their example, without once for each of its completions.
    """
    columns = []
    for example in examples:
        for number, completion in enumerate(completions([example])):
            first = len(example.prompt) if prompt_once and number > 0 else 1
            columns.append(stream_norms(model, example.prompt + completion.tokens)[:, first:])
    return torch.cat(columns, dim=1).quantile(0.5, dim=1)


def automatic_rates(kind, parts, medians, width):
    """The learning rate of each part."""
    if kind == "affine":
        return [0.003 for _ in parts]
    return [min(0.01 * float(medians[layer]) / width**0.5 for layer in part.layers) for part in parts]


def automatic_start_norms(kind, parts, medians):
    if kind in ("add", "affine"):
        return [1.0 for _ in parts]
    return [min(0.02 * float(medians[layer]) for layer in part.layers) for part in parts]


def rates(model, job, rate):
    """The learning rate of each part: the number given, or the automatic one."""
    parts = job.steering.parts
    if rate is not None:
        return [rate for _ in parts]
    return automatic_rates(job.steering.kind, parts, median_norms(model, job.examples), len(parts[0].vector))


def limit_norms(parts, options):
    """max_norm for vectors, max_affine_norm for the rows of matrices."""
    with torch.no_grad():
        for part in parts:
            if options.max_norm is not None and part.vector.norm() > options.max_norm:
                part.vector.mul_(options.max_norm / part.vector.norm())
            for rows in (part.left, part.right):
                for row in rows if rows is not None else ():
                    if row.norm() > options.max_affine_norm:
                        row.mul_(options.max_affine_norm / row.norm())


@dataclass
class Descent:
    evaluations: list[Evaluation]  # one more than steps
    parameters: list[list[Part]]  # at each of them
    rates: list[float]  # of each part
    tangents: torch.Tensor | None
    iters: int
    stop: str
    closest_decision: float  # the least distance of any comparison that decided about stopping


def descend(model, job):
    """Adam, in section 4's order: evaluate, record, target check, stall check, step limit, step, norm limits."""
    options = job.options
    tangents = None
    if options.noise_scale is not None and options.do_tangent_space_noise and not options.do_antipgd:
        tangents = tangent_gradients(model, job)
    parts = leaves(job.steering.parts, model.dtype)
    lr = rates(model, job, options.lr)
    optimizer = torch.optim.Adam(
        [{"params": list(part.tensors().values()), "lr": rate} for part, rate in zip(parts, lr, strict=True)]
    )
    evaluations, parameters, distances = [], [], [float("inf")]
    met_in_a_row = stalled_in_a_row = 0

    def done(stop):
        return Descent(evaluations, parameters, lr, tangents, len(evaluations) - 1, stop, min(distances))

    while True:
        now = evaluate(model, job, parts, len(evaluations), tangents)
        evaluations.append(now)
        parameters.append([part.map(lambda t: t.detach().clone()) for part in parts])

        if options.do_target_loss_sum:
            over = None if options.target_loss is None else float(now.total) - options.target_loss
        else:
            listed = completions(job.window(len(evaluations) - 1))
            gaps = [float(loss) - target_of(c, options) for loss, c in zip(now.losses, listed, strict=True)]
            over = max(gaps)
        if over is not None:
            distances.append(abs(over))
            met_in_a_row = met_in_a_row + 1 if over <= 0 else 0
            if met_in_a_row >= options.target_loss_target_iters:
                return done("target_loss")

        if len(evaluations) > 1:
            moved = abs(float(now.total - evaluations[-2].total))
            distances.append(abs(moved - options.eps))
            stalled_in_a_row = stalled_in_a_row + 1 if moved < options.eps else 0
            if stalled_in_a_row >= options.target_loss_target_iters:
                return done("stalled")

        if options.max_iters is not None and len(evaluations) > options.max_iters:
            return done("max_iters")

        for part, gradient in zip(parts, now.gradient, strict=True):
            for name, tensor in part.tensors().items():
                tensor.grad = gradient.tensors()[name]
        optimizer.step()
        limit_norms(parts, options)


def size(parts):
    """‖v‖, with ‖M‖_F where there is a matrix, added over the parts."""
    return sum(part.vector.double().norm() + (0 if part.left is None else part.matrix_norm()) for part in parts)


def melbo(model, job, steering):
    """Minus the mean distance of the steered from the unsteered stream at melbo_layer, over all completion tokens."""
    distances = []
    for completion in completions(job.examples):
        example, layer = completion.example, job.options.melbo_layer
        with_steering, without = {}, {}
        completion_loss(model, steering, completion, job.options, with_steering)
        with torch.no_grad():
            log_softmax(model, example.prompt + completion.tokens, 1.0, streams=without)
        moved = (with_steering[layer] - without[layer])[len(example.prompt) :]
        distances.append(moved.double().norm(dim=-1))
    return -torch.cat(distances).mean()


@dataclass
class Iterate:
    """One evaluation of the output-constrained stage. The last constraint is that on the norm, with MELBO."""

    objective: torch.Tensor
    size: torch.Tensor
    losses: torch.Tensor
    infeasibilities: torch.Tensor  # h
    slacks: torch.Tensor  # s
    multipliers: torch.Tensor  # λ
    meets: bool  # every constraint
    parts: list[Part]


@dataclass
class Constrained:
    iterates: list[Iterate]
    limits: torch.Tensor  # m
    scale: float
    rates: list[float]
    stop: str  # "grew" or "max_iters"
    returned: int  # index of the iterate
    closest_decision: float


def constrain(model, job):
    """Section 7, from the job's start."""
    options = job.options
    parts = leaves(job.steering.parts, model.dtype)
    steering = job.steering.replaced(parts)
    listed = completions(job.examples)
    with_norm = options.output_constr_objective == "melbo"

    def measure():
        """Losses, and the norm as one more of them where it is constrained."""
        values = [completion_loss(model, steering, completion, options)[0] for completion in listed]
        return torch.stack(values + ([size(parts)] if with_norm else []))

    start = measure().detach()
    losses_at_start = start[: len(listed)]
    target = float(losses_at_start.max()) if options.target_loss is None else options.target_loss
    targets = [target if c.target is None else c.target for c in listed]
    limits = torch.minimum(torch.tensor(targets, dtype=torch.float64), losses_at_start + options.eps)
    if with_norm:
        limits = torch.cat([limits, start[-1:]])
    scale = float(size(parts).detach()) / (options.eps + target)

    slacks = (limits - start).clamp(min=0).sqrt().requires_grad_()
    multipliers = torch.zeros_like(limits, requires_grad=True)
    lr = rates(model, job, options.lr if options.output_constr_lr is None else options.output_constr_lr)
    groups = [{"params": list(part.tensors().values()), "lr": rate} for part, rate in zip(parts, lr, strict=True)]
    groups.append({"params": [slacks], "lr": min(lr)})
    groups.append({"params": [multipliers], "lr": min(lr), "maximize": True})
    optimizer = torch.optim.Adamax(groups)

    iterates, distances = [], [float("inf")]
    while True:
        values = measure()
        objective = melbo(model, job, steering) if with_norm else size(parts)
        h = limits - values - slacks**2
        iterates.append(
            Iterate(
                objective=objective.detach(),
                size=size(parts).detach(),
                losses=values.detach()[: len(listed)],
                infeasibilities=h.detach(),
                slacks=slacks.detach().clone(),
                multipliers=multipliers.detach().clone(),
                meets=bool((values <= limits).all()),
                parts=[part.map(lambda t: t.detach().clone()) for part in parts],
            )
        )
        stop = None
        if len(iterates) > 1:
            # Whether it meets them: by its worst constraint. Whether the objective grew.
            distances.append(float((values - limits).detach().max().abs()))
            grown = float(iterates[-1].objective - iterates[-2].objective)
            distances.append(abs(grown))
            stop = "grew" if grown > 0 else None
        if stop is None and options.max_output_constr_iters is not None:
            stop = "max_iters" if len(iterates) > options.max_output_constr_iters else None
        if stop is not None:
            best = 0
            for i, iterate in enumerate(iterates):
                if iterate.meets and iterate.objective < iterates[best].objective:
                    best = i
            return Constrained(iterates, limits, scale, lr, stop, best, min(distances))

        optimizer.zero_grad()
        (objective + scale * (multipliers * h + h**2 / 2).sum()).backward()
        optimizer.step()
        limit_norms(parts, options)
