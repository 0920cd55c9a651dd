"""Polynomials of several variables: what `fit` does with a `Polynomial` of more than one."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _check
from .backends import choose
from .backends.reference import design
from .batch import options_held
from .engines import choose_engine, leap_pays, refuse_engine
from .exponents import MAX_TERMS, MAX_VARIABLES, name_of
from .fused import Fused
from .linear import linear, names_of
from .nn.polynomial import Polynomial, name_of_function
from .problem import Problem, Schedule, State, Wanted
from .recognise import read_criterion, refuse_optimizer, refuse_own
from .result import FitResult
from .rules import SgdOptions
from .runs import descend
from .symbolic import Traced

if TYPE_CHECKING:
    from .regression import Regression


def is_surface(model: Any) -> bool:
    """Whether a model is a sum of columns: of several variables, or of functions."""
    return (
        isinstance(model, Polynomial)
        and model.outputs is None
        and (model.variables > 1 or bool(model.functions))
    )


def _data(model: Polynomial, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """x [N, variables], or [N] of functions, and y [N]."""
    return _check.data(x, y) if model.functions else _check.columns(x, y, model.variables)


def _traced(model: Polynomial) -> Traced:
    """The model, as kernels know it: of columns [N, V] of variables, or of values of functions."""
    terms = range(len(model.exponents))
    return Traced(
        tensors=(model.coefficients,),
        slots=tuple((0, k) for k in terms),
        terms=tuple((1.0, k, (k,)) for k in terms),
        degree=model.degree,
        shift=0.0,
        scale=1.0,
        ndim=0,
        buffers=(),
        of_x=(len(model.variable),),
        exponents=model.exponents,
        variables=model.variable,
    )


def fit_surface(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
) -> FitResult:
    """`fit` of a polynomial of several variables, or in functions."""
    start = time.perf_counter()
    epochs, engine, backend, record_every, tol, nan_policy, weights, _ = wanted
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    xs, ys = _data(model, x, y)
    p = model.coefficients
    if p.dtype is not xs.dtype or p.device != xs.device:
        raise TypeError(
            f"x: expected {p.dtype} on {p.device}, as the model's coefficients, "
            f"got {xs.dtype} on {xs.device}"
        )
    n_columns = len(model.variable)
    if p.numel() > MAX_TERMS or n_columns > MAX_VARIABLES:
        raise ValueError(
            f"model: expected at most {MAX_TERMS} terms and {MAX_VARIABLES} variables or "
            f"functions, got {p.numel()} and {n_columns}"
        )
    if model.functions:
        with torch.no_grad():
            xs = model.columns(xs)
    read = read_criterion(criterion, y)
    if isinstance(read, str):
        raise ValueError(f"criterion: {read}")
    kind, mean = read
    weight = _check.weight(y, *weights)
    if reason := kind.refuse_targets(ys, weight):
        raise ValueError(f"y: {reason}")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    options = options_held(p, optimizer)
    linear = isinstance(options, SgdOptions | None)
    if engine == "auto" and epochs == 1:
        engine = "stream"
    leap = leap_pays(p.numel(), epochs, 2 * p.numel() ** 2)
    engine = choose_engine(engine, lambda e: refuse_engine(e, kind, tol, linear=linear), leap)
    if nan_policy == "raise":
        _refuse_nonfinite(xs, ys, weight)
    elif nan_policy == "omit" and not _kept(xs, ys, weight).any():
        raise ValueError("x, y: no sample is left after nan_policy='omit'")
    problem = Problem(
        _traced(model), "mean" if mean else "sum", (options,) * p.numel(), xs, ys,
        nan_policy == "omit", criterion=kind.over_rows_of(y), weight=weight,
    )  # fmt: skip
    runner = choose(backend, problem)
    moments: Any = None

    def run(_: Any, *rest: Any) -> tuple[Any, ...]:
        nonlocal moments
        *schedule, _, params, kept, grad = rest
        report = runner.descend(
            problem, engine, moments, Schedule(*schedule), State(params, kept, grad)
        )
        moments = report.moments
        return report.epochs, report.converged, report.loss, report.recorded, report.previous

    return descend(
        run, engine, p, options, optimizer, epochs, record_every, tol, start, runner
    )  # fmt: skip


def solve_surface(
    model: Any, x: Any, y: Any, weight: Any, sigma: Any, ridge: float, omit: bool
) -> Regression:
    """`solve` of a polynomial of several variables, or in functions."""
    from .regression import regress

    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    xs, ys = _data(model, x, y)
    p = model.coefficients
    if not p.requires_grad:
        raise ValueError("model: expected a trainable parameter, got none")
    if p.dtype is not xs.dtype:
        raise TypeError(f"x: expected {p.dtype}, as the model's coefficients, got {xs.dtype}")
    w = _check.weight(y, weight, None, sigma, name="weight")
    with torch.no_grad():
        terms = model.columns(xs.double())
    terms, ys, w = _counted(terms, ys, w, omit)
    constant = terms.shape[1] > 1 and bool((terms[:, 0] == 1).all())
    columns, names = terms.cpu().numpy(), [name_of(powers) for powers in model.exponents]
    if model.functions:
        names = [name_of_function(f) for f in model.functions]
    found = regress(
        columns[:, 1:] if constant else columns,
        ys.double().cpu().numpy(),
        weight=None if w is None else w.double().cpu().numpy(),
        ridge=ridge,
        constant=constant,
        names=names[1:] if constant else names,
    )
    with torch.no_grad():
        p.copy_(torch.from_numpy(found.params))
    return found


def solve_columns(
    known: Fused, xs: torch.Tensor, ys: torch.Tensor, w: torch.Tensor | None, ridge: float,
    omit: bool,
) -> Regression:  # fmt: skip
    """`solve` of a module that computes a polynomial of the columns of x, [N, V]."""
    from .regression import regress

    assert known.traced is not None
    xs, ys, w = _counted(xs, ys, w, omit)
    params = known.read()
    form = linear(known.traced, params)
    terms = design(known.traced, xs).cpu().numpy()
    columns, names = terms @ form.jacobian, names_of(known.module(), known.traced)
    one = np.eye(len(form.jacobian))[:, 0] * (not any(known.traced.exponents[0]))
    # The parameter that is the constant, if there is one, comes first.
    order = np.argsort(~(form.jacobian == one[:, None]).all(axis=0), kind="stable")
    constant = len(order) > 1 and bool((form.jacobian[:, order[0]] == one).all()) and one.any()
    found = regress(
        columns[:, order[1:] if constant else order],
        ys.double().cpu().numpy() - terms @ form.offset[:, 0],
        weight=None if w is None else w.double().cpu().numpy(),
        ridge=ridge,
        constant=bool(constant),
        names=[names[form.free[i]] for i in order][int(constant) :],
    )
    params[np.array(form.free)[order]] = found.params
    known.write(params)
    return found


def _counted(
    xs: torch.Tensor, ys: torch.Tensor, w: torch.Tensor | None, omit: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The samples that count; raises where there is none."""
    keep = torch.ones_like(ys, dtype=torch.bool) if w is None else w > 0
    if omit:
        keep = _kept(xs, ys, w)
        if not keep.any():
            raise ValueError("x, y: no sample is left after nan_policy='omit'")
    if keep.all():
        return xs, ys, w
    return xs[keep], ys[keep], None if w is None else w[keep]


def _kept(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    good = x.isfinite().all(1) & y.isfinite()
    return good if weight is None else good & (weight > 0)


def _refuse_nonfinite(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None) -> None:
    if math.isfinite(float(x.sum())) and math.isfinite(float(y.sum())):
        return
    kept = _kept(x, y, weight)
    counted = len(kept) if weight is None else int(torch.count_nonzero(weight))
    _check.finite(counted - int(kept.sum()), _check.OR_ELSE)
