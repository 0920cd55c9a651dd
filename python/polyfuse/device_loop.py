"""The training loop of a model on a device: one launch an iteration, and nothing is waited for.

What csrc/step.cpp compares by value is compared by version here: the numbers stay on the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.graph import increment_version

from . import _C
from ._check import GONE
from .backends.device import DeviceMap, DeviceRule, device_rule
from .backends.tables import OnDevice, tables
from .logits import Logits
from .rules import Options, Rule
from .symbolic import Traced

GIVEN, UNLIKE, ACCUMULATE, HELD, STALE = range(5)  # what give_grads answers


class Launched(NamedTuple):
    """One launch: what it computed, and what that rests on."""

    objective: Any
    state: torch.Tensor  # as `backends.device` lays it out
    grads: list[torch.Tensor]
    versions: list[int]  # of parameters, gradients and what is kept


class DeviceLoop(_C.Loop):
    """`_C.Loop` with its arithmetic, and its numbers, on a device."""

    def __init__(self, plan: Any, traced: Traced, runner: Any, watched: list):
        first = traced.tensors[0]
        super().__init__(
            plan, traced.tensors, list(traced.slots), first.dtype == torch.float64, watched, None
        )
        self.traced, self.runner, self.device = traced, runner, first.device
        self.map = DeviceMap.of(traced, first.device)
        self.rule: DeviceRule | None = None
        self.options: dict[int, Options] = {}  # of the tensors that an optimizer holds
        self.kept = OnDevice(len(traced.tensors), {}, first.device)
        self.updates, self.owner = False, None
        self.moments: Any = None
        # Where the next parameters go: they take each other's place in `install`.
        self.spares: list[Any] = []
        self.last: Launched | None = None

    # -- the optimizer and the data

    def set_rule(self, rule: Rule) -> None:
        self.rule = device_rule(rule, self.device)
        slots = zip(self.traced.slots, rule, strict=True)
        self.options = {t: options for (t, _), options in slots if options is not None}

    def bind(self, owner: Any, *, held: Any = (), kept: Any = (), **rest: Any) -> None:
        super().bind(owner, held=list(held), kept=list(kept), **rest)
        self.updates = owner is not None and rest.get("updates", False)
        self.owner = owner
        number = {id(t): i for i, t in enumerate(self.traced.tensors)}
        mine = {number[id(t)]: of for t, of in zip(held, kept, strict=True) if self.updates}
        self.kept = OnDevice(len(number), mine, self.device)
        self.kept.make_spares()
        tensors = enumerate(self.traced.tensors)
        self.spares = [torch.empty_like(t, requires_grad=False) if i in mine else None
                       for i, t in tensors]  # fmt: skip
        if owner is None:
            self.rule = device_rule((None,) * len(self.traced.slots), self.device)

    def settle(self, moments: Any, x_version: int, y_version: int) -> None:
        super().settle(None, x_version, y_version)
        self.moments = moments

    # -- one call of the model

    def pool_prediction(self, wrapper: Any, record: Any) -> None:
        """Nothing is pooled: what is pooled, C++ answers for, with arithmetic on the host."""

    pool_loss = pool_prediction

    def begin(self, forward: Any, x: torch.Tensor) -> None:
        forward.start(x)
        forward.versions = [t._version for t in self.traced.tensors]
        forward.before = None

    def unchanged_since(self, forward: Any) -> bool:
        return forward.versions == [t._version for t in self.traced.tensors]

    def params_of(self, forward: Any) -> torch.Tensor:
        """The scalar parameters as they were at model(x), float64 [P]."""
        if forward.before is None:
            if not self.unchanged_since(forward):
                raise RuntimeError(GONE.format("a parameter"))
            forward.before = self.gather()
        return forward.before

    def gather(self) -> torch.Tensor:
        """The scalar parameters, float64 [P]."""
        with torch.no_grad():
            rows = [t.reshape(-1).double() for t in self.traced.tensors]
            return torch.stack([rows[t][e] for t, e in self.traced.slots])

    # -- launch and update

    def launch(self, objective: Any, threads: int) -> bool:
        forward = objective.forward
        if not (self.sees(forward.x) and self.sees_target(objective.y)):
            return False
        if not self.unchanged_since(forward):
            raise RuntimeError(GONE.format("a parameter"))
        grads = [torch.empty_like(t, requires_grad=False) for t in self.traced.tensors]
        self.kept.refresh()
        table = tables(
            self.traced, self.traced.tensors, grads, self.kept.rows, self.spares, self.kept.spares
        )
        criterion = objective.criterion.over_rows_of(forward.x)
        weight = None if objective.weight is None else objective.weight.reshape(-1)
        moments = self.moments if criterion.squared and weight is None else None
        y = objective.y if isinstance(self.traced, Logits) else objective.y.reshape(-1)
        state = self.runner.step(
            self.map, self.rule, table, forward.x.reshape(-1), y, self.traced,
            objective.mean, moments, criterion, weight,
        )  # fmt: skip
        objective.state = state
        n_params = len(self.traced.slots)
        forward.before = state[2 * n_params : 3 * n_params]
        self.last = Launched(objective, state, grads, [])
        self.last.versions.extend(self._versions(self.last))
        return True

    def _versions(self, launched: Launched) -> list[int]:
        of = (*self.traced.tensors, *launched.grads, *self.kept.originals)
        return [t._version for t in of]

    def holds(self, objective: Any) -> bool:
        return self.last is not None and self.last.objective is objective

    def gradients(self) -> list[torch.Tensor]:
        assert self.last is not None
        return [g.clone() for g in self.last.grads]

    def give_grads(self, objective: Any) -> int:
        if not self.holds(objective) or self.last is None:
            return STALE
        tensors = self.traced.tensors
        if any(t._backward_hooks or t._post_accumulate_grad_hooks for t in tensors):
            return UNLIKE
        if any(t.grad is not None for t in tensors):
            return ACCUMULATE
        for t, g in zip(tensors, self.last.grads, strict=True):
            if t.requires_grad:
                t.grad = g
        return GIVEN

    def offer(self) -> None:
        pending = getattr(self.owner, "_pending", None)
        if self.updates and pending is not None and self not in pending:
            pending.append(self)

    def install(self, owner: Any) -> bool:
        """Takes the step that the launch has computed, or one from what lies there now."""
        last, self.last = self.last, None
        if last is None or not self.updates or not self.bound_to(owner):
            return False
        tensors = self.traced.tensors
        pairs = [(t, g) for t, g in zip(tensors, last.grads, strict=True) if t.requires_grad]
        if any(t.grad is not g for t, g in pairs):
            return False
        unchanged = last.versions == self._versions(last)
        capturing = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        kept_spares = self.kept.exchangeable()
        if not capturing and unchanged and self.exchange(self.spares, kept_spares):
            self.kept.exchanged(kept_spares)
        else:
            self.kept.refresh()
            table = tables(self.traced, tensors, last.grads, self.kept.rows)
            dtype = tensors[0].dtype
            if unchanged:
                self.runner.store(self.map, self.rule, table, last.state, dtype)
            else:
                self.runner.update(self.map, self.rule, table, dtype)
        self.kept.advance(self.options)
        increment_version([*(t for t, _ in pairs), *self.kept.on_device()])
        return True
