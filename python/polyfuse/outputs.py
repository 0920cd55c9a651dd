"""What `fit` does with several outputs of one x: one design, a right-hand side for each."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import torch

from .backends.batched import Run
from .batch import FitStatus, epochs_backend, options_held, read_fits, ways_of
from .classes import fit_classes
from .criteria import CROSS_ENTROPY, Criterion, kind_of
from .engines import choose_engine, refuse_engine
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
    if tol >= 0:
        raise ValueError(f"tol: expected None for several outputs, got {tol!r}")
    read = read_criterion(criterion, y)
    if isinstance(read, str):
        raise ValueError(f"criterion: {read}")
    kind, mean = read
    fits = read_fits(model, x, y, nan_policy, weights)
    weight = None if fits.w is None else fits.w.expand_as(fits.y)
    if reason := kind.refuse_targets(fits.y, weight):
        raise ValueError(f"y: {reason}")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    p = model.coefficients
    options = options_held(p, optimizer)
    linear = isinstance(options, SgdOptions | None)
    runner = epochs_backend(backend, fits)
    engine = choose_engine(
        engine,
        lambda e: (
            refuse_engine(e, kind, tol, linear=linear, shared=fits.shared)
            or runner.refuse_engine(e)
        ),
    )
    kind = kind.over_rows_of(y)
    if mean:  # over the outputs too, where the kernels know each one alone
        counted = torch.ones_like(fits.y) if weight is None else weight
        if fits.omit:
            counted = torch.where(fits.x.isfinite() & fits.y.isfinite(), counted, 0.0)
        kind = Criterion(kind.kind, kind.options, kind.factor / float(counted.double().sum()))
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
    )
