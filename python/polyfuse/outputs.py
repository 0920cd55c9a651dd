"""What `fit` does with several outputs of one x: one design, a right-hand side for each."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _check
from .backends.batched import Fits
from .backends.reference import design
from .batch import epochs_backend, read_fits, refuse_fits, train_fits
from .batch_result import FitStatus
from .classes import check_classes, has_outputs
from .criteria import BCE, CROSS_ENTROPY, Criterion, kind_of
from .engines import choose_engine
from .evidence import EvidenceOfEach
from .fused import Fused, fused
from .nn.criterion import is_torchs
from .optim.owners import Holding, holding
from .problem import Problem, Wanted
from .recognise import read_objects
from .responses import EvidenceOfOutputs
from .result import FitResult
from .surface import is_surface, read_rows, source_of
from .training import Between

if TYPE_CHECKING:
    from .class_statistics import EvidenceOfClasses


def fit_apart(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
    between: Between,
) -> FitResult | None:
    """`fit` of x [N] and y [N, C] as that of C fits, whose losses add up; None where the kernels
    take all outputs together: those of cross entropy or of several variables, and `stream` on a
    CPU."""
    if kind_of(type(criterion)) is CROSS_ENTROPY or is_surface(model):
        return None
    start = time.perf_counter()
    fits, kind, mean = _read(model, criterion, optimizer, x, y, wanted.weights, wanted.nan_policy)
    runner = epochs_backend(wanted.backend, fits)
    together = runner.name == "cpu"

    def refused(engine: str) -> str | None:
        reason = refuse_fits(engine, kind, fits, runner, model, optimizer, wanted, between)
        if reason is None and wanted.tol >= 0 and not (together and engine == "stream"):
            return "tol is of the loss of all outputs; use stream, on a CPU"
        return reason

    engine = choose_engine(wanted.engine, refused)
    if together and engine == "stream":
        return None
    kind = of_each = kind.over_rows_of(y)
    if mean:  # over the outputs too, where the kernels know each one alone
        kind = _as_sum(kind, fits.y, _counted(fits))
    if (positive := _pos_weight(criterion, model, y)) is not None:
        fits = _weighed(fits, positive)
    before = runner.launches()
    run, (reason, history_epochs, history) = train_fits(
        model, kind, False, optimizer, fits, runner, engine, wanted, between, one_loss=True
    )
    out = run.out
    assert out is not None
    if FitStatus.DIVERGED in out.status or not math.isfinite(run.loss):
        reason = "diverged" if reason == "epochs" else reason
        warnings.warn("the fit diverged to inf or nan", RuntimeWarning, stacklevel=3)
    return FitResult(
        loss=run.loss,
        epochs=run.done,
        converged=False,
        stop_reason=reason,
        engine=engine,
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=history_epochs,
        history=np.concatenate([np.zeros(0), *history]),
        _evidence=EvidenceOfEach.of(model, fits, out.params, of_each),
    )


def evidence_of_outputs(
    model: Any, x: torch.Tensor, problem: Problem, params: np.ndarray
) -> EvidenceOfEach | EvidenceOfOutputs | EvidenceOfClasses | str:
    """What the statistics of a fit under one loss are computed from; params: [K * C]."""
    if problem.criterion.kind is CROSS_ENTROPY:
        from .class_statistics import EvidenceOfClasses

        y, w = problem.y, problem.weight
        source = source_of(model, x)
        if w is not None:
            if ((w != 0) & (w != 1)).any():
                return "statistics: not of CrossEntropyLoss with weights other than 0 and 1"
            y, source = y[w != 0], source._replace(x=source.x[w != 0])
        if source.columns is None:  # of several variables
            source = source._replace(columns=partial(design, replace(problem.model, tensors=())))
        left = params.reshape(len(model.coefficients), -1).copy()
        return EvidenceOfClasses.of(source, y, problem.criterion, left)
    traced, left = problem.model, torch.from_numpy(params).view(len(model.coefficients), -1)
    if is_surface(model):
        return EvidenceOfOutputs.of(model, problem._replace(reduction="sum"), x, left.numpy())
    fits = Fits(
        left, problem.x[:, None], problem.y, problem.weight, False, traced.shift, traced.scale,
        model.basis,
    )  # fmt: skip
    return EvidenceOfEach.of(model, fits, left, problem.criterion)


def prepare_outputs(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any, nan_policy: str, weights: Any
) -> tuple[Fused, Holding, Problem]:
    """`prepare` of several outputs under one loss: y [N, C], or classes."""
    if kind_of(type(criterion)) is CROSS_ENTROPY:
        kind, mean = check_classes(model, criterion, optimizer, x, y)
        xs, ys = (t.detach().resolve_neg() for t in (x, y))
        weight = _check.weight(xs if xs.ndim == 1 else xs[:, 0], *weights)
        if nan_policy == "omit":
            keep = torch.cat([t.isfinite().view(len(xs), -1) for t in (xs, ys)], 1).all(1)
            weight = torch.where(keep, 1.0 if weight is None else weight, 0.0)
        weight = None if weight is None else weight.to(xs.dtype).contiguous()
    else:
        fits, kind, mean = _read(model, criterion, optimizer, x, y, weights, nan_policy)
        kind, counted = kind.over_rows_of(y), _counted(fits)
        if (positive := _pos_weight(criterion, model, y)) is not None:
            if mean:
                kind, mean = _as_sum(kind, fits.y, counted), False
            fits = _weighed(fits._replace(w=counted), positive)
            counted = fits.w
        xs, ys, weight = fits.x, fits.y, counted
        if model.variables == 1:
            xs = xs[:, 0]
    if is_surface(model):
        known, xs = read_rows(model, x, xs)
    else:  # whose kernels read neighbours
        known, ys = fused(model, xs.dtype, xs.device), ys.contiguous()
        weight = None if weight is None else weight.contiguous()
    if known.traced is None:
        raise ValueError(f"model: Polynomial is not fused: {known.reason}")
    held = holding(known, optimizer)
    reduction = "mean" if mean else "sum"
    problem = Problem(known.traced, reduction, held.rule, xs, ys, criterion=kind, weight=weight)
    return known, held, problem


def check_stacked(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any, weights: Any
) -> tuple[Criterion, bool]:
    """The criterion of a batch, or of outputs, under one loss, and whether its reduction is a mean;
    raises what `fuse` documents."""
    if has_outputs(model) and kind_of(type(criterion)) is CROSS_ENTROPY:
        return check_classes(model, criterion, optimizer, x, y)
    if _pos_weight(criterion, model, y) is not None:
        raise ValueError("criterion: pos_weight: expected one element; fit takes one an output")
    return _read(model, criterion, optimizer, x, y, weights, "propagate")[1:]


def _read(
    model: Any, criterion: Any, optimizer: Any, x: Any, y: Any, weights: Any, nan_policy: str
) -> tuple[Fits, Criterion, bool]:
    """The data, the criterion but for a pos_weight of each output, and whether its reduction is a
    mean; checked."""
    if _pos_weight(criterion, model, y) is not None:
        criterion = torch.nn.BCEWithLogitsLoss(criterion.weight, reduction=criterion.reduction)
    fits = read_fits(model, x, y, nan_policy, weights)
    kind, mean = read_objects(criterion, optimizer, y)
    if reason := kind.refuse_targets(fits.y, None if fits.w is None else fits.w.expand_as(fits.y)):
        raise ValueError(f"y: {reason}")
    return fits, kind, mean


def _counted(fits: Fits) -> torch.Tensor | None:
    """The weight of every sample of every output [N, C], 0 where it is left out; None: all 1."""
    counted = None if fits.w is None else fits.w.expand_as(fits.y)
    if not fits.omit:
        return counted
    finite = fits.x.isfinite().all(1, keepdim=True) & fits.y.isfinite()
    if finite.all():
        return counted
    return torch.where(finite, 1.0 if counted is None else counted, 0.0).to(fits.y.dtype)


def _as_sum(kind: Criterion, y: torch.Tensor, counted: torch.Tensor | None) -> Criterion:
    """The mean over all outputs of the samples that count, as a sum."""
    total = y.numel() if counted is None else float(counted.double().sum())
    return Criterion(kind.kind, kind.options, kind.factor / total)


def _pos_weight(criterion: Any, model: Any, y: Any) -> torch.Tensor | None:
    """That of BCEWithLogitsLoss, [C], where it has several elements."""
    weight = getattr(criterion, "pos_weight", None)
    if kind_of(type(criterion)) is not BCE or not isinstance(weight, torch.Tensor):
        return None
    if weight.numel() == 1 or not isinstance(y, torch.Tensor) or not is_torchs(criterion):
        return None
    if not has_outputs(model):
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


def _weighed(fits: Fits, positive: torch.Tensor) -> Fits:
    """A target t whose positive part counts p times is one of p t / w, w = 1 - t + p t, that counts
    w times."""
    share = positive * fits.y
    w = 1 - fits.y + share
    y = share / w
    w = torch.where(w.isfinite(), w, 1.0)
    return fits._replace(y=y, w=w if fits.w is None else w * fits.w)
