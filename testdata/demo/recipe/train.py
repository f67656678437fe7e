"""Step 4: trains the model on the tokens, in a few data-parallel processes of one thread each.

Muon (Jordan et al., 2024) steps the matrices of the blocks, AdamW the embedding and the norms. The rates rise over the
first steps, stay, and fall in a straight line over the last third. Products run in bfloat16, sums and weights in
float32. The soft cap of the attention scores is left out while training, for PyTorch's fused attention; the validation
after the last step is done both ways and shows what that cost.
"""

import hashlib
import itertools
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn import functional as F

import settings
from model import Gemma2
from settings import Shape


@dataclass(frozen=True)
class Plan:
    """What a checkpoint must have been made with to be continued."""

    shape: Shape
    processes: int
    batch: int
    steps: int
    tokens: str  # SHA-256 of the token file

    def describe(self):
        return json.dumps(asdict(self), sort_keys=True)


class Data:
    """The token arrays that tokenizer.encode() wrote."""

    def __init__(self, path):
        self.arrays = dict(numpy.load(path))
        self.vocabulary = int(self.arrays["vocabulary"])

    def documents(self, part, language):
        tokens, ends = self.arrays[f"{part}_{language}_tokens"], self.arrays[f"{part}_{language}_ends"]
        return numpy.split(tokens, ends[:-1])

    def training_windows(self, context):
        """Endless windows of context + 1 tokens, the same in every run.

        In each epoch documents come in a new order, and those of the language that has less text come more than once,
        so that both languages are seen equally often. Windows cut the run of documents anywhere.
        """
        groups = [self.documents("training", language) for language in ("english", "spanish")]
        sizes = [sum(map(len, group)) for group in groups]
        for epoch in itertools.count():
            rng = numpy.random.default_rng([settings.SEED, epoch])
            chosen = []
            for group, size in zip(groups, sizes, strict=True):
                whole, rest = divmod(round(len(group) * max(sizes) / size), len(group))
                chosen += group * whole + [group[i] for i in rng.permutation(len(group))[:rest]]
            run = numpy.concatenate([chosen[i] for i in rng.permutation(len(chosen))]).astype(numpy.int64)
            if len(run) <= context:
                raise SystemExit(f"the corpus holds {len(run)} training tokens, less than one window of {context + 1}")
            for start in range(0, len(run) - context, context):
                yield run[start : start + context + 1]

    def validation_windows(self, language, context):
        run = numpy.concatenate(self.documents("validation", language)).astype(numpy.int64)
        count = min(settings.VALIDATION_WINDOWS, (len(run) - 1) // context)
        return torch.tensor(numpy.stack([run[i * context : (i + 1) * context + 1] for i in range(count)]))


def cross_entropy(model, windows, capped):
    """Mean over tokens of -log p of the next token, in nats."""
    logits = model.logits(model.hidden(windows[:, :-1], capped=capped))
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validate(model, data, capped):
    """Loss by language, in float32."""
    context = model.shape.context
    return {
        language: cross_entropy(model, data.validation_windows(language, context), capped).item()
        for language in ("english", "spanish")
    }


def rate_factor(step, steps):
    """What the learning rates are multiplied with at a step of 0 … steps - 1."""
    decay = settings.DECAY_SHARE * steps
    falling = 1 - (1 - settings.FINAL_RATE) * max(0, step + 1 - (steps - decay)) / decay
    return min((step + 1) / settings.WARMUP_STEPS, 1) * falling


def optimizers_of(model):
    matrices = [parameter for parameter in model.layers.parameters() if parameter.dim() == 2]
    taken = set(map(id, matrices))
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.MUON_RATE,
        momentum=settings.MUON_MOMENTUM,
        weight_decay=settings.MUON_WEIGHT_DECAY,
        adjust_lr_fn="original",
    )
    adam = torch.optim.AdamW(others, lr=settings.ADAM_RATE, betas=settings.ADAM_BETAS, weight_decay=0.0)
    return [(muon, settings.MUON_RATE), (adam, settings.ADAM_RATE)]


