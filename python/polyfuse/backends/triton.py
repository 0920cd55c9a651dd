"""The Triton backend: problems of the front end as launches, and what they leave behind."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ..criteria import ELEMENTARY, SQUARED, Criterion
from ..logits import Logits
from ..problem import Problem, Report, Schedule
from ..symbolic import Traced
from . import geometry, launch
from .classes import Targets
from .device import (
    MAX_CHANGES,
    OUTCOME,
    ROWS,
    DeviceMap,
    DeviceMoments,
    DeviceRule,
    begin,
    loss_and_gradient,
    n_recorded,
    rule_of,
)
from .launch import Run, Samples
from .tables import Tables


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, on data of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _samples(problem: Problem) -> Samples:
    model = problem.model
    return Samples(problem.x, problem.y, model.shift, model.scale, problem.omit, problem.weight)


class Triton:
    name = "triton"
    max_params = geometry.MAX_PARAMS
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
        if len(problem.model.slots) > geometry.MAX_PARAMS:
            return f"{len(problem.model.slots)} parameters, above {geometry.MAX_PARAMS}"
        if problem.bounds is not None:
            return "bounds are taken by cpu and reference alone"
        return None

    def evaluate(self, model: Traced, coef: Any, x: torch.Tensor) -> torch.Tensor:
        coef = torch.as_tensor(coef, dtype=torch.float64, device=x.device).contiguous()
        samples = Samples(x, x, model.shift, model.scale)
        return launch.evaluate(samples, DeviceMap.identity_of(model.degree + 1, x.device), coef)

    def project(self, model: Traced, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        map = DeviceMap.identity_of(model.degree + 1, x.device)
        return launch.project(Samples(x, g, model.shift, model.scale), map, map.factor)

    def loss_and_gradient(
        self, problem: Problem, params: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return loss_and_gradient(self, problem, params)

    def accumulate(self, problem: Problem) -> DeviceMoments:
        device = problem.x.device
        terms = problem.model.degree + 1
        buffer = torch.empty(4 * terms + 2, dtype=torch.float64, device=device)
        run = Run(DeviceMap.identity_of(terms, device), DeviceRule(buffer, 0), buffer)
        launch.moments(_samples(problem), run, buffer, given=False, run_epochs=False)
        return DeviceMoments(buffer, float(buffer[2]))

    def descend(
        self, problem: Problem, engine: str, moments: Any, schedule: Schedule, state: Any
    ) -> Report:
        samples, device = _samples(problem), problem.x.device
        terms = problem.model.degree + 1
        if schedule.seconds:
            at_once = geometry.epochs_at_once(
                engine,
                samples.x.numel(),
                samples.x.element_size(),
                terms,
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
            record_every=schedule.record_every, tol=schedule.tol,
        )  # fmt: skip
        if engine == "stream":
            launch.stream(samples, run)
        else:
            given = moments is not None
            if not given:
                buffer = torch.empty(4 * terms + 2, dtype=torch.float64, device=device)
                moments = DeviceMoments(buffer, np.nan)
            closed = engine == "closed_form"
            launch.moments(samples, run, moments.buffer, given=given, closed=closed)
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
        return int(launch.nonfinite(_samples(problem)))

    def launches(self) -> int:
        return launch.launches

    def step(
        self, map: DeviceMap, rule: DeviceRule, table: Tables, x: torch.Tensor,
        y: torch.Tensor, model: Traced, mean: bool, moments: DeviceMoments | None,
        criterion: Criterion = SQUARED, weight: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The fused step from what the table points at; returns its state buffer."""
        if isinstance(model, Logits):
            from . import classes_triton

            return classes_triton.step(Targets(model, criterion, mean, x, y, weight), rule, table)
        size = len(ROWS) * map.n_params + len(OUTCOME)
        state = torch.empty(size, dtype=torch.float64, device=x.device)
        run = Run(map, rule, state, table, load=True, mean=mean, criterion=criterion)
        samples = Samples(x, y, model.shift, model.scale, weight=weight)
        if moments is None:
            launch.step(samples, run)
        else:
            launch.moments(samples, run, moments.buffer, given=True, step=True)
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
