"""Cross entropy of polynomial logits: `fit` and `fuse` of a `Polynomial` of several outputs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from . import _check
from .backends import REGISTRY
from .backends.native import make_stacked
from .criteria import Criterion, build, options_of
from .nn.criterion import is_torchs
from .nn.polynomial import Polynomial
from .problem import Wanted
from .recognise import refuse_optimizer, refuse_own
from .result import FitResult
from .rules import options_held
from .runs import descend
from .stacked import Stacked

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
    _check.one_of("backend", backend, ("auto", "cpu"))
    read, mean = check_classes(model, criterion, optimizer, x, y, weights)
    if nan_policy == "omit":
        raise ValueError("nan_policy: expected raise or propagate with CrossEntropyLoss, got omit")
    finite = bool(x.isfinite().all() and y.isfinite().all())
    if nan_policy == "raise" and not finite:
        raise ValueError("x, y: expected finite data, or nan_policy='propagate'")
    p, xs, ys = model.coefficients, _check.flat(x), y.detach().resolve_neg()
    kernels = make_stacked(_stacked(model))
    index = ys.contiguous() if ys.ndim == 1 else None
    share = None
    if index is None:
        share = ys.data_ptr(), *ys.stride(), ys.dtype is torch.float64
    kernels.read(
        (xs.data_ptr(), xs.stride(0), 0, xs.dtype is torch.float64),
        share,
        None,
        0 if index is None else index.data_ptr(),
        len(xs),
        read,
        mean,
    )
    options = options_held(p, optimizer)

    def evidence(params: Any) -> Any:
        from .class_statistics import EvidenceOfClasses

        return EvidenceOfClasses.of(_stacked(model), xs, ys, read, params)

    return descend(
        partial(kernels.descend, 0, None), "stream", p, options, optimizer, epochs, record_every,
        tol, start, REGISTRY["cpu"], evidence,
    )  # fmt: skip


def check_classes(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any, weights: Any
) -> tuple[Criterion, bool]:
    """The criterion, and whether its reduction is a mean; raises what `fit` documents."""
    found = read_classes(criterion)
    if isinstance(found, str):
        raise ValueError(f"criterion: {found}")
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    refuse_weights(weights)
    p = model.coefficients
    if p.numel() > MAX_PARAMETERS:
        raise ValueError(f"model: expected at most {MAX_PARAMETERS} coefficients, got {p.numel()}")
    shares = isinstance(y, torch.Tensor) and y.is_floating_point()
    _check.alike(x, **({"y": y} if shares else {}))
    if p.dtype is not x.dtype or x.device.type != "cpu" or p.device != x.device:
        raise TypeError(
            f"x: expected {p.dtype} on a CPU, as the model's coefficients, "
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
    if y.device.type != "cpu":
        raise ValueError(f"y: expected the device of x, cpu, got {y.device}")
    _check.memory(y=y)
    if y.shape != expected:
        raise ValueError(f"y: expected shape {expected}, got {tuple(y.shape)}")
    if (bad := _stacked(model).out_of_range(y, read)) is not None:
        raise ValueError(f"y: expected classes from 0 to {model.outputs - 1}, got {bad}")
    return read, mean


def refuse_weights(weights: Any) -> None:
    for name, value in zip(("sample_weight", "mask", "sigma"), weights, strict=True):
        if value is not None:
            raise ValueError(f"{name}: not with CrossEntropyLoss; its ignore_index leaves out")


def _stacked(model: Polynomial) -> Stacked:
    stacked = model.trace_stacked()
    assert stacked is not None  # refuse_own has been asked
    return stacked


def read_classes(criterion: Any) -> tuple[Criterion, bool] | str:
    """What `recognise.read_criterion` gives, of `CrossEntropyLoss`."""
    if not is_torchs(criterion):
        return f"{type(criterion).__name__} has hooks or a forward of its own"
    found = options_of(criterion)
    return found if isinstance(found, str) else build(*found)
