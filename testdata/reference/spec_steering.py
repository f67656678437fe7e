"""The steering operator, the loss of a completion, what a run minimizes: sections 1 to 4 and 6 of the specification.

Written from the specification alone. It shares nothing with steering.py, which holds the engine's fixtures, so that
each is a check of the other. Parameters have the model's precision; what is computed from logits, and norms and
regularizers, are float64.
"""

import contextlib
from dataclasses import dataclass, field

import torch


@dataclass
class Part:
    """A vector, with the matrix M = leftᵀ right where there is one, and the layers at whose input it steers."""

    layers: list[int]
    vector: torch.Tensor  # width
    left: torch.Tensor | None = None  # rank × width
    right: torch.Tensor | None = None  # rank × width

    def tensors(self):
        named = {"vector": self.vector, "left": self.left, "right": self.right}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def map(self, function):
        """The same part with function(tensor) in place of each tensor."""
        return Part(self.layers, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def moved(self, noise):
        return Part(self.layers, self.vector + noise, self.left, self.right)

    def matrix_norm(self):
        """‖M‖_F."""
        return (self.left.double().T @ self.right.double()).norm()


@dataclass
class Steering:
    """kind is "add", "affine", "ablate" or "clamp"; clamp is its c, 0 for ablate."""

    kind: str
    parts: list[Part]
    clamp: float | None = None

    def replaced(self, parts):
        return Steering(self.kind, parts, self.clamp)

    def change(self, part, x, sign):
        """op(x) − x for each row of x, with sign·v in place of v."""
        part = part.map(lambda t: t.to(x.dtype))
        v = sign * part.vector
        if self.kind in ("ablate", "clamp"):
            if not bool(v.any()):
                return torch.zeros_like(x)
            return self.clamp * v - (x @ v)[..., None] * v / (v @ v)
        if self.kind == "affine":
            return v + x @ part.right.T @ part.left
        return v.expand_as(x)


@dataclass
class Example:
    """Section 2, of token ids. Targets are parallel to the completions, or None."""

    prompt: list[int]
    src_completions: list[list[int]] = field(default_factory=list)
    dst_completions: list[list[int]] = field(default_factory=list)
    token: str | None = None
    is_negative: bool = False
    src_completions_target_losses: list[float] | None = None
    dst_completions_target_losses: list[float] | None = None


@dataclass
class Completion:
    """One completion of an example."""

    example: Example
    kind: str  # "src" or "dst"
    tokens: list[int]
    target: float | None  # its own


@dataclass
class Options:
    """Section 4, the defaults included. lr None is auto, of section 10."""

    lr: float | None = None
    max_iters: int | None = None
    coldness: float = 0.7
    eps: float = 1e-6
    max_norm: float | None = None
    target_loss: float | None = None
    do_target_loss_sum: bool = True
    target_loss_target_iters: int = 1
    satisfice: bool = False
    normalize_token_length: bool = False
    do_one_minus: bool = True
    only_hook_prompt: bool = False
    max_affine_norm: float = 2.0
    regularization_weight: float = 0.01
    regularization_type: str = "l1"
    sparsity_weight: float = 0.1
    entropy_weight: float = 0.01
    minibatch_size: int | None = None
    noise_scale: float | None = None
    noise_iters: int = 1
    do_tangent_space_noise: bool = True
    do_noise_abl_relu: bool = False
    do_antipgd: bool = False
    do_output_constr: bool = False
    output_constr_lr: float | None = None
    max_output_constr_iters: int | None = None
    output_constr_objective: str = "norm"
    melbo_layer: int | None = None


@dataclass
class Job:
    """A run: where its parameters start, on what, with which options."""

    name: str
    model: str
    steering: Steering  # the start
    examples: list[Example]
    options: Options = field(default_factory=Options)
    draws: torch.Tensor | None = None  # evaluations × noise_iters × all completions × parts × width, of N(0, 1)

    def window(self, evaluation):
        """The examples of that evaluation: all, or those of the minibatch."""
        size = self.options.minibatch_size
        if size is None:
            return self.examples
        return [self.examples[(evaluation * size + i) % len(self.examples)] for i in range(size)]

    def numbers(self, evaluation):
        """Of that evaluation's completions, their numbers among all of the job: what draws and tangents go by."""
        ids = [id(completion.example) for completion in completions(self.examples)]
        return [n for example in self.window(evaluation) for n, of in enumerate(ids) if of == id(example)]


def completions(examples):
    """In the order of every list of losses: by example, its src completions before its dst completions."""
    found = []
    for example in examples:
        for kind in ("src", "dst"):
            listed = getattr(example, f"{kind}_completions")
            targets = getattr(example, f"{kind}_completions_target_losses") or [None] * len(listed)
            found += [Completion(example, kind, c, t) for c, t in zip(listed, targets, strict=True)]
    return found


def token_mask(token, prompt, length, only_hook_prompt):
    """1 at the steered positions of a sequence of `length` tokens, `prompt` of which are the prompt's."""
    positions = list(range(length))
    if only_hook_prompt:
        positions = positions[:prompt]
    elif token is not None and ":" in token:
        positions = positions[slice(*(int(bound) if bound else None for bound in token.split(":")))]
    elif token is not None:
        positions = [positions[int(token)]]
    mask = torch.zeros(length)
    mask[positions] = 1
    return mask


@contextlib.contextmanager
def steered(model, steerings, strengths, sign=1, streams=None):
    """Within it, a pass of one sequence is steered: x + strength · (op(x) − x), a strength for each token.

    Each steering has its own strengths, and all of them read the same x. `streams`, a dict, receives x at the input of
    each layer before it is steered.
    """

    def hook(layer):
        def before(_, arguments):
            x = arguments[0]
            changed = x
            if streams is not None:
                streams[layer] = x[0]
            for steering, strength in zip(steerings, strengths, strict=True):
                for part in steering.parts:
                    if layer in part.layers:
                        changed = changed + strength.to(x.dtype)[:, None] * steering.change(part, x, sign)
            return (changed, *arguments[1:])

        return before

    with contextlib.ExitStack() as hooks:
        for layer, block in enumerate(model.model.layers):
            hooks.enter_context(block.register_forward_pre_hook(hook(layer)))
        yield


def log_softmax(model, tokens, coldness, steerings=(), strengths=(), sign=1, streams=None):
    """log softmax(κ · logits) at each position, float64."""
    with steered(model, steerings, strengths, sign, streams):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return (coldness * logits.double()).log_softmax(-1)


def log_probabilities(model, prompt, completion, coldness, steerings=(), strengths=(), sign=1, streams=None):
    """log p_t of each token of the completion."""
    logp = log_softmax(model, prompt + completion, coldness, steerings, strengths, sign, streams)
    before = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return logp[before, torch.tensor(completion)]


def completion_loss(model, steering, completion, options, streams=None):
    """Section 3; also log p_t."""
    example = completion.example
    prompt = example.prompt
    mask = token_mask(
        example.token, len(prompt), len(prompt) + len(completion.tokens), options.only_hook_prompt
    )
    sign = -1 if example.is_negative else 1
    logp = log_probabilities(
        model, prompt, completion.tokens, options.coldness, [steering], [mask], sign, streams
    )
    if completion.kind == "dst":
        loss = -torch.log(logp.exp() + options.eps).sum()
    elif options.do_one_minus:
        loss = -torch.log(options.eps - torch.expm1(logp)).sum()
    else:
        loss = torch.log(logp.exp() + options.eps).sum()
    if options.normalize_token_length:
        loss = loss / len(completion.tokens)
    return loss, logp


def regularizers(steering, options):
    """What several layers with a vector each add to the loss; 0 with one vector, shared or not."""
    vectors = [part.vector.double() for part in steering.parts]
    if len(vectors) == 1:
        return torch.zeros((), dtype=torch.float64)
    if options.regularization_type == "l1":
        size = sum(v.abs().sum() for v in vectors)
    else:
        size = sum(v.abs().amax() for v in vectors)
    norms = torch.stack([v.norm() for v in vectors])
    entropy = torch.distributions.Categorical(logits=norms).entropy()
    size, sparsity = options.regularization_weight * size, options.sparsity_weight * norms.sum()
    return size + sparsity + options.entropy_weight * entropy


def target_of(completion, options):
    return options.target_loss if completion.target is None else completion.target


def leaves(parts, dtype):
    """Copies whose gradient is kept."""
    return [part.map(lambda t: t.detach().to(dtype, copy=True).requires_grad_()) for part in parts]


def tangent_gradients(model, job):
    """For each completion and part: the gradient with respect to v of that completion's loss at v = 0 and M = 0."""
    gradients = []
    for completion in completions(job.examples):
        parts = [Part(p.layers, torch.zeros_like(p.vector)) for p in job.steering.parts]
        parts = leaves(parts, model.dtype)
        loss, _ = completion_loss(model, Steering("add", parts), completion, job.options)
        loss.backward()
        gradients.append(torch.stack([part.vector.grad for part in parts]))
    return torch.stack(gradients)


def noise_of(job, evaluation, draw, completion, tangents, dtype):
    """What is added to each part's vector (parts × width) in one draw for one completion. Section 6."""
    options = job.options

    def scaled(evaluation):
        return options.noise_scale * job.draws[evaluation, draw, completion].to(dtype)

    noise = scaled(evaluation)
    if options.do_antipgd:
        return noise if evaluation == 0 else noise - scaled(evaluation - 1)
    if not options.do_tangent_space_noise:
        return noise
    projected = []
    for n, g in zip(noise, tangents[completion], strict=True):
        along = n @ g
        if not bool(g.any()) or (options.do_noise_abl_relu and along >= 0):
            projected.append(n)
        else:
            projected.append(n - along / (g @ g) * g)
    return torch.stack(projected)


@dataclass
class Evaluation:
    """The objective at some parameters. The gradient has the form of the parts."""

    losses: torch.Tensor  # of each completion; under noise the mean over draws
    total: torch.Tensor
    regularizers: torch.Tensor
    gradient: list[Part]
    logp: list[torch.Tensor]  # of each completion, of the last draw


def evaluate(model, job, parts, evaluation=0, tangents=None):
    """The job's objective at parts, which leaves() made, and its gradient."""
    options, steering = job.options, job.steering.replaced(parts)
    examples = job.window(evaluation)
    draws = 1 if options.noise_scale is None else options.noise_iters
    losses, logps, objective = [], [], 0
    for number, completion in zip(job.numbers(evaluation), completions(examples), strict=True):
        mean = 0
        for draw in range(draws):
            moved = steering
            if options.noise_scale is not None:
                noise = noise_of(job, evaluation, draw, number, tangents, model.dtype)
                moved = steering.replaced([part.moved(n) for part, n in zip(parts, noise, strict=True)])
            loss, logp = completion_loss(model, moved, completion, options)
            mean = mean + loss.detach() / draws
            if options.satisfice:
                loss = (loss - target_of(completion, options)) ** 2
            objective = objective + loss / draws
        losses.append(mean)
        logps.append(logp.detach())
    terms = regularizers(steering, options)
    gradient = torch.autograd.grad(objective + terms, [t for part in parts for t in part.tensors().values()])
    following = iter(gradient)
    losses = torch.stack(losses)
    per_prompt = 1 if options.minibatch_size is None else options.minibatch_size
    return Evaluation(
        losses=losses,
        total=losses.sum() / per_prompt + terms.detach(),
        regularizers=terms.detach(),
        gradient=[part.map(lambda _: next(following)) for part in parts],
        logp=logps,
    )
