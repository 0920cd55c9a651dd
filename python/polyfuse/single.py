"""The run of one model: what `train` takes through its epochs."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from . import _check
from .backends.resident import Resident
from .fused import Fused
from .optim.owners import Holding, holding
from .problem import SLICE_SECONDS, Problem, Report, Schedule
from .rules import Rule
from .schedulers import Changes


class Single:
    """A course of one polynomial, from one launch of its backend to the next.

    shown: whether a callback is shown the parameters, so that they do not stay on a device;
    varies: whether the optimizer's options may change; forced: that the user named the engine.
    """

    def __init__(
        self, known: Fused, held: Holding, problem: Problem, runner: Any, engine: str, *,
        record_every: int, tol: float, nan_policy: str, shown: bool, varies: bool, forced: bool,
    ):  # fmt: skip
        self.known, self.held, self.problem, self.runner = known, held, problem, runner
        self.engine, self.every, self.tol, self.nan_policy = engine, record_every, tol, nan_policy
        self.home, self.varies, self.forced = None if shown else runner, varies, forced
        self.max_changes: int = getattr(runner, "max_changes", 0)
        self.moments: Any = None
        self.started = False
        self.done, self.loss, self.previous = 0, math.nan, math.nan
        self.state = self._begin()

    def _begin(self) -> Any:
        """The parameters as they are; or a copy of them, moved into their bounds."""
        state = self.known.state(self.held, self.home if self.problem.bounds is None else None)
        if self.problem.bounds is not None:
            np.clip(state.params, *self.problem.bounds, out=state.params)
        return state

    def rule(self) -> Rule:
        return holding(self.known, self.held.optimizer).rule

    def launch(self, epochs: int, rule: Rule | None, changes: Changes) -> Report:
        problem = self.problem
        if rule is not None:
            self.problem = problem = problem._replace(rule=rule, changes=changes)
        while True:
            schedule = Schedule(
                self.done, epochs, self.every, self.tol, SLICE_SECONDS, self.previous
            )
            # Ctrl-C is heard as a launch returns: what it changed must not be half taken over.
            ahead = self.state.copy() if self.started else self.state
            run = self.runner.descend(problem, self.engine, self.moments, schedule, ahead)
            of = run.moments
            if of is None or math.isfinite(of.square) or not self._overflows(run):
                break
        self.moments = run.moments
        left = ahead, self.done + run.epochs, run.loss, run.previous
        self.started = True
        self.state, self.done, self.loss, self.previous = left
        return run

    def _overflows(self, run: Report) -> bool:
        """Whether the data overflows its moments, so that it is to be read in every epoch."""
        if self.nan_policy == "raise":
            _check.finite(self.runner.nonfinite(self.problem), _check.OR_ELSE)
        if self.done or not run.epochs:
            return False
        if self.forced:
            warnings.warn(
                f"engine: moments of this data are not finite; {self.engine} became stream",
                RuntimeWarning,
                stacklevel=5,
            )
        self.engine, self.state = "stream", self._begin()
        return True

    def commit(self) -> None:
        if self.varies:
            self.held = holding(self.known, self.held.optimizer)
        if self.started:
            self.known.commit(self.state, self.held, self.done > 0)

    def take_over(self) -> None:
        self.known.take_over(self.state)
        self.problem = self.problem._replace(rule=self.rule())

    def interrupt(self) -> None:
        if isinstance(self.state, Resident) and (left := self.state.left()):
            # the last launch has changed it, whoever took note of that
            self.state, self.done, self.loss = left
            self.started = True
