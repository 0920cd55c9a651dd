"""Many small fits in one launch: what `fit` and `solve` do with a `Polynomial` of a batch."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from . import _check
from .backends.batched import DEGREE_BY, HOMES, Fits, Run, backend_called, least_norm
from .backends.long_triton import LongTriton
from .bounds import read_bounds
from .engines import choose_engine, refuse_engine
from .nn.polynomial import Polynomial
from .problem import Wanted
from .recognise import read_criterion, refuse_optimizer, refuse_own
from .rules import Options, SgdOptions, options_of


class FitStatus(IntEnum):
    """How one fit of a batch ended."""

    CONVERGED = 0  # solved, or the loss settled within tol
    STEP_LIMIT = 1  # all epochs done
    RANK_DEFICIENT = 2  # fewer distinct points than coefficients
    NON_FINITE = 3  # nan or inf among its data
    DIVERGED = 4


@dataclass
class BatchResult:
    """The outcome of many fits in one launch; numbers of each fit are tensors ``[*batch_shape]``.

    Attributes:
        loss: the criterion of every fit at its parameters, float64; of a solution, the mean squared
            error.
        status: `FitStatus` of every fit, int32.
        rank: how many coefficients the data of every fit determines, int32.
        fit_epochs: epochs done by every fit; None for a solution.
        epochs: those of the fit that took most.
        converged: whether every fit has converged.
        history: the losses ``[M, *batch_shape]`` after history_epochs [M] steps.
        r_squared: of every fit of a solution, otherwise None.
        covariance: of the coefficients of every fit, ``[K, K, *batch_shape]``, where it was asked
            for.
        degree: of every fit, int32, where it was to be chosen; terms above it are 0.
        stop_reason, engine, backend, launches, seconds: as in `FitResult`.
    """

    loss: torch.Tensor
    status: torch.Tensor = field(repr=False)
    rank: torch.Tensor = field(repr=False)
    epochs: int
    converged: bool
    stop_reason: str
    engine: str
    backend: str
    launches: int
    seconds: float
    history_epochs: np.ndarray = field(repr=False)
    history: np.ndarray = field(repr=False)
    fit_epochs: torch.Tensor | None = field(default=None, repr=False)
    r_squared: torch.Tensor | None = field(default=None, repr=False)
    covariance: torch.Tensor | None = field(default=None, repr=False)
    degree: torch.Tensor | None = field(default=None, repr=False)

    def counts(self) -> dict[str, int]:
        """How many fits ended in which way."""
        return {s.name.lower(): n for s, n in ways_of(self.status, "propagate").items()}

    def __str__(self) -> str:
        ways = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in self.counts().items())
        return (
            f"{self.status.numel():,} fits: {ways}; engine {self.engine} on {self.backend}, "
            f"{self.launches} launch{'' if self.launches == 1 else 'es'}, "
            f"{self.seconds * 1e3:.3g} ms"
        )


def is_batch(model: Any) -> bool:
    """Whether a model is fitted as a batch: also one series that is not expanded in powers."""
    return (
        isinstance(model, Polynomial)
        and model.outputs is None
        and bool(model.batch_shape or model.refuse_powers())
    )


def fit_batch(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
) -> BatchResult:
    """`fit` of a batch: each fit has a loss, that of its own samples, and stops on its own."""
    start = time.perf_counter()
    epochs, engine, backend, record_every, tol, nan_policy, weights, bounds = wanted
    x, y, weights = _tensors(x, y, weights)
    fits = read_fits(model, x, y, nan_policy, weights)
    read = read_criterion(criterion, y)
    if isinstance(read, str):
        raise ValueError(f"criterion: {read}")
    kind, mean = read
    if kind.per_row:
        raise ValueError("criterion: expected reduction 'mean' or 'sum' for a batch of fits")
    if reason := kind.refuse_targets(fits.y, None if fits.w is None else fits.w.expand_as(fits.y)):
        raise ValueError(f"y: {reason}")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    p = model.coefficients
    options = options_held(p, optimizer)
    box = None if options is None else read_bounds(bounds, {"coefficients": p}).get("coefficients")
    linear = isinstance(options, SgdOptions | None)
    runner = epochs_backend(backend, fits, box is not None)
    engine = choose_engine(
        engine,
        lambda e: (
            refuse_engine(e, kind, tol, linear=linear, shared=fits.shared, bounded=box is not None)
            or runner.refuse_engine(e)
        ),
    )
    if box is not None:
        low, high = (end.reshape(fits.params.shape).contiguous() for end in box)
        box = low, high
        fits = fits._replace(params=fits.params.clamp(low, high).to(p.dtype))
    run = Run(fits, p, kind, mean, options, optimizer, engine, epochs, record_every, tol, box)
    before = runner.launches()
    out = runner.descend(run)
    ways = ways_of(out.status, nan_policy, fits)
    run.leave(out)
    shape = model.batch_shape
    done = int(out.epochs.max()) if tol >= 0 else epochs
    at = np.arange(0, epochs, record_every) if record_every else np.zeros(0, dtype=np.int64)
    history = out.loss[None]
    if record_every:
        history = torch.cat([out.recorded, history])
    if lost := ways.get(FitStatus.DIVERGED):
        warnings.warn(f"{lost} fits diverged to inf or nan", RuntimeWarning, stacklevel=3)
    settled = set(ways) == {FitStatus.CONVERGED}
    return BatchResult(
        loss=out.loss.view(shape),
        epochs=done,
        converged=settled,
        stop_reason="converged" if settled else "epochs",
        engine=engine,
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=np.append(at, epochs),
        history=history.view(-1, *shape).cpu().numpy(),
        status=out.status.view(shape),
        rank=out.rank.view(shape),
        fit_epochs=out.epochs.view(shape),
    )


def solve_batch(
    model: Any,
    x: Any,
    y: Any,
    *,
    weights: tuple[Any, Any, Any] = (None, None, None),
    nan_policy: str = "raise",
    covariance: bool = False,
    degree_by: str | None = None,
    deficient: str = "minimum_norm",
    backend: str = "auto",
) -> BatchResult:
    """The least-squares optimum of every fit of a batch, in one read of the data."""
    start = time.perf_counter()
    x, y, weights = _tensors(x, y, weights)
    fits = read_fits(model, x, y, nan_policy, weights, "weight")
    if not model.coefficients.requires_grad:
        raise ValueError("model: expected a trainable parameter, got none")
    runner = _backend(backend, fits)
    before = runner.launches()
    _check.one_of("deficient", deficient, ("minimum_norm", "nan"))
    if degree_by not in DEGREE_BY:
        raise ValueError(f"degree_by: expected None, 'aicc' or 'bic', got {degree_by!r}")
    out = runner.solve(fits, covariance, degree_by)
    ways = ways_of(out.status, nan_policy, fits)
    p, shape = model.coefficients, model.coefficients.shape[1:]
    if ways.get(FitStatus.RANK_DEFICIENT):
        lost = torch.nonzero((out.status == FitStatus.RANK_DEFICIENT) & (out.rank > 0))[:, 0]
        if deficient == "nan":
            out.params[:, lost] = torch.nan
        elif len(lost):
            out.params[:, lost] = least_norm(fits, lost)
    with torch.no_grad():
        p.copy_(out.params.view(p.shape))
    spread = None
    if out.covariance is not None:
        terms = p.shape[0] if out.degree is None else out.degree + 1
        freedom = (out.counted - terms).clamp(min=0)
        variance = out.loss * out.weight_sum / freedom  # nan or inf without degrees of freedom
        absolute = weights[2] is not None and weights[0] is None
        spread = out.covariance if absolute else out.covariance * variance
        spread = spread.view(p.shape[0], p.shape[0], *shape)
    solved = set(ways) == {FitStatus.CONVERGED}
    return BatchResult(
        loss=out.loss.view(shape),
        epochs=0,
        converged=solved,
        stop_reason="converged" if solved else "rank",
        engine="solve",
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=np.zeros(0, dtype=np.int64),
        history=np.zeros((0, *shape)),
        status=out.status.view(shape),
        rank=out.rank.view(shape),
        r_squared=out.r_squared.view(shape),
        covariance=spread,
        degree=None if out.degree is None else out.degree.view(shape),
    )


def _tensors(x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
    x, y, *weights = (_check.as_tensor(t) for t in (x, y, *weights))
    return x, y, weights


def read_fits(
    model: Polynomial, x: Any, y: Any, nan_policy: str, weights: Any, name: str = "sample_weight"
) -> Fits:
    """The data of the fits, checked."""
    _check.one_of("nan_policy", nan_policy, _check.NAN_POLICIES)
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    _check.alike(x, y=y)
    _check.memory(x=x, y=y)
    p, batch = model.coefficients, tuple(model.coefficients.shape[1:])
    if p.dtype is not x.dtype or p.device != x.device:
        raise TypeError(
            f"x: expected {p.dtype} on {p.device}, as the model's coefficients, "
            f"got {x.dtype} on {x.device}"
        )
    _check.n_terms("model", p.shape[0])
    if y.shape[1:] != batch or y.ndim == 0:
        hint = ""
        if y.shape[:-1] == batch:
            hint = "; samples come first: y.movedim(-1, 0), a view"
        raise ValueError(
            f"y: expected shape (n, {', '.join(map(str, batch))}), got {tuple(y.shape)}{hint}"
        )
    n = y.shape[0]
    if n == 0:
        raise ValueError(f"y: expected at least one sample, got shape {tuple(y.shape)}")
    if model.outputs is not None and x.ndim != 1:
        raise ValueError(f"x: expected shape ({n},) for several outputs, got {tuple(x.shape)}")
    if x.shape not in ((n,), y.shape):
        raise ValueError(
            f"x: expected shape ({n},), shared by all fits, or that of y, {tuple(y.shape)}, "
            f"got {tuple(x.shape)}"
        )
    given = [w for w in weights if isinstance(w, torch.Tensor)]
    if given and x.ndim == 1 and all(w.shape == x.shape for w in given):
        weight = _check.weight(x, weights[0], weights[1], weights[2], name=name)
    else:
        spread = [
            w.reshape(-1, *(1 for _ in batch)).expand_as(y)
            if isinstance(w, torch.Tensor) and w.shape == (n,)
            else w
            for w in weights
        ]
        weight = _check.weight(y, spread[0], spread[1], spread[2], name=name)
    x, y, w = (None if t is None else _columns(t, n) for t in (x, y, weight))
    x, w = (t if t is None or t.stride(1) else t[:, :1] for t in (x, w))  # expanded: shared
    omit = nan_policy == "omit"
    if omit and x.shape[1] == 1 and not x.isfinite().all():
        keep = x[:, 0].isfinite()
        if not keep.any():
            raise ValueError("x, y: no sample is left after nan_policy='omit'")
        x, y, w = x[keep], y[keep], None if w is None else w[keep]
    ((shift, scale),) = model.variable
    return Fits(p.detach().reshape(p.shape[0], -1), x, y, w, omit, shift, scale, model.basis)


def _columns(t: torch.Tensor, n: int) -> torch.Tensor:
    """[N, B], or [N, 1] of what all fits share."""
    return t.detach().resolve_neg().reshape(n, -1)


def options_held(p: torch.Tensor, optimizer: torch.optim.Optimizer) -> Options | None:
    """The options that an optimizer updates p with; None where it does not."""
    for group in optimizer.param_groups:
        if any(q is p for q in group["params"]):
            return options_of(optimizer, group, p) if p.requires_grad else None
    return None


def _backend(name: str, fits: Fits) -> Any:
    if name != "auto" and name not in HOMES:
        known = ", ".join(("auto", *HOMES))
        raise ValueError(f"backend: expected one of {known} for a batch of fits, got {name!r}")
    on_gpu = fits.x.device.type == "cuda"
    runner = backend_called(("triton" if on_gpu else "cpu") if name == "auto" else name)
    if reason := runner.refuse(fits):
        raise ValueError(f"backend: {runner.name} cannot serve this batch: {reason}")
    return runner


def epochs_backend(name: str, fits: Fits, bounded: bool = False) -> Any:
    """The same for epochs: on a GPU few long fits are no batch."""
    if name == "triton" or (name == "auto" and fits.x.device.type == "cuda"):
        long = LongTriton()
        if not (bounded or long.refuse(fits)):
            return long
    return _backend(name, fits)


def ways_of(
    status: torch.Tensor, nan_policy: str, fits: Fits | None = None
) -> dict[FitStatus, int]:
    """How many fits ended in which way; raises where nan_policy says so. With fits: of those
    that ended in nan, the ones whose data is finite have diverged, and the others have not."""
    if fits is not None and int(status.max()) >= FitStatus.NON_FINITE:
        called = torch.nonzero(status >= FitStatus.NON_FINITE)[:, 0]
        finite = fits.finite(called)
        status[called[finite]] = FitStatus.DIVERGED
        status[called[~finite]] = FitStatus.NON_FINITE
    low, high = (int(end) for end in status.aminmax())
    if low == high:
        counts = {FitStatus(low): status.numel()}
    else:
        numbers = torch.bincount(status.reshape(-1), minlength=len(FitStatus)).tolist()
        counts = {s: n for s, n in zip(FitStatus, numbers, strict=True) if n}
    if nan_policy == "raise" and (bad := counts.get(FitStatus.NON_FINITE)):
        raise ValueError(
            f"x, y: the data of {bad} fits holds nan or inf; expected finite data, or "
            "nan_policy='omit' (leave out such samples) or 'propagate' (that fit is nan)"
        )
    return counts
