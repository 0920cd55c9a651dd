"""The compiled backend: addresses and sizes of tensors, handed to the extension module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import _C
from ..bases import recurrence_of
from ..exponents import MAX_TERMS, layout
from ..problem import Problem, Report, Schedule, State
from ..rules import rows_of
from ..stacked import Stacked
from ..symbolic import MAX_PARAMS, Traced
from .reference import design, finite

ENGINE = {"stream": 0, "moments": 1, "closed_form": 2}


def make_plan(model: Traced) -> Any:
    surface = None
    if model.exponents:
        shift, scale = zip(*model.variables, strict=True)
        surface = *layout(model.exponents), list(shift), list(scale)
    if isinstance(model, Stacked):
        plan = _C.Plan(1, 1, [], model.shift, model.scale, surface)
        plan.set_stacked(make_stacked(model))
        return plan
    return _C.Plan(
        len(model.slots), model.n_terms, list(model.terms), model.shift, model.scale, surface
    )


def make_stacked(model: Stacked) -> Any:
    rows = (0, 0, 0)  # powers
    if model.basis != "monomial":
        rows = tuple(row.ctypes.data for row in recurrence_of(model.basis, model.n_terms))
    return _C.Stacked(model.n_terms, model.outputs, model.shift, model.scale, rows)


def read_stacked(problem: Problem) -> Any:
    """The same with the problem's data, which must outlive it."""
    assert isinstance(problem.model, Stacked)
    stacked, (x, y, w) = make_stacked(problem.model), (problem.x, problem.y, problem.weight)
    index = y.dtype is torch.int64

    def series(t: torch.Tensor | None) -> tuple[int, int, int, bool] | None:
        if t is None:
            return None
        fit = t.stride(1) if t.ndim > 1 else 0
        return t.data_ptr(), t.stride(0), fit, t.dtype is torch.float64

    stacked.read(
        series(x), None if index else series(y), series(w), y.data_ptr() if index else 0,
        y.stride(0), len(x),
    )  # fmt: skip
    return stacked


def borrow_plan(problem: Problem) -> Any:
    """A plan of the problem that nobody else has, until it is given back."""
    plan, there = vars(problem.model).pop("_plan", None) or (make_plan(problem.model), None)
    if there is not problem.rule:
        plan.set_rule(rows_of(problem.rule))
    if isinstance(problem.model, Stacked):
        plan.set_stacked(read_stacked(problem))
    plan.mean = problem.reduction == "mean"
    plan.criterion = problem.criterion
    return plan


def make_data(
    model: Traced, x: torch.Tensor, y: torch.Tensor | None, omit: bool = False,
    w: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    """The extension's view of x [N], or [N, V] of several variables, y and weights w, each [N],
    which must outlive it."""
    return _C.Data(
        x.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if w is None else w.data_ptr(),
        x.shape[0] if x.ndim else 1,
        x.stride(0) if x.ndim else 1,
        1 if y is None or not y.ndim else y.stride(0),
        1 if w is None else w.stride(0),
        x.dtype == torch.float64,
        omit,
        model.shift,
        model.scale,
        x.stride(1) if x.ndim > 1 else 1,
    )


class Cpu:
    name = "cpu"
    max_params = MAX_PARAMS
    max_surface_terms = MAX_TERMS
    max_changes = 4096  # of the rule, in one launch

    def missing(self) -> str | None:
        return None

    def refuse(self, problem: Problem) -> str | None:
        if problem.x.device.type != "cpu":
            return f"the data is on {problem.x.device}"
        return None

    def refuse_outputs(self, model: Stacked) -> str | None:
        return None

    def refuse_engine(self, problem: Problem, engine: str) -> str | None:
        return None

    def evaluate(self, model: Traced, coef: np.ndarray, x: torch.Tensor) -> torch.Tensor:
        if model.exponents:
            return (design(model, x) @ torch.from_numpy(coef)).to(x.dtype)
        y = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        _C.evaluate(make_data(model, x, None), coef, torch.get_num_threads(), y.data_ptr())
        return y

    def project(self, model: Traced, x: torch.Tensor, g: torch.Tensor) -> np.ndarray:
        if model.exponents:
            return (design(model, x).T @ g.double()).numpy()
        return _C.project(make_data(model, x, g), model.n_terms, torch.get_num_threads())

    def loss_and_gradient(self, problem: Problem, params: Any) -> tuple[float, np.ndarray]:
        plan = borrow_plan(problem)
        data = make_data(problem.model, problem.x, problem.y, problem.omit, problem.weight)
        found = _C.loss_and_gradient(plan, data, params, torch.get_num_threads())
        vars(problem.model)["_plan"] = plan, problem.rule
        return found

    def accumulate(self, problem: Problem) -> Any:
        data = make_data(problem.model, problem.x, problem.y, problem.omit, problem.weight)
        threads = torch.get_num_threads()
        if isinstance(problem.model, Stacked):
            return _C.accumulate_stacked(borrow_plan(problem), data, threads)
        return _C.accumulate(data, problem.model.degree + 1, threads)

    def descend(
        self, problem: Problem, engine: str, moments: Any, schedule: Schedule, state: State
    ) -> Report:
        plan = borrow_plan(problem)
        if problem.changes:
            plan.set_changes([(epoch, rows_of(rule)) for epoch, rule in problem.changes])
        data = make_data(problem.model, problem.x, problem.y, problem.omit, problem.weight)
        descend: Any = _C.descend_surface if problem.model.exponents else _C.descend
        if isinstance(problem.model, Stacked):
            descend = _C.descend_stacked
        report = Report(
            *descend(
                plan, data, ENGINE[engine], moments, *schedule, torch.get_num_threads(),
                state.params, state.kept, state.grad, problem.bounds,
            )
        )  # fmt: skip
        vars(problem.model)["_plan"] = plan, None if problem.changes else problem.rule
        return report

    def nonfinite(self, problem: Problem) -> int:
        if problem.model.exponents or isinstance(problem.model, Stacked):
            return int((~finite(problem)).sum())
        data = make_data(problem.model, problem.x, problem.y, w=problem.weight)
        return _C.count_nonfinite(data, torch.get_num_threads())

    def launches(self) -> int:
        return _C.launches()
