"""What `fit` does with several outputs of one x: one design, a right-hand side for each."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import torch

from . import _C, _check
from .backends.batched import Cpu, Fits, Run
from .batch import FitStatus, options_held, read_fits, ways_of
from .classes import fit_classes
from .criteria import BCE, CROSS_ENTROPY, Criterion, kind_of
from .engines import choose_engine, refuse_engine
from .nn.criterion import is_torchs
from .problem import Wanted
from .recognise import read_criterion, refuse_optimizer
from .result import FitResult
from .rules import SgdOptions


def fit_outputs(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
) -> FitResult:
    """`fit` of x [N] and y [N, C], or of classes; one loss of all outputs."""
    if kind_of(type(criterion)) is CROSS_ENTROPY:
        return fit_classes(model, criterion, optimizer, x, y, wanted)
    start = time.perf_counter()
    epochs, engine, backend, record_every, tol, nan_policy, weights, _ = wanted
    _check.one_of("backend", backend, ("auto", "cpu"))
    if tol >= 0:
        raise ValueError(f"tol: expected None for several outputs, got {tol!r}")
    positive = _pos_weight(criterion, model, y)
    read = read_criterion(criterion if positive is None else _without_pos_weight(criterion), y)
    if isinstance(read, str):
        raise ValueError(f"criterion: {read}")
    kind, mean = read
    fits = read_fits(model, x, y, nan_policy, weights)
    if fits.x.device.type != "cpu":
        raise ValueError(f"x: expected data on a CPU for several outputs, got {fits.x.device}")
    weight = None if fits.w is None else fits.w.expand_as(fits.y)
    if reason := kind.refuse_targets(fits.y, weight):
        raise ValueError(f"y: {reason}")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    p = model.coefficients
    options = options_held(p, optimizer)
    linear = isinstance(options, SgdOptions | None)
    engine = choose_engine(
        engine, lambda e: refuse_engine(e, kind, tol, linear=linear, shared=fits.shared)
    )
    kind = kind.over_rows_of(y)
    if mean:  # over the outputs too, where the kernels know each one alone
        counted = torch.ones_like(fits.y) if weight is None else weight
        if fits.omit:
            counted = torch.where(fits.x.isfinite() & fits.y.isfinite(), counted, 0.0)
        kind = Criterion(kind.kind, kind.options, kind.factor / float(counted.double().sum()))
    if positive is not None:
        fits = _weighed(fits, positive, weight)
    run = Run(fits, p, kind, False, options, optimizer, engine, epochs, record_every, tol)
    before = _C.launches()
    out = Cpu().descend(run)
    ways = ways_of(out.status, nan_policy, fits)
    run.leave(out)
    loss = float(out.loss.sum())
    diverged = FitStatus.DIVERGED in ways or not math.isfinite(loss)
    if diverged:
        warnings.warn("the fit diverged to inf or nan", RuntimeWarning, stacklevel=3)
    at = np.arange(0, epochs, record_every) if record_every else np.zeros(0, dtype=np.int64)
    return FitResult(
        loss=loss,
        epochs=epochs,
        converged=False,
        stop_reason="diverged" if diverged else "epochs",
        engine=engine,
        backend=Cpu.name,
        launches=_C.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=np.append(at, epochs),
        history=np.append(out.recorded.sum(1).numpy(), loss),
    )


def _pos_weight(criterion: Any, model: Any, y: Any) -> torch.Tensor | None:
    """That of BCEWithLogitsLoss, [C], where it has several elements."""
    weight = getattr(criterion, "pos_weight", None)
    if kind_of(type(criterion)) is not BCE or not isinstance(weight, torch.Tensor):
        return None
    if weight.numel() == 1 or not isinstance(y, torch.Tensor) or not is_torchs(criterion):
        return None
    reason = None
    if weight.shape not in ((model.outputs,), (1, model.outputs)):
        reason = f"expected one or {model.outputs} elements, got shape {tuple(weight.shape)}"
    elif (weight.dtype, weight.device) != (y.dtype, y.device) or weight.requires_grad:
        reason = f"expected {y.dtype} on {y.device} that needs no gradient, got {weight.dtype}"
    elif not ((weight > 0) & weight.isfinite()).all():
        reason = "expected finite numbers > 0"
    if reason:
        raise ValueError(f"criterion: pos_weight: {reason}")
    return weight.detach().reshape(-1)


def _without_pos_weight(criterion: Any) -> torch.nn.Module:
    return torch.nn.BCEWithLogitsLoss(criterion.weight, reduction=criterion.reduction)


def _weighed(fits: Fits, positive: torch.Tensor, weight: torch.Tensor | None) -> Fits:
    """A target t whose positive part counts p times is one of p t / w, w = 1 - t + p t, that counts
    w times."""
    share = positive * fits.y
    w = 1 - fits.y + share
    y = share / w
    w = torch.where(w.isfinite(), w, 1.0)
    return fits._replace(y=y, w=w if weight is None else w * weight)
