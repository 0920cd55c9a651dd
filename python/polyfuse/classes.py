"""Cross entropy of polynomial logits: what `fit` does with a `Polynomial` of several outputs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from . import _C, _check
from .bases import recurrence_of
from .batch import options_held
from .nn.polynomial import Polynomial
from .problem import Wanted
from .recognise import refuse_optimizer, refuse_own
from .result import FitResult
from .runs import descend
from .watching import has_hooks

MAX_PARAMETERS = 4096


def has_outputs(model: Any) -> bool:
    return isinstance(model, Polynomial) and model.outputs is not None


def fit_classes(
    model: Any,
    criterion: torch.nn.CrossEntropyLoss,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
) -> FitResult:
    """`fit` of one polynomial per class; y are classes [N], int64, or probabilities [N, C]."""
    start = time.perf_counter()
    epochs, engine, backend, record_every, tol, nan_policy, weights = wanted
    if has_hooks(criterion):
        raise ValueError("criterion: CrossEntropyLoss has hooks")
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    _check.one_of("engine", engine, ("auto", "stream"))
    _check.one_of("backend", backend, ("auto", "cpu"))
    for name, value in zip(("sample_weight", "mask", "sigma"), weights, strict=True):
        if value is not None:
            raise ValueError(f"{name}: not with CrossEntropyLoss; its ignore_index leaves out")
    p, n_classes = model.coefficients, model.outputs
    if p.numel() > MAX_PARAMETERS:
        raise ValueError(f"model: expected at most {MAX_PARAMETERS} coefficients, got {p.numel()}")
    _check.alike(x, **({"y": y} if isinstance(y, torch.Tensor) and y.is_floating_point() else {}))
    if p.dtype is not x.dtype or x.device.type != "cpu" or p.device != x.device:
        raise TypeError(
            f"x: expected {p.dtype} on a CPU, as the model's coefficients, "
            f"got {x.dtype} on {x.device}"
        )
    _check.memory(x=x)
    if x.ndim != 1 or x.numel() == 0:
        raise ValueError(f"x: expected shape (n,) with n >= 1, got {tuple(x.shape)}")
    xs = _check.flat(x)
    index = share = None
    if isinstance(y, torch.Tensor) and y.is_floating_point():
        if y.shape != (len(xs), n_classes):
            raise ValueError(f"y: expected shape ({len(xs)}, {n_classes}), got {tuple(y.shape)}")
        _check.memory(y=y)
        share = y.detach()
        if criterion.ignore_index >= 0:
            raise ValueError("criterion: expected no ignore_index with probabilities")
    else:
        index = _classes(y, len(xs), n_classes, criterion.ignore_index)
    if nan_policy == "omit":
        raise ValueError("nan_policy: expected raise or propagate with CrossEntropyLoss, got omit")
    finite = bool(xs.isfinite().all()) and (share is None or bool(share.isfinite().all()))
    if nan_policy == "raise" and not finite:
        raise ValueError("x, y: expected finite data, or nan_policy='propagate'")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    weight = torch.ones(n_classes, dtype=torch.float64)
    if criterion.weight is not None:
        if criterion.weight.shape != (n_classes,):
            raise ValueError(
                f"criterion: expected a weight of {n_classes} classes, "
                f"got shape {tuple(criterion.weight.shape)}"
            )
        if criterion.weight.device.type != "cpu":
            raise ValueError(
                f"criterion: expected a weight on {x.device}, got {criterion.weight.device}"
            )
        weight = criterion.weight.detach().double().contiguous()
    if criterion.reduction not in ("mean", "sum"):
        raise ValueError(f"criterion: expected reduction mean or sum, got {criterion.reduction!r}")
    ((shift, scale),) = model.variable
    rows = [row.ctypes.data for row in recurrence_of(model.basis, p.shape[0])]
    kernels = _C.Classes(
        (xs.data_ptr(), xs.stride(0), 0, xs.dtype is torch.float64),
        0 if index is None else index.data_ptr(),
        None
        if share is None
        else (share.data_ptr(), share.stride(0), share.stride(1), share.dtype is torch.float64),
        weight.data_ptr(),
        len(xs),
        criterion.ignore_index,
        p.shape[0],
        n_classes,
        shift,
        scale,
        float(criterion.label_smoothing),
        tuple(rows),
        criterion.reduction == "mean",
    )
    options = options_held(p, optimizer)
    return descend(
        partial(kernels.descend, 0, None), "stream", p, options, optimizer, epochs, record_every,
        tol, start, _C.launches(),
    )  # fmt: skip


def _classes(y: Any, n: int, n_classes: int, ignore: int) -> torch.Tensor:
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"y: expected a torch.Tensor, got {type(y).__name__}")
    if y.dtype is not torch.int64:
        raise TypeError(f"y: expected classes of int64, or probabilities, got {y.dtype}")
    if y.device.type != "cpu":
        raise ValueError(f"y: expected the device of x, cpu, got {y.device}")
    _check.memory(y=y)
    if y.shape != (n,):
        raise ValueError(f"y: expected shape ({n},), got {tuple(y.shape)}")
    bad = ((y < 0) | (y >= n_classes)) & (y != ignore)
    if bad.any():
        raise ValueError(f"y: expected classes from 0 to {n_classes - 1}, got {y[bad][0].item()}")
    return y.detach().contiguous()
