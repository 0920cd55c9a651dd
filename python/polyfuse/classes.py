"""Cross entropy of polynomial logits: what `fit` and `fuse` ask of criterion and targets."""

from __future__ import annotations

from typing import Any

import torch

from . import _check
from .criteria import Criterion, build, options_of
from .nn.criterion import is_torchs
from .nn.polynomial import Polynomial
from .recognise import refuse_optimizer, refuse_own

MAX_PARAMETERS = 4096


def has_outputs(model: Any) -> bool:
    return isinstance(model, Polynomial) and model.outputs is not None


def check_classes(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any
) -> tuple[Criterion, bool]:
    """The criterion, and whether its reduction is a mean; raises what `fit` documents.

    x is [N], or [N, variables]; y are classes [N], int64, or probabilities [N, C].
    """
    found = read_classes(criterion, x)
    if isinstance(found, str):
        raise ValueError(f"criterion: {found}")
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    p = model.coefficients
    if p.numel() > MAX_PARAMETERS:
        raise ValueError(f"model: expected at most {MAX_PARAMETERS} coefficients, got {p.numel()}")
    shares = isinstance(y, torch.Tensor) and y.is_floating_point()
    _check.alike(x, **({"y": y} if shares else {}))
    if p.dtype is not x.dtype or p.device != x.device:
        raise TypeError(
            f"x: expected {p.dtype} on {p.device}, as the model's coefficients, "
            f"got {x.dtype} on {x.device}"
        )
    _check.memory(x=x)
    of_x = (model.variables,) if model.variables > 1 else ()
    if x.ndim == 0 or x.shape[1:] != of_x or x.numel() == 0:
        wanted = f"(n, {model.variables})" if of_x else "(n,)"
        raise ValueError(f"x: expected shape {wanted} with n >= 1, got {tuple(x.shape)}")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    read, mean = found
    weight, ignored, _ = (value for _, value in read.options)
    if isinstance(weight, tuple) and len(weight) != model.outputs:
        raise ValueError(
            f"criterion: expected a weight of {model.outputs} classes, got {len(weight)}"
        )
    expected: tuple[int, ...] = (len(x),)
    if shares:
        expected = len(x), model.outputs
        if ignored >= 0:
            raise ValueError("criterion: expected no ignore_index with probabilities")
    elif not isinstance(y, torch.Tensor):
        raise TypeError(f"y: expected a torch.Tensor, got {type(y).__name__}")
    elif y.dtype is not torch.int64:
        raise TypeError(f"y: expected classes of int64, or probabilities, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"y: expected the device of x, {x.device}, got {y.device}")
    _check.memory(y=y)
    if y.shape != expected:
        raise ValueError(f"y: expected shape {expected}, got {tuple(y.shape)}")
    if (bad := read.out_of_range(y, model.outputs)) is not None:
        raise ValueError(f"y: expected classes from 0 to {model.outputs - 1}, got {bad}")
    return read, mean


def read_classes(criterion: Any, like: Any = None) -> tuple[Criterion, bool] | str:
    """What `recognise.read_criterion` gives, of `CrossEntropyLoss` and x like this."""
    if not is_torchs(criterion):
        return f"{type(criterion).__name__} has hooks or a forward of its own"
    found = options_of(criterion, like if isinstance(like, torch.Tensor) else None)
    return found if isinstance(found, str) else build(*found)
