"""A run, launch by launch: what happens between launches, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from .problem import Report
from .rules import Rule
from .schedulers import Changes, Schedulers

Callback = Callable[[int, Any], Any]


class Between(NamedTuple):
    """What `fit` was asked to do between epochs."""

    scheduler: Any = None
    callback: Callback | None = None
    progress: bool = False


class Course(Protocol):
    """What `train` takes through its epochs."""

    done: int  # epochs whose outcome is here
    loss: Any  # after them: a number, or that of every fit [*batch_shape]
    previous: Any  # of the last epoch, before its step
    max_changes: int  # of the rule, that one launch follows

    def rule(self) -> Rule:
        """The optimizer's rule, as it is now."""

    def launch(self, epochs: int, rule: Rule | None, changes: Changes) -> Report:
        """Takes up to so many epochs; rule None: as it was."""

    def commit(self) -> None:
        """Leaves parameters, .grad and the optimizer's state as the loop would."""

    def take_over(self) -> None:
        """What somebody changed since."""

    def interrupt(self) -> None:
        """Back to where the last whole launch ended."""


class Trained(NamedTuple):
    reason: str  # why it ended
    history_epochs: np.ndarray  # [M]
    history: list[Any]  # the losses after them, [M] or [M, *batch_shape] in parts


def train(
    course: Course, epochs: int, every: int, schedulers: Schedulers | None, between: Between
) -> Trained:
    """All epochs, or up to where something ends them; then the course is committed."""
    callback = between.callback
    bar = progress_bar(epochs) if between.progress else None
    reason, recorded = "epochs", list[tuple[int, Any]]()
    try:
        while True:
            first, stop = course.done, epochs
            rule: Rule | None = None
            changes: Changes = ()
            if callback is not None or bar is not None:
                pause = every or max(1, epochs // 100)
                stop = min(epochs, (first // pause + 1) * pause)
            if schedulers is not None:
                taken, rule, changes = schedulers.ahead(stop - first, course.max_changes)
                stop = first + taken
            report = course.launch(stop - first, rule, changes)
            if every:
                recorded.append((-(-first // every) * every, report.recorded))
            if schedulers is not None:
                schedulers.settle(course.done, level(course.previous))
            if bar is not None:
                bar.update(report.epochs)
                bar.set_postfix(loss=f"{level(course.loss):.6g}")
            if report.converged:
                reason = "converged"
                break
            if callback is not None and (course.done % every == 0 or course.done == epochs):
                course.commit()
                stop_now = callback(course.done, course.loss)
                course.take_over()
                if stop_now:
                    reason = "callback"
                    break
            if course.done >= epochs:
                break
    except KeyboardInterrupt:
        reason = "interrupted"
        course.interrupt()
    except BaseException:
        if schedulers is not None:  # back from where they were stepped ahead to
            schedulers.settle(course.done, level(course.previous))
        raise
    finally:
        if bar is not None:
            bar.close()
    if schedulers is not None:
        schedulers.settle(course.done, level(course.previous))
    course.commit()
    at = [e for first, part in recorded for e in range(first, first + len(part) * every, every)]
    history: list[Any] = [part for _, part in recorded]
    if reason != "interrupted" and at[-1:] != [course.done]:
        at.append(course.done)
        last = course.loss
        history.append(last[None] if isinstance(last, torch.Tensor) else np.array([last]))
    return Trained(reason, np.array(at, dtype=np.int64), history)


def level(loss: Any) -> float:
    """The loss as one number: of a batch, the mean of those fits that have one."""
    return float(loss[loss.isfinite()].mean()) if isinstance(loss, torch.Tensor) else loss


def progress_bar(epochs: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress: needs tqdm; pip install 'polyfuse[progress]'") from error
    return tqdm(total=epochs, unit="epoch")
