"""What every fixture needs: a judgement of float32's error, and JSON whose numbers read back as they were."""

import contextlib
import dataclasses
import json
import os

import numpy as np
import torch


class Unfit(Exception):
    """A model is no reference: what it computes depends on rounding, or llama.cpp finds something else."""


def require(condition, otherwise):
    if not condition:
        raise Unfit(otherwise)


@contextlib.contextmanager
def float32_is_float64():
    """transformers computes norms, rotary angles and attention weights in float32, whatever a model's own type is.

    Within this, the names that it uses mean float64.
    """
    single = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = single


def largest_difference(values, exact):
    pairs = zip(values, exact, strict=True)
    return max(float((value.double() - other.double()).abs().max()) for value, other in pairs)


def relative_difference(gradient, exact):
    """Of each tensor of each layer by itself, relative to its norm; the largest."""
    errors = [0.0]  # of an unsteered case
    for one, other in zip(gradient, exact, strict=True):
        for name, tensor in one.tensors().items():
            exactly = other.tensors()[name]
            errors.append(float((tensor.double() - exactly).norm() / exactly.norm()))
    return max(errors)


def plain_fields(value):
    """A dataclass as a dict of its fields."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def plain(value):
    """Tensors and dataclasses as what JSON has. A float32 number becomes the shortest decimal that reads back to it."""
    if dataclasses.is_dataclass(value):
        value = plain_fields(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value] if value.ndim else plain(value[()])
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.float32):
        return float(str(value))
    if isinstance(value, np.float64):
        return float(value)
    return value


def write_json(path, value, separator=", "):
    """Rows of numbers on one line each, a separator between them. `path` appears only when it is complete."""

    def holds_dict(value):
        return isinstance(value, dict) or isinstance(value, list) and any(map(holds_dict, value))

    def row(value):
        return json.dumps(value, separators=(separator, ": "))

    def text(value, indent):
        if isinstance(value, dict):
            items = [f"{json.dumps(key)}: {text(item, indent + ' ')}" for key, item in value.items()]
            brackets = "{}"
        elif holds_dict(value):
            items, brackets = [text(item, indent + " ") for item in value], "[]"
        elif isinstance(value, list) and value and isinstance(value[0], list):
            items, brackets = [row(item) for item in value], "[]"
        else:
            return row(value)
        lines = ",".join(f"\n{indent} {item}" for item in items)
        return f"{brackets[0]}{lines}\n{indent}{brackets[1]}"

    partial = path.with_name(path.name + ".part")
    partial.write_text(text(plain(value), "") + "\n", encoding="utf-8")
    os.replace(partial, path)
