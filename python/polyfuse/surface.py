"""Polynomials of several variables: what `fit` does with a `Polynomial` of more than one."""

from __future__ import annotations

import math
import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from . import _C, _check
from .backends.native import ENGINE
from .batch import options_held
from .engines import choose_engine, leap_pays, refuse_engine
from .nn.polynomial import Polynomial, parent_of
from .problem import Wanted
from .recognise import read_criterion, refuse_optimizer, refuse_own
from .result import FitResult
from .rules import SgdOptions
from .runs import descend

if TYPE_CHECKING:
    from .regression import Regression

MAX_TERMS, MAX_VARIABLES = 256, 64  # as csrc/cpu/surface.h has them


def is_surface(model: Any) -> bool:
    return isinstance(model, Polynomial) and model.variables > 1


@lru_cache(maxsize=64)
def layout(exponents: tuple[tuple[int, ...], ...]) -> tuple[list, list, list]:
    """What the kernels are told of the terms: (parent, variable) of each; one pair of terms for
    every moment, (a, b, moment); and the moment of every pair [K * K]."""
    number = {powers: k for k, powers in enumerate(exponents)}
    terms = []
    for powers in exponents:
        parent, v = parent_of(powers)
        terms.append((-1 if v is None else number.get(parent, -1), -1 if v is None else v))
    moments: dict[tuple[int, ...], int] = {}
    products, moment_of = [], []
    for a, first in enumerate(exponents):
        for b, second in enumerate(exponents):
            power = tuple(p + q for p, q in zip(first, second, strict=True))
            if power not in moments:
                moments[power] = len(moments)
                products.append((a, b, moments[power]))
            moment_of.append(moments[power])
    return terms, products, moment_of


class Surfaces:
    """The compiled kernels of a model on data."""

    def __init__(self, model: Polynomial, x: Any, y: Any, weight: Any, omit: bool):
        shift, scale = zip(*model.variable, strict=True)
        self.kernels = _C.Surface(*layout(model.exponents), list(shift), list(scale))
        self.data = x, y, weight  # which the kernels point to
        self.kernels.read(
            (x.data_ptr(), x.stride(0), x.stride(1), x.dtype is torch.float64),
            None if y is None else _series(y),
            None if weight is None else _series(weight),
            x.shape[0],
            omit,
        )


def _series(t: torch.Tensor) -> tuple[int, int, int, bool]:
    return t.data_ptr(), t.stride(0), 0, t.dtype is torch.float64


def fit_surface(
    model: Any,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Any,
    y: Any,
    wanted: Wanted,
) -> FitResult:
    """`fit` of a polynomial of several variables."""
    start = time.perf_counter()
    epochs, engine, backend, record_every, tol, nan_policy, weights, _ = wanted
    _check.one_of("backend", backend, ("auto", "cpu"))
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    xs, ys = _check.columns(x, y, model.variables)
    p = model.coefficients
    if p.dtype is not xs.dtype or xs.device.type != "cpu" or p.device != xs.device:
        raise TypeError(
            f"x: expected {p.dtype} on a CPU, as the model's coefficients, "
            f"got {xs.dtype} on {xs.device}"
        )
    if p.numel() > MAX_TERMS or model.variables > MAX_VARIABLES:
        raise ValueError(
            f"model: expected at most {MAX_TERMS} terms and {MAX_VARIABLES} variables, "
            f"got {p.numel()} and {model.variables}"
        )
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
    surfaces = Surfaces(model, xs, ys, weight, nan_policy == "omit")
    kernels = surfaces.kernels
    kernels.criterion, kernels.mean = kind.over_rows_of(y), mean
    before = _C.launches()
    moments = None if engine == "stream" else kernels.accumulate(torch.get_num_threads())
    run = partial(kernels.descend, ENGINE[engine], moments)
    return descend(
        run, engine, p, options, optimizer, epochs, record_every, tol, start, before
    )  # fmt: skip


def solve_surface(
    model: Any, x: Any, y: Any, weight: Any, sigma: Any, ridge: float, omit: bool
) -> Regression:
    """`solve` of a polynomial of several variables."""
    from .regression import regress

    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    xs, ys = _check.columns(x, y, model.variables)
    p = model.coefficients
    if not p.requires_grad:
        raise ValueError("model: expected a trainable parameter, got none")
    if p.dtype is not xs.dtype:
        raise TypeError(f"x: expected {p.dtype}, as the model's coefficients, got {xs.dtype}")
    w = _check.weight(y, weight, None, sigma, name="weight")
    keep = torch.ones_like(ys, dtype=torch.bool) if w is None else w > 0
    if omit:
        keep = _kept(xs, ys, w)
        if not keep.any():
            raise ValueError("x, y: no sample is left after nan_policy='omit'")
    if not keep.all():
        xs, ys, w = xs[keep], ys[keep], None if w is None else w[keep]
    with torch.no_grad():
        columns = model.columns(xs.double()).cpu().numpy()
    constant = not any(model.exponents[0]) and len(model.exponents) > 1
    names = [_name(powers) for powers in model.exponents]
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


def _kept(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    good = x.isfinite().all(1) & y.isfinite()
    return good if weight is None else good & (weight > 0)


def _name(powers: tuple[int, ...]) -> str:
    """Such as x1^2 x2."""
    parts = [f"x{v + 1}" + (f"^{p}" if p > 1 else "") for v, p in enumerate(powers) if p]
    return " ".join(parts) or "constant"


def _refuse_nonfinite(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None) -> None:
    if math.isfinite(float(x.sum())) and math.isfinite(float(y.sum())):
        return
    kept = _kept(x, y, weight)
    counted = len(kept) if weight is None else int(torch.count_nonzero(weight))
    _check.finite(counted - int(kept.sum()), _check.OR_ELSE)
