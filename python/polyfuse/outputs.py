"""What `fit` does with several outputs of one x: one design, a right-hand side for each."""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch

from . import _check
from ._check import OR_ELSE
from .backends import REGISTRY
from .backends.batched import Fits, Run
from .backends.native import make_stacked
from .batch import epochs_backend, read_fits
from .batch_result import FitStatus, ways_of
from .classes import check_classes, fit_classes, has_outputs
from .criteria import CROSS_ENTROPY, Criterion, kind_of
from .engines import choose_engine, refuse_engine
from .evidence import EvidenceOfEach
from .problem import Wanted
from .recognise import read_objects
from .result import FitResult
from .rules import SgdOptions, options_held
from .runs import descend


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
    fits, kind, mean = _read(model, criterion, optimizer, x, y, weights, nan_policy)
    p = model.coefficients
    options = options_held(p, optimizer)
    linear = isinstance(options, SgdOptions | None)
    runner = epochs_backend(backend, fits)
    as_one = runner.name == "cpu"  # stream: all outputs under their one loss

    def refused(engine: str) -> str | None:
        reason = refuse_engine(engine, kind, tol, linear=linear, shared=fits.shared)
        reason = reason or runner.refuse_engine(engine)
        if reason is None and tol >= 0 and not (as_one and engine == "stream"):
            return "tol is of the loss of all outputs; use stream, on a CPU"
        return reason

    engine = choose_engine(engine, refused)
    kind = kind.over_rows_of(y)
    counted = None if fits.w is None else fits.w.expand_as(fits.y)
    if fits.omit:
        finite = fits.x.isfinite() & fits.y.isfinite()
        counted = torch.where(finite, 1.0 if counted is None else counted, 0.0).to(fits.y.dtype)
    if as_one and engine == "stream":
        if nan_policy == "raise":
            bad = ~(fits.x.isfinite() & fits.y.isfinite())
            _check.finite(int((bad if counted is None else bad & (counted != 0)).sum()), OR_ELSE)
        data = [None if t is None else t.contiguous() for t in (fits.x, fits.y, counted)]
        kernels = make_stacked(model.trace_stacked())
        kernels.read(*map(_series, data), 0, len(fits.y), kind, mean)
        return descend(
            partial(kernels.descend, 0, None), engine, p, options, optimizer, epochs,
            record_every, tol, start, REGISTRY["cpu"], partial(_evidence, model, fits, kind),
        )  # fmt: skip
    if mean:  # over the outputs too, where the kernels know each one alone
        total = fits.y.numel() if counted is None else float(counted.double().sum())
        kind = Criterion(kind.kind, kind.options, kind.factor / total)
    run = Run(fits, p, kind, False, options, optimizer, engine, epochs, record_every, tol)
    before = runner.launches()
    out = runner.descend(run)
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
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=np.append(at, epochs),
        history=np.append(out.recorded.sum(1).cpu().numpy(), loss),
        _evidence=EvidenceOfEach.of(model, fits, out.params, kind),
    )


def _evidence(model: Any, fits: Fits, kind: Criterion, params: np.ndarray) -> EvidenceOfEach:
    """params: [K * C]"""
    left = torch.from_numpy(params).view(fits.params.shape)
    return EvidenceOfEach.of(model, fits, left, kind)


def check_stacked(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any, weights: Any
) -> tuple[Criterion, bool]:
    """The criterion of a batch, or of outputs, under one loss, and whether its reduction is a mean;
    raises what `fuse` documents."""
    if has_outputs(model) and kind_of(type(criterion)) is CROSS_ENTROPY:
        return check_classes(model, criterion, optimizer, x, y, weights)
    return _read(model, criterion, optimizer, x, y, weights, "propagate")[1:]


def _read(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any, weights: Any, nan_policy: str
) -> tuple[Fits, Criterion, bool]:
    """The data, the criterion, and whether its reduction is a mean; checked."""
    fits = read_fits(model, x, y, nan_policy, weights)
    kind, mean = read_objects(criterion, optimizer, y)
    if reason := kind.refuse_targets(fits.y, None if fits.w is None else fits.w.expand_as(fits.y)):
        raise ValueError(f"y: {reason}")
    return fits, kind, mean


def _series(t: torch.Tensor | None) -> tuple[int, int, int, bool] | None:
    """[N, C], or [N, 1] of what all outputs share, as the kernels are told of it."""
    if t is None:
        return None
    return t.data_ptr(), t.stride(0), int(t.shape[1] > 1), t.dtype is torch.float64