def average_gradients(model, processes):
    """Replaces each gradient by its mean over the processes; one message, for each has a price."""
    gradients = [parameter.grad for parameter in model.parameters()]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(joined)
    joined /= processes
    for gradient, mean in zip(gradients, joined.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def work(rank, plan, tokens_path, checkpoint_path):
    """One of the processes; rank 0 also reports and saves."""
    torch.set_num_threads(1)
    if plan.processes > 1:
        meeting = Path(checkpoint_path).with_suffix(".meeting").absolute()
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.processes
        )
    torch.manual_seed(settings.SEED)
    model = Gemma2(plan.shape).initialize()
    data = Data(tokens_path)
    optimizers = optimizers_of(model)
    first = load_checkpoint(checkpoint_path, plan, model, optimizers)
    loss_of = torch.compile(cross_entropy, dynamic=False)

    # Every process goes through all windows and takes its own, so a number of steps tells the place in the data.
    windows = itertools.islice(data.training_windows(plan.shape.context), rank, None, plan.processes)
    windows = itertools.islice(windows, first * plan.batch, None)
    started = time.monotonic()
    for step in range(first, plan.steps):
        factor = rate_factor(step, plan.steps)
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad()
        batch = torch.from_numpy(numpy.stack(list(itertools.islice(windows, plan.batch))))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch, False)
        loss.backward()
        if plan.processes > 1:
            average_gradients(model, plan.processes)
        for optimizer, _ in optimizers:
            optimizer.step()
        done = step + 1
        if rank == 0:
            if done <= 5 or done % 25 == 0:
                speed = (done - first) * plan.processes * plan.batch * plan.shape.context / (time.monotonic() - started)
                print(
                    f"step {done} of {plan.steps}: loss {loss.item():.3f}, rates × {factor:.2f}, {speed:.0f} tokens/s",
                    flush=True,
                )
            if done % settings.CHECKPOINT_STEPS == 0 or done == plan.steps:
                save_checkpoint(checkpoint_path, plan, model, optimizers, done)
                report(f"after step {done}", validate(model, data, capped=False))
    if rank == 0:
        report("final", validate(model, data, capped=True))
    if plan.processes > 1:
        torch.distributed.destroy_process_group()


def report(when, losses):
    print(f"validation {when}: " + ", ".join(f"{language} {loss:.4f}" for language, loss in losses.items()), flush=True)


def save_checkpoint(path, plan, model, optimizers, step):
    partial = path.with_name(path.name + ".part")
    torch.save(
        {
            "plan": plan.describe(),
            "shape": asdict(plan.shape),
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
        },
        partial,
    )
    os.replace(partial, path)


def load_checkpoint(path, plan, model, optimizers):
    """The number of steps done: 0 without a checkpoint."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    if saved["plan"] != plan.describe():
        raise SystemExit(
            f"{path} belongs to another run; remove it to begin anew\n"
            f"  there: {saved['plan']}\n  here:  {plan.describe()}"
        )
    model.load_state_dict(saved["model"])
    for (optimizer, _), state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"]


def load_model(path):
    """The model of a checkpoint, finished or not."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the step train first")
    saved = torch.load(path, weights_only=True)
    model = Gemma2(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    return model.eval().requires_grad_(False)


def train(tokens_path, checkpoint_path, tokens, processes, batch):
    if not tokens_path.exists():
        raise SystemExit(f"{tokens_path} is missing: run the step tokenizer first")
    shape = Shape(vocabulary=Data(tokens_path).vocabulary)
    steps = max(1, round(tokens / (processes * batch * shape.context)))
    plan = Plan(shape, processes, batch, steps, hashlib.sha256(tokens_path.read_bytes()).hexdigest())
    if processes == 1:
        work(0, plan, tokens_path, checkpoint_path)
        return
    checkpoint_path.with_suffix(".meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (plan, tokens_path, checkpoint_path), nprocs=processes)
