"""torch's learning-rate schedulers in `fit`: stepped ahead of a launch, which follows the table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .rules import Rule

MAX_AHEAD = 1 << 17  # epochs: a launch that comes back early has those stepped again
Changes = tuple[tuple[int, Rule], ...]  # (epochs from the launch's start, the rule from then on)


class Schedulers:
    """Schedulers that take a step after every epoch.

    Args:
        given: a scheduler or a list of them.
        optimizer: whose groups they change.
        rule_of: gives the optimizer's rule as its groups are now.

    Raises:
        TypeError: for what is no scheduler.
        ValueError: for the scheduler of another optimizer.
    """

    def __init__(self, given: Any, optimizer: torch.optim.Optimizer, rule_of: Callable[[], Rule]):
        listed = given if isinstance(given, (list, tuple)) else [given]
        for s in listed:
            if not isinstance(s, LRScheduler):
                raise TypeError(
                    f"scheduler: expected a torch.optim.lr_scheduler, got {type(s).__name__}"
                )
            if getattr(s, "optimizer", optimizer) is not optimizer:
                raise ValueError("scheduler: it belongs to another optimizer than the one given")
        self.listed: list[Any] = list(listed)
        self.needs_loss = any(isinstance(s, ReduceLROnPlateau) for s in listed)
        self.optimizer, self.rule_of = optimizer, rule_of
        self.settled = 0  # epochs that the schedulers have stepped after
        self.ahead_by = 0
        self.saved: Any = None

    def ahead(self, epochs: int, most: int) -> tuple[int, Rule, Changes]:
        """Steps up to `epochs` ahead, over at most so many changes of the rule.

        Returns how many epochs, the rule of the first of them, and its changes.
        """
        rule = self.rule_of()
        if self.needs_loss:
            return min(epochs, 1), rule, ()
        self.saved = copy.deepcopy([s.state_dict() for s in self.listed]), self._options()
        changes: list[tuple[int, Rule]] = []
        options = self._options()
        epochs = min(epochs, MAX_AHEAD)
        while self.ahead_by < epochs:
            self._step()
            self.ahead_by += 1
            if (now := self._options()) != options and self.ahead_by < epochs:
                if len(changes) == most:
                    break
                changes.append((self.ahead_by, self.rule_of()))
                options = now
        return self.ahead_by, rule, tuple(changes)

    def settle(self, done: int, loss: float = float("nan")) -> None:
        """To where a run of `done` epochs leaves them; loss: that of the last epoch."""
        steps = done - self.settled
        if self.needs_loss:
            for _ in range(steps):
                self._step(loss)
        elif steps != self.ahead_by:
            states, options = self.saved
            for s, state in zip(self.listed, states, strict=True):
                s.load_state_dict(state)
            for group, values in zip(self.optimizer.param_groups, options, strict=True):
                for name, value in values.items():
                    if isinstance(group[name], torch.Tensor):
                        group[name].fill_(value)
                    else:
                        group[name] = value
            for _ in range(steps):
                self._step()
        self.settled, self.ahead_by = done, 0

    def _step(self, loss: float = float("nan")) -> None:
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # the launch is to come
        for s in self.listed:
            if isinstance(s, ReduceLROnPlateau):
                s.step(loss)
            else:
                s.step()

    def _options(self) -> list[dict[str, Any]]:
        """What a scheduler may change."""
        return [
            {
                name: v.item() if isinstance(v, torch.Tensor) else v
                for name, v in group.items()
                if name in ("lr", "momentum", "betas")
            }
            for group in self.optimizer.param_groups
        ]
