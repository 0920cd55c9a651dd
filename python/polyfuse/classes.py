"""Cross entropy of polynomial logits: `fit` and `fuse` of a `Polynomial` of several outputs."""

from __future__ import annotations

import time
from typing import Any

import torch

from . import _check
from .backends.classes import Targets, choose
from .batch import options_held
from .criteria import CROSS_ENTROPY, Criterion, build, kind_of, options_of
from .logits import Logits, logits
from .nn.criterion import is_torchs
from .nn.polynomial import Polynomial
from .problem import Wanted
from .recognise import refuse_optimizer, refuse_own
from .result import FitResult
from .runs import descend

MAX_PARAMETERS = 4096


def has_outputs(model: Any) -> bool:
    return isinstance(model, Polynomial) and model.outputs is not None


def fit_classes(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
) -> FitResult:
    """`fit` of one polynomial per class; y are classes [N], int64, or probabilities [N, C]."""
    start = time.perf_counter()
    epochs, engine, backend, record_every, tol, nan_policy, weights, _ = wanted
    _check.one_of("engine", engine, ("auto", "stream"))
    read, mean = check_classes(model, criterion, optimizer, x, y)
    traced = _logits(model)
    runner = choose(backend, traced, x.device)
    w = _check.weight(x, *weights)
    if nan_policy == "omit":
        raise ValueError("nan_policy: expected raise or propagate with CrossEntropyLoss, got omit")
    counted = slice(None) if w is None else w != 0
    finite = bool(x[counted].isfinite().all() and y[counted].isfinite().all())
    if nan_policy == "raise" and not finite:
        raise ValueError("x, y: expected finite data, or nan_policy='propagate'")
    xs, ys = _check.flat(x), y.detach().resolve_neg()
    options = options_held(model.coefficients, optimizer)
    before = runner.launches()
    run = runner.run_of(Targets(traced, read, mean, xs, ys, w), options)
    return descend(
        run, "stream", model.coefficients, options, optimizer, epochs, record_every, tol, start,
        before, runner,
    )  # fmt: skip


def check_classes(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any
) -> tuple[Criterion, bool]:
    """The criterion, and whether its reduction is a mean; raises what `fit` documents."""
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
    if x.ndim != 1 or x.numel() == 0:
        raise ValueError(f"x: expected shape (n,) with n >= 1, got {tuple(x.shape)}")
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
    if (bad := _logits(model).out_of_range(y, read)) is not None:
        raise ValueError(f"y: expected classes from 0 to {model.outputs - 1}, got {bad}")
    return read, mean


def _logits(model: Polynomial) -> Logits:
    ((shift, scale),) = model.variable
    return logits(model.coefficients, model.basis, shift, scale)


def read_classes(criterion: Any, like: Any = None) -> tuple[Criterion, bool] | str:
    """What `recognise.read_criterion` gives, for several outputs of x like this."""
    name = type(criterion).__name__
    if not isinstance(criterion, torch.nn.Module) or kind_of(type(criterion)) is not CROSS_ENTROPY:
        hint = "independent curves are a batch (batch_shape=)"
        return f"expected CrossEntropyLoss for several outputs, got {name}; {hint}"
    if not is_torchs(criterion):
        return f"{name} has hooks or a forward of its own"
    found = options_of(criterion, like if isinstance(like, torch.Tensor) else None)
    return found if isinstance(found, str) else build(*found)
