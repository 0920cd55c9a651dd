"""What `fit` is to do, read from a model, a criterion, an optimizer and data."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from . import _C, _check
from .backends import Backend
from .classes import has_outputs
from .criteria import GAUSSIAN
from .engines import choose_engine, leap_pays, refuse_engine
from .fused import Fused, read_data
from .gaussian import extra_of, of_variances
from .optim.owners import Holding, holding, options_watched
from .outputs import prepare_outputs
from .problem import Problem
from .recognise import read_objects, refuse_parameters, refuse_shape
from .rules import is_sgd
from .stacked import Stacked
from .surface import is_surface, read_surface
from .watching import watched


def prepare(
    model: Any,
    criterion: Any,
    optimizer: Any,
    x: Any,
    y: Any,
    nan_policy: str = "propagate",
    weights: tuple[Any, Any, Any] = (None, None, None),
) -> tuple[Fused, Holding, Problem]:
    """The problem that these objects state; raises what `fit` documents."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if has_outputs(model):
        return prepare_outputs(model, criterion, optimizer, x, y, nan_policy, weights)
    known, xs, ys = (read_surface if is_surface(model) else read_data)(model, x, y)
    last = known.last_fit
    if last is None or not last.holds(criterion, optimizer, y):
        read = read_objects(criterion, optimizer, y, *extra_of(criterion))
        if known.polynomial is None:
            alone = "; forwards that shape their samples are traced from two on" * (len(xs) == 1)
            raise ValueError(f"model: {type(model).__name__} is not fused: {known.reason}{alone}")
        last = LastFit(known, criterion, optimizer, y, read)
    assert known.traced is not None
    reason = refuse_parameters(known.tensors) or refuse_shape(known.traced, xs)
    if reason:
        raise ValueError(f"model: {reason}")
    kind, mean = last.read
    omit = nan_policy == "omit"
    weight: torch.Tensor | None
    if kind.kind is GAUSSIAN:
        kind, mean, weight = of_variances(kind, mean, xs, ys, weights, omit)
    else:
        weight = _check.weight(y, *weights)
    weight = None if weight is None else weight.to(ys.dtype)
    reason = kind.refuse_targets(ys, weight)
    if reason:
        raise ValueError(f"y: {reason}")
    held = Holding(optimizer, *last.held)
    problem = Problem(
        known.traced, "mean" if mean else "sum", held.rule, xs, ys,
        omit, criterion=kind.over_rows_of(y), weight=weight,
    )  # fmt: skip
    return known, held, problem


class LastFit:
    """What `prepare` found a criterion and an optimizer to be, good while they stay as they are.

    Kept with the model's trace until the optimizer goes.
    """

    def __init__(self, known: Fused, criterion: Any, optimizer: Any, y: torch.Tensor, read: Any):
        trace = weakref.ref(known)

        def forget(_: Any) -> None:
            if (alive := trace()) is not None:
                alive.last_fit = None

        held = holding(known, optimizer)
        self.criterion, self.optimizer = weakref.ref(criterion), weakref.ref(optimizer, forget)
        self.y_ndim, self.read = y.ndim, read
        self.held = held[1:]
        known.last_fit = self
        options, complete = options_watched(optimizer)
        buffers = [b for b in criterion._buffers.values() if b is not None]
        self.watch = None
        # numbers that torch keeps in tensors: their type is part of the options
        if complete and not any(hasattr(o, "single") for o in held.tensors.values()):
            self.watch = _C.Watch([*options, criterion, *watched(criterion), *buffers])

    def holds(self, criterion: Any, optimizer: Any, y: torch.Tensor) -> bool:
        return (
            self.watch is not None
            and self.criterion() is criterion
            and self.optimizer() is optimizer
            and self.y_ndim == y.ndim
            and self.watch.unchanged()
        )


def refuse(
    problem: Problem, runner: Backend, engine: str, tol: float, scheduled: bool = False
) -> str | None:
    """None, or why the engine of a backend cannot compute this run exactly."""
    reason = refuse_engine(
        engine, problem.criterion, tol, linear=is_sgd(problem.rule), affine=problem.model.affine,
        scheduled=scheduled, bounded=problem.bounds is not None,
    )  # fmt: skip
    alone = isinstance(problem.model, Stacked) and not problem.model.exponents
    if reason is None and engine != "stream" and alone:
        return "the kernels take all outputs together, sample by sample"
    return reason or runner.refuse_engine(problem, engine)


def choose_for(
    problem: Problem, runner: Backend, engine: str, epochs: int, tol: float, scheduled: bool = False
) -> str:
    """The engine of a run on a backend."""
    if engine == "auto" and epochs == 1:
        return "stream"
    model = problem.model
    apart = isinstance(model, Stacked) and problem.x.device.type == "cpu"  # each leaps by itself
    # Operations of an epoch on the moments: of every output K^2 and about 40 more.
    together = model.outputs if isinstance(model, Stacked) and not apart else 1
    n_params = model.n_terms if apart else model.n_params
    leap = leap_pays(n_params, epochs, together * (model.n_terms**2 + 40))
    return choose_engine(engine, lambda e: refuse(problem, runner, e, tol, scheduled), leap)
