"""The least-squares optimum itself, what infinitely many epochs would reach, in one read."""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _C, _check
from .backends import choose
from .backends.reference import finite, kept
from .batch import is_batch, solve_batch
from .classes import has_outputs
from .fused import Fused, read_data
from .linear import Held, linear, names_of, normal_equations, powers
from .problem import Problem
from .recognise import refuse_parameters, refuse_shape
from .report import Reported
from .surface import Table, is_surface, read_surface, source_of

if TYPE_CHECKING:
    from .statistics import Statistics

PRECISIONS = ("auto", "double", "extended")
EXTENDED_BELOW = 1_000_000  # samples: this many take a few milliseconds
CONDITION = 1e5  # of the model's terms; float64 sums would leave fewer than 10 digits or so


@dataclass
class Solution(Reported):
    """The outcome of `polyfuse.solve`.

    Attributes:
        params: float64 [P], the scalar parameters before they were rounded to the model's dtype, in
            the order of `statistics.names`.
        coefficients: float64 [K], of ascending powers of x, or of (x - shift) * scale where the
            model has such a variable.
        loss: sum w (y - model(x))^2 at these parameters.
        rank: how many of the trainable parameters the data determine.
        precision: "double" or "extended", what the sums over the data were taken in.
        backend, launches, seconds: what computed it, kernel launches and wall time.
        statistics: a `polyfuse.statistics.Statistics`.
    """

    params: np.ndarray
    coefficients: np.ndarray
    loss: float
    rank: int
    precision: str
    backend: str
    launches: int
    seconds: float
    ridge: float
    _statistics_of: Callable[[], Statistics] = field(repr=False)

    def _statistics(self) -> Statistics:
        return self._statistics_of()

    def __str__(self) -> str:
        return (
            f"sum of squares {self.loss:.7g}, rank {self.rank} of {len(self.params)} parameters; "
            f"{self.precision} precision on {self.backend}, {self.seconds * 1e3:.3g} ms"
        )


def statistics_of(
    data: Held, equations: _C.NormalEquations, solution: _C.Solution, params: np.ndarray,
    module: Any, elsewhere: bool = False,
) -> Statistics:  # fmt: skip
    """elsewhere: the parameters [P] are not those of the solution."""
    from .statistics import Statistics

    problem = data.problem
    model = problem.model
    form = linear(model, params)
    rows = powers(equations.shift, equations.scale, model.degree + 1)

    def fitted(x: Any) -> np.ndarray:
        if not elsewhere:
            return rows(x) @ solution.coefficients
        u = (np.asarray(x, np.float64).reshape(-1) - model.shift) * model.scale
        return np.polynomial.polynomial.polyval(u, model.coefficients(params))

    n, squares = problem.x.numel(), None
    if problem.weight is not None or problem.omit:
        n = len(data.samples().y)
    if elsewhere:
        x, y, w = data.samples()
        squares = float((w * (y - fitted(x)) ** 2).sum())
    return Statistics(
        names_of(module, model), params, form.free, solution, rows, fitted, data.samples, n,
        form.has_constant, squares, problem.weight is not None,
    )  # fmt: skip


