"""The run of a batch of fits: what `train` takes through its epochs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .backends.batched import Outcome, Run
from .batch_result import ways_of
from .problem import Report
from .recognise import refuse_own
from .rules import Rule, options_held
from .schedulers import Changes

UNKNOWN: Any = math.nan


class Many:
    """A course of many fits, each launch over all of them."""

    max_changes = 4096  # of the rule, in one launch

    def __init__(self, model: Any, run: Run, runner: Any, nan_policy: str, one_loss: bool = False):
        self.model, self.run, self.runner, self.nan_policy = model, run, runner, nan_policy
        self.one_loss = one_loss  # that of all fits, their sum
        self.out: Outcome | None = None  # of the last launch
        self.done, self.loss, self.previous = 0, UNKNOWN, UNKNOWN

    def rule(self) -> Rule:
        return (options_held(self.run.parameter, self.run.optimizer),)

    def launch(self, epochs: int, rule: Rule | None, changes: Changes) -> Report:
        run, first, out = self.run, self.done, self.out
        epochs = min(epochs, self.runner.most_epochs(run))
        params = run.fits.params if out is None else out.params
        if epochs < run.epochs:  # others follow, from where this one ends
            params = params.double()
        run = replace(
            run,
            fits=run.fits._replace(params=params),
            options=run.options if rule is None else rule[0],
            changes=tuple((epoch, later[0]) for epoch, later in changes if later[0] is not None),
            epochs=epochs,
            first_epoch=first,
            before=out,
        )
        out = self.runner.descend(run)
        int(out.status[0])  # a device is waited for, or launches that nobody sees would queue up
        if first == 0:
            ways_of(out.status, self.nan_policy, run.fits)
        last = first + epochs
        done = int(out.epochs.max()) if run.tol >= 0 else last
        recorded = out.recorded
        if run.record_every:  # losses that have settled are recorded no more
            recorded = recorded[: replace(run, epochs=done + 1 - first).records()]
        shape = run.parameter.shape[1:]
        previous: Any = out.previous
        loss: Any = out.loss.view(shape)
        recorded = recorded.view(-1, *shape)
        if self.one_loss:
            loss = float(loss.sum())
            previous = None if previous is None else float(previous.sum())
            recorded = recorded.sum(1).cpu().numpy()
        left = out, done, loss, previous
        self.out, self.done, self.loss, self.previous = left
        return Report(done - first, done < last, loss, recorded, None, previous)

    def commit(self) -> None:
        if self.out is not None:
            self.run.leave(self.out)

    def take_over(self) -> None:
        p, run = self.run.parameter, self.run
        if self.model.coefficients is not p or refuse_own(self.model):
            raise RuntimeError("callback: changed the model, or exchanged its parameters")
        assert self.out is not None
        now = p.detach().view(self.out.params.shape)
        changed = now != self.out.params.to(p.dtype)
        self.out.params[changed] = now[changed].to(self.out.params.dtype)
        (options,) = self.rule()
        self.run = replace(run, options=options)

    def interrupt(self) -> None:
        """A launch that was interrupted has left nothing."""
