"""The Triton backend: problems of the front end as launches, and what they leave behind."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ..criteria import ELEMENTARY, SQUARED, Criterion
from ..exponents import MAX_TERMS
from ..problem import Problem, Report, Schedule
from ..stacked import Stacked
from ..symbolic import Traced
from . import classes_triton, geometry, launch, surface_triton
from .device import (
    MAX_CHANGES,
    DeviceMap,
    DeviceMoments,
    DeviceRule,
    begin,
    bounds_of,
    cost_of,
    loss_and_gradient,
    n_recorded,
    refuse_apart,
    refuse_engine,
    rule_of,
    state_size,
)
from .launch import Run, Samples
from .reference import design, finite
from .tables import Tables


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, on data of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _kernels(model: Traced) -> Any:
    if model.exponents:
        return surface_triton
    return classes_triton if isinstance(model, Stacked) else launch


def _samples(
    model: Traced, x: torch.Tensor, y: torch.Tensor, omit: bool = False,
    weight: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    if model.exponents:
        return surface_triton.Samples.of(model, x, y, omit, weight)
    if isinstance(model, Stacked):
        return classes_triton.Samples(x, y, model, weight)
    return Samples(x, y, model.shift, model.scale, omit, weight)


def _samples_of(problem: Problem) -> Any:
    return _samples(problem.model, problem.x, problem.y, problem.omit, problem.weight)


class Triton:
    name = "triton"
    max_params = geometry.MAX_PARAMS
    max_surface_terms = MAX_TERMS
    max_changes = MAX_CHANGES
    in_place = True

    def missing(self) -> str | None:
        """None, or why the backend is not available here."""
        if find_spec("triton") is None:
            return "triton is not installed"
        if interpreted() or torch.cuda.is_available():
            return None
        return "no GPU that triton can drive; TRITON_INTERPRET=1 runs it on the CPU, for tests"

    def refuse(self, problem: Problem) -> str | None:
        device = problem.x.device
        if device.type != ("cpu" if interpreted() else "cuda"):
            return f"the data is on {device}"
        if isinstance(problem.model, Stacked):
            return refuse_apart(problem) or self.refuse_outputs(problem.model)
        if len(problem.model.slots) > geometry.MAX_PARAMS:
            return f"{len(problem.model.slots)} parameters, above {geometry.MAX_PARAMS}"
        terms = problem.model.n_terms
        if problem.model.exponents and terms > surface_triton.MAX_TERMS:
            return f"{terms} terms of several variables, above {surface_triton.MAX_TERMS}"
        return None

    def refuse_outputs(self, model: Stacked) -> str | None:
        if model.batch or not model.of_y:
            return "not several outputs"
        return (surface_triton if model.exponents else classes_triton).refuse(model)

    def refuse_engine(self, problem: Problem, engine: str) -> str | None:
        return refuse_engine(problem, engine)

    def evaluate(self, model: Traced, coef: Any, x: torch.Tensor) -> torch.Tensor:
        coef = torch.as_tensor(coef, dtype=torch.float64, device=x.device).contiguous()
        if model.exponents:
            return (design(model, x) @ coef).to(x.dtype)
        samples = Samples(x, x, model.shift, model.scale)
        return launch.evaluate(samples, DeviceMap.identity_of(model.degree + 1, x.device), coef)

    def project(self, model: Traced, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        if model.exponents:
            return design(model, x).T @ g.double()
        map = DeviceMap.identity_of(model.degree + 1, x.device)
        return launch.project(Samples(x, g, model.shift, model.scale), map, map.factor)

    def loss_and_gradient(
        self, problem: Problem, params: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return loss_and_gradient(self, problem, params)

    def accumulate(self, problem: Problem) -> DeviceMoments:
        model, samples = problem.model, _samples_of(problem)
        kernels = _kernels(model)
        buffer = kernels.new_moments(samples, model.n_terms)
        several = isinstance(model, Stacked)
        map = DeviceMap.identity_of(model.n_params if several else model.n_terms, buffer.device)
        run = Run(map, DeviceRule(buffer, 0), buffer)
        kernels.moments(samples, run, buffer, given=False, run_epochs=False)
        return DeviceMoments(buffer, kernels.square_in(buffer, samples))

    def descend(
        self, problem: Problem, engine: str, moments: Any, schedule: Schedule, state: Any
    ) -> Report:
        kernels, samples = _kernels(problem.model), _samples_of(problem)
        device, terms = problem.x.device, problem.model.n_terms
        if schedule.seconds:
            at_once = geometry.epochs_at_once(
                engine,
                samples.x.numel(),
                samples.x.element_size(),
                cost_of(problem),
                schedule.epochs,
                problem.criterion.kind in ELEMENTARY,
                launch.machine(device),
            )
            schedule = schedule._replace(epochs=at_once)
        held = begin(state, schedule, device)
        run = Run(
            DeviceMap.of(problem.model, device), rule_of(problem), held.buffer, held.tables,
            load=held.load,
            mean=problem.reduction == "mean", criterion=problem.criterion,
            first_epoch=schedule.first_epoch, epochs=schedule.epochs,
            record_every=schedule.record_every, tol=schedule.tol, bounds=bounds_of(problem),
        )  # fmt: skip
        if engine == "stream":
            kernels.stream(samples, run)
        else:
            given = moments is not None
            if not given:
                moments = DeviceMoments(kernels.new_moments(samples, terms), np.nan)
            closed = engine == "closed_form"
            kernels.moments(samples, run, moments.buffer, given=given, closed=closed)
        held.launched(schedule, engine)
        held.finish()
        outcome = held.outcome()
        if engine != "stream":
            moments.square = outcome["square"]
        done, converged = int(outcome["epochs"]), bool(outcome["converged"])
        taken = n_recorded(schedule._replace(epochs=min(schedule.epochs, done + converged)))
        return Report(
            done, converged, outcome["loss"], held.recorded(taken), moments, outcome["previous"]
        )

    def nonfinite(self, problem: Problem) -> int:
        if problem.model.exponents or isinstance(problem.model, Stacked):
            return int((~finite(problem)).sum())
        return int(launch.nonfinite(_samples_of(problem)))

    def launches(self) -> int:
        return launch.launches

    def step(
        self, map: DeviceMap, rule: DeviceRule, table: Tables, x: torch.Tensor,
        y: torch.Tensor, model: Traced, mean: bool, moments: DeviceMoments | None,
        criterion: Criterion = SQUARED, weight: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The fused step from what the table points at; returns `state`, or a new buffer."""
        if state is None:
            state = torch.empty(state_size(map.n_params), dtype=torch.float64, device=x.device)
        run = Run(map, rule, state, table, load=True, mean=mean, criterion=criterion)
        kernels, samples = _kernels(model), _samples(model, x, y, weight=weight)
        if moments is None:
            kernels.step(samples, run)
        else:
            kernels.moments(samples, run, moments.buffer, given=True, step=True)
        return state

    def store(
        self, map: DeviceMap, rule: DeviceRule, table: Tables, state: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """Writes what a step has computed to where the table has the next ones go."""
        launch.store(state, table, rule, dtype)

    def update(self, map: DeviceMap, rule: DeviceRule, table: Tables, dtype: torch.dtype) -> None:
        """The ordinary update of what the table points at."""
        launch.update(table, rule, dtype)