def solve(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    sigma: torch.Tensor | None = None,
    ridge: float = 0.0,
    precision: str = "auto",
    backend: str = "auto",
    nan_policy: str = "raise",
    covariance: bool = False,
    degree_by: str | None = None,
    deficient: str = "minimum_norm",
) -> Any:
    """Set a model's parameters to its least-squares optimum.

    It minimises sum w (y - model(x))^2 + ridge sum params^2 over the trainable parameters; frozen
    ones (``requires_grad=False``) stay. Where the data leave directions of the parameters open,
    numpy's ``RankWarning`` says so, and of all optima the one of minimum norm is taken (in units of
    1 / length of a parameter's column of the design, as `numpy.polyfit` has it). Storage of the
    parameters is kept, their version counters move.

    Args:
        model: torch or polyfuse module whose output is a polynomial of its input, with coefficients
            that are affine in its parameters.
        x, y: data of one shape, float32 or float64; or y in the shape of the model's output, where
            that is a polynomial of the columns of x. Of a batch, numpy arrays as well.
        weight: weights >= 0 in the shape of x; a sample of weight 0 is left out.
        sigma: standard deviations > 0 of every y, in the shape of x: a weight of 1 / sigma^2.
        ridge: penalty >= 0 of every trainable parameter, the constant too.
        precision: ``double``; ``extended``, sums in double-double arithmetic (32 digits), on CPUs;
            ``auto``, extended below a million samples and where the condition of the model's terms
            asks for it. The equations are solved in double-double arithmetic in any case, and the
            sums of several variables, functions and long series taken in it on any device.
        backend: ``auto`` or a name that `backends` lists; of several variables, functions and long
            series ``cpu``, which brings the data there, or ``reference``, where the data lie.
        nan_policy: ``raise`` on nan or inf in the data, or ``omit`` those samples; with a batch of
            fits also ``propagate``, which makes the fit nan.
        covariance: with the covariance of the coefficients of every fit of a batch.
        degree_by: ``aicc`` or ``bic`` chooses a degree for every fit of a batch, up to the model's;
            `select_degree` does it for one fit.
        deficient: what a fit of a batch becomes whose points do not determine all coefficients, and
            whose status says so: the optimum of ``minimum_norm``, or ``nan``.

    Returns:
        Solution: parameters and coefficients in float64, rank, and `statistics`; for a
        `nn.Polynomial` with a batch_shape or outputs a `BatchResult`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; nothing is
            changed.

    Source: normal equations in a centred and scaled variable about a pilot fit; see
    csrc/cpu/least_squares.cpp.

    Example:
        >>> import torch, polyfuse as pf
        >>> x = torch.linspace(-1, 1, 50)
        >>> model = pf.nn.Polynomial(2)
        >>> solution = pf.solve(model, x, 1 + 2 * x + 3 * x**2)
        >>> model.coefficients.tolist(), solution.rank
        ([1.0, 2.0, 3.0], 3)
    """
    start = time.perf_counter()
    _check.one_of("precision", precision, PRECISIONS)
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < math.inf:
        raise ValueError(f"ridge: expected a finite number >= 0, got {ridge!r}")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    _check.one_of("nan_policy", nan_policy, _check.NAN_POLICIES)
    if is_batch(model) or has_outputs(model):
        if ridge or precision == "extended":
            raise ValueError(
                f"ridge, precision: expected 0 and auto or double for a batch of fits, "
                f"got {ridge} and {precision}"
            )
        return solve_batch(
            model, x, y, weights=(weight, None, sigma), nan_policy=nan_policy,
            covariance=covariance, degree_by=degree_by, deficient=deficient, backend=backend,
        )  # fmt: skip
    if degree_by is not None or deficient != "minimum_norm":
        raise ValueError(
            "degree_by, deficient: expected None (see select_degree) and minimum_norm for one fit, "
            f"got {degree_by!r} and {deficient!r}"
        )
    if nan_policy == "propagate" or covariance:
        raise ValueError(
            "covariance: expected False, that of one fit is in its statistics, got True"
            if covariance
            else "nan_policy: expected raise or omit for one fit, got 'propagate'"
        )
    known, xs, ys = (read_surface if is_surface(model) else read_data)(model, x, y)
    traced = known.polynomial
    if traced is None:
        raise ValueError(f"model: {type(model).__name__} is no polynomial: {known.reason}")
    if not traced.affine:
        raise ValueError(
            "model: expected coefficients that are affine in the parameters, got products of "
            f"parameters: {traced.formula()}; use polyfuse.fit"
        )
    reason = refuse_parameters(known.tensors) or refuse_shape(traced, xs)
    if reason:
        raise ValueError(f"model: {reason}")
    if not any(t.requires_grad for t in known.tensors):
        raise ValueError("model: expected a trainable parameter, got none")
    weights = _check.weight(y, weight, None, sigma, name="weight")
    weights = None if weights is None else weights.to(ys.dtype)
    rule = (None,) * len(traced.slots)
    problem = Problem(traced, "sum", rule, xs, ys, nan_policy == "omit", weight=weights)
    if traced.exponents or is_surface(model):
        _check.one_of("backend", backend, ("auto", "cpu", "reference"))
        _check.one_of("precision", precision, ("auto", "extended"))
        data = Held.of(problem, source_of(model, x) if is_surface(model) else None)
        return _solved_columns(known, data, float(ridge), backend, start)
    runner = choose(backend, problem)
    if precision == "extended" and runner.name != "cpu":
        raise ValueError(f"precision: extended needs the backend cpu, got {runner.name}")

    before = runner.launches()
    params = known.read()
    form = linear(traced, params)
    few = xs.numel() < EXTENDED_BELOW
    precise = runner.name == "cpu" and (precision == "extended" or (precision == "auto" and few))
    equations, solution = _solved(problem, runner, form, float(ridge), precise)
    if precision == "auto" and not precise and _ill_conditioned(solution):
        if runner.name == "cpu":
            precise = True
            equations, solution = _solved(problem, runner, form, float(ridge), precise)
        else:
            warnings.warn(
                f"the sums of the backend {runner.name} are in float64, and the model's terms are "
                "ill conditioned on this data; the backend cpu has extended precision",
                RuntimeWarning,
                stacklevel=2,
            )
    params[form.free] = solution.params
    known.write(params)
    _check.warn_of_rank(solution.rank, len(form.free))
    data, module = Held.of(problem), weakref.ref(model)
    return Solution(
        params=params,
        coefficients=traced.coefficients(params),
        loss=solution.sum_of_squares,
        rank=solution.rank,
        precision="extended" if precise else "double",
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        ridge=float(ridge),
        _statistics_of=lambda: statistics_of(data, equations, solution, params, module()),
    )


