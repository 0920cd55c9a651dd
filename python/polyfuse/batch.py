"""Many small fits in one launch: what `fit` and `solve` do with a `Polynomial` of a batch."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch

from . import _check
from .backends import AUTO
from .backends.batched import DEGREE_BY, HOMES, Fits, Run, backend_called
from .backends.batched_reference import least_norm
from .batch_result import BatchResult, FitStatus, ways_of
from .bounds import read_bounds
from .criteria import SQUARED, Criterion
from .engines import choose_engine, refuse_engine
from .evidence import EvidenceOfEach
from .many import Many
from .nn.polynomial import Polynomial
from .problem import Wanted
from .recognise import read_objects, refuse_own
from .responses import Responses
from .rules import SgdOptions, options_held
from .schedulers import Schedulers
from .surface import is_surface
from .training import Between, Trained, train


def is_batch(model: Any) -> bool:
    return isinstance(model, Polynomial) and bool(model.batch_shape)


def fit_batch(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
    between: Between,
) -> BatchResult:
    """`fit` of a batch: each fit has a loss, that of its own samples, and stops on its own."""
    start = time.perf_counter()
    nan_policy = wanted.nan_policy
    fits = read_fits(model, x, y, nan_policy, wanted.weights)
    kind, mean = read_objects(criterion, optimizer, y)
    if kind.per_row:
        raise ValueError("criterion: expected reduction 'mean' or 'sum' for a batch of fits")
    if reason := kind.refuse_targets(fits.y, None if fits.w is None else fits.w.expand_as(fits.y)):
        raise ValueError(f"y: {reason}")
    runner = epochs_backend(wanted.backend, fits)
    engine = choose_engine(
        wanted.engine,
        lambda e: refuse_fits(e, kind, fits, runner, model, optimizer, wanted, between),
    )
    before = runner.launches()
    run, (reason, history_epochs, history) = train_fits(
        model, kind, mean, optimizer, fits, runner, engine, wanted, between
    )
    out = run.out
    assert out is not None
    ways = ways_of(out.status, nan_policy, fits)
    if lost := ways.get(FitStatus.DIVERGED):
        warnings.warn(
            f"{lost} of {out.status.numel()} fits diverged to inf or nan",
            RuntimeWarning,
            stacklevel=3,
        )
    shape = model.batch_shape
    settled = set(ways) == {FitStatus.CONVERGED}
    return BatchResult(
        loss=run.loss,
        epochs=run.done,
        converged=settled,
        stop_reason="converged" if settled and reason == "epochs" else reason,
        engine=engine,
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=history_epochs,
        history=torch.cat([out.recorded[:0].view(0, *shape), *history]).cpu().numpy(),
        status=out.status.view(shape),
        rank=out.rank.view(shape),
        fit_epochs=out.epochs.view(shape),
        _evidence=EvidenceOfEach.of(model, fits, out.params, kind),
    )


def refuse_fits(
    engine: str, kind: Criterion, fits: Fits, runner: Any, model: Any, optimizer: Any,
    wanted: Wanted, between: Between,
) -> str | None:  # fmt: skip
    """None, or why the engine cannot take the epochs of these fits exactly."""
    options = options_held(model.coefficients, optimizer)
    reason = refuse_engine(
        engine, kind, wanted.tol, linear=isinstance(options, SgdOptions | None),
        shared=fits.shared, scheduled=bool(between.scheduler),
        bounded=not (wanted.bounds is None or options is None),
    )  # fmt: skip
    return reason or runner.refuse_engine(engine)


def train_fits(
    model: Any, kind: Criterion, mean: bool, optimizer: Any, fits: Fits, runner: Any, engine: str,
    wanted: Wanted, between: Between, one_loss: bool = False,
) -> tuple[Many, Trained]:  # fmt: skip
    """All epochs of many fits; one_loss: of all of them, their sum."""
    p, bounds, every = model.coefficients, wanted.bounds, wanted.record_every
    options = options_held(p, optimizer)
    box = None if options is None else read_bounds(bounds, {"coefficients": p}).get("coefficients")
    if box is not None:
        low, high = (end.reshape(fits.params.shape).contiguous() for end in box)
        box = low, high
        fits = fits._replace(params=fits.params.clamp(low, high).to(p.dtype))
    schedulers = None
    if between.scheduler:
        schedulers = Schedulers(between.scheduler, optimizer, lambda: course.rule())
    run = Run(
        fits, p, kind, mean, options, optimizer, engine, wanted.epochs, every, wanted.tol, box,
        watched=schedulers is not None and schedulers.needs_loss,
    )  # fmt: skip
    course = Many(model, run, runner, wanted.nan_policy, one_loss)
    trained = train(course, wanted.epochs, every, schedulers, between)
    if course.out is None:
        raise KeyboardInterrupt  # in the first launch: nothing has changed
    return course, trained


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
    fits = read_fits(model, x, y, nan_policy, weights, "weight")
    if not model.coefficients.requires_grad:
        raise ValueError("model: expected a trainable parameter, got none")
    if is_surface(model):
        runner: Any = Responses(model, x, fits, backend)
    else:
        runner = _backend(backend, fits, last=("reference",))
    before = runner.launches()
    _check.one_of("deficient", deficient, ("minimum_norm", "nan"))
    if degree_by not in DEGREE_BY:
        raise ValueError(f"degree_by: expected None, 'aicc' or 'bic', got {degree_by!r}")
    out = runner.solve(fits, covariance, degree_by)
    columns = isinstance(runner, Responses)
    ways = ways_of(out.status, nan_policy, None if columns else fits)
    p, shape = model.coefficients, model.coefficients.shape[1:]
    if ways.get(FitStatus.RANK_DEFICIENT):
        lost = torch.nonzero((out.status == FitStatus.RANK_DEFICIENT) & (out.rank > 0))[:, 0]
        if deficient == "nan":
            out.params[:, lost] = torch.nan
        elif len(lost) and not columns:
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
        _evidence=runner.evidence
        if columns
        else EvidenceOfEach.of(model, fits, out.params, SQUARED, out.status, out.degree),
    )


def read_fits(
    model: Polynomial, x: Any, y: Any, nan_policy: str, weights: Any, name: str = "sample_weight"
) -> Fits:
    """The data of the fits, checked; of several variables x is [N, variables]."""
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
    several = model.variables > 1
    of_columns = several or model.functions
    if not of_columns:
        _check.n_terms("model", p.shape[0])
    if y.shape[1:] != batch or y.ndim == 0:
        hint = ""
        if batch and y.shape[:-1] == batch:
            hint = "; samples come first: y.movedim(-1, 0), a view"
        wanted = f"(n, {', '.join(map(str, batch))})" if batch else "(n,)"
        raise ValueError(f"y: expected shape {wanted}, got {tuple(y.shape)}{hint}")
    n = y.shape[0]
    if n == 0:
        raise ValueError(f"y: expected at least one sample, got shape {tuple(y.shape)}")
    of_x = (n, model.variables) if several else (n,)
    if model.outputs is not None and x.shape != of_x:
        raise ValueError(f"x: expected shape {of_x} for several outputs, got {tuple(x.shape)}")
    if not several and x.shape not in ((n,), y.shape):
        raise ValueError(
            f"x: expected shape ({n},), shared by all fits, or that of y, {tuple(y.shape)}, "
            f"got {tuple(x.shape)}"
        )
    given = [w for w in weights if isinstance(w, torch.Tensor)]
    shared = x if x.ndim == 1 else x[:, 0]
    if given and shared.ndim == 1 and all(w.shape == (n,) for w in given):
        weight = _check.weight(shared, weights[0], weights[1], weights[2], name=name)
    else:
        weight = _check.weight(y, *spread(weights, y), name=name)
    x, y, w = (None if t is None else _columns(t, n) for t in (x, y, weight))
    x, w = (t if t is None or t.stride(1) else t[:, :1] for t in (x, w))  # expanded: shared
    omit = nan_policy == "omit"
    if omit and not of_columns and x.shape[1] == 1 and not x.isfinite().all():
        keep = x[:, 0].isfinite()
        if not keep.any():
            raise ValueError("x, y: no sample is left after nan_policy='omit'")
        x, y, w = x[keep], y[keep], None if w is None else w[keep]
    shift, scale = model.variable[0]
    return Fits(p.detach().reshape(p.shape[0], -1), x, y, w, omit, shift, scale, model.basis)


def spread(weights: Any, y: torch.Tensor) -> tuple[Any, Any, Any]:
    """Weights, masks and sigmas [N] as those of all fits, in the shape of y."""
    sample_weight, mask, sigma = (
        w.reshape(-1, *(1 for _ in y.shape[1:])).expand_as(y)
        if isinstance(w, torch.Tensor) and w.shape == y.shape[:1]
        else w
        for w in weights
    )
    return sample_weight, mask, sigma


def _columns(t: torch.Tensor, n: int) -> torch.Tensor:
    """[N, B], or [N, 1] of what all fits share."""
    return t.detach().resolve_neg().reshape(n, -1)


def _backend(name: str, fits: Fits, last: tuple[str, ...] = ()) -> Any:
    """last: what `auto` takes where no kernels serve."""
    if name != "auto" and name not in HOMES:
        known = ", ".join(("auto", *HOMES))
        raise ValueError(f"backend: expected one of {known} for a batch of fits, got {name!r}")
    reasons = []
    compiled = AUTO.get(fits.x.device.type, ())
    for candidate in (*compiled, *(last if compiled else ())) if name == "auto" else (name,):
        runner = backend_called(candidate)
        reason = runner.refuse(fits.x.device, len(fits.params))
        if reason is None:
            return runner
        reasons.append(f"{candidate} cannot serve this batch: {reason}")
    raise ValueError(f"backend: {'; '.join(reasons) or f'none serves {fits.x.device}'}")


def epochs_backend(name: str, fits: Fits) -> Any:
    """The same for epochs: on a GPU few long fits are no batch."""
    if name == "triton" or (name == "auto" and fits.x.device.type == "cuda"):
        from .backends.long_triton import LongTriton

        long = LongTriton()
        if not long.refuse(fits):
            return long
    return _backend(name, fits)