def _solved_columns(known: Fused, data: Held, ridge: float, backend: str, start: float) -> Solution:
    problem, params, before = data.problem, known.read(), _C.launches()
    if problem.omit and not len(kept(problem)[1]):
        raise ValueError("x, y: no sample is left after nan_policy='omit'")
    if not problem.omit:
        _check.finite(int((~finite(problem)).sum()))
    table = Table.of(data, params, known.module(), ridge, backend)
    found = table.solution
    params[table.order] = found.params
    known.write(params)
    _check.warn_of_rank(found.rank, len(table.order))
    expanded = data.source.columns is not None
    return Solution(
        params=params,
        coefficients=params if expanded else problem.model.coefficients(params),
        loss=found.sum_of_squares,
        rank=found.rank,
        precision="extended",
        backend=table.backend,
        launches=_C.launches() - before,
        seconds=time.perf_counter() - start,
        ridge=ridge,
        _statistics_of=lambda: table.statistics(params),
    )


def _solved(problem: Problem, runner: Any, form: Any, ridge: float, precise: bool) -> Any:
    """The normal equations and their solution; raises where the data are not finite."""
    equations = normal_equations(problem, runner, precise)
    penalty = [ridge] * len(form.free) if ridge else []
    solution = equations.solve(form.jacobian, form.offset, penalty, True)
    if not (np.isfinite(solution.params).all() and math.isfinite(solution.sum_of_squares)):
        _check.finite(runner.nonfinite(problem))
        raise ValueError("x, y: sums over this data, or its coefficients, overflow float64")
    return equations, solution


def _ill_conditioned(solution: _C.Solution) -> bool:
    """A bound of the condition number of the design, its columns scaled, against CONDITION."""
    if solution.rank < len(solution.params):
        return True
    length = np.sqrt(np.diag(solution.gram))
    gram = solution.gram / np.outer(length, length)
    inverse = solution.covariance * np.outer(length, length)
    return bool(np.linalg.norm(gram) * np.linalg.norm(inverse) > CONDITION**2)
