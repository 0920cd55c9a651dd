"""The training loop of a model on a device: one launch an iteration, and nothing is waited for.

What csrc/step.cpp compares by value is compared by version here: the numbers stay on the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import increment_version

from . import _C
from ._check import GONE
from .backends.device import (
    DeviceMap,
    DeviceRule,
    constants_of,
    device_rule,
    loss_in,
    state_size,
)
from .backends.resident import unheld
from .backends.tables import OnDevice, tables
from .criteria import L1, MSE, Criterion
from .rules import Options, Rule
from .stacked import Stacked
from .symbolic import Traced

GIVEN, UNLIKE, ACCUMULATE, HELD, STALE = range(5)  # what give_grads answers


class Launched(NamedTuple):
    """One launch: what it computed, and what that rests on."""

    objective: Any
    state: torch.Tensor  # as `backends.device` lays it out
    grads: list[torch.Tensor]
    versions: list[int]  # of parameters, gradients and what is kept
    steps: bool  # there are next parameters,
    in_place: bool  # and they are in place already


def share(criterion: Criterion, count: int) -> Criterion:
    """One of `count` equal parts of it, without the weights of its samples."""
    return _criterion(criterion.kind, criterion.options, criterion.factor / count)


_criterion = lru_cache(maxsize=64)(Criterion)


def mean_of_weights(objective: Any) -> bool:
    """Whether a mean is over the weights: of torch's own, those of two criteria are; the others'
    count samples."""
    torchs = objective.weight is not None and not objective.weighted_mean
    return not torchs or objective.criterion.kind in (MSE, L1)


class DeviceLoop(_C.Loop):
    """`_C.Loop` with its arithmetic, and its numbers, on a device."""

    def __init__(self, plan: Any, traced: Traced, runner: Any, watched: list, of_y: Any):
        first = traced.tensors[0]
        super().__init__(
            plan, traced.tensors, traced.stretches, first.dtype == torch.float64, watched, of_y
        )
        self.traced, self.runner, self.device = traced, runner, first.device
        self.map = DeviceMap.of(traced, first.device)
        self.rule: DeviceRule | None = None
        self.options: dict[int, Options] = {}  # of the tensors that an optimizer holds
        self.kept = OnDevice(len(traced.tensors), {}, first.device)
        self.updates, self.owner, self.held = False, None, frozenset[int]()
        self.moments: Any = None
        # Where the next parameters go: they take each other's place in `install`.
        self.spares: list[Any] = []
        self.last: Launched | None = None
        # Where launches leave gradients and all else, while nobody else holds what was there.
        self.own_grads: list[torch.Tensor] = []
        self.states: list[torch.Tensor] = []
        self.captured: list[Any] = []  # what graphs read and write

    # -- the optimizer and the data

    def set_rule(self, rule: Rule) -> None:
        self.follow(rule)
        slots = zip(self.traced.slots, rule, strict=True)
        self.options = {t: options for (t, _), options in slots if options is not None}

    def follow(self, rule: Rule) -> None:
        self.rule = device_rule(rule, self.device, self.traced.n_params)

    def bind(self, owner: Any, *, held: Any = (), kept: Any = (), **rest: Any) -> None:
        super().bind(owner, held=list(held), kept=list(kept), **rest)
        self.updates = owner is not None and rest.get("updates", False)
        self.owner = owner
        number = {id(t): i for i, t in enumerate(self.traced.tensors)}
        mine = {number[id(t)]: of for t, of in zip(held, kept, strict=True) if self.updates}
        self.held = frozenset(mine)
        self.kept = OnDevice(len(number), mine, self.device)
        self.kept.make_spares()
        tensors = enumerate(self.traced.tensors)
        self.spares = [torch.empty_like(t, requires_grad=False) if i in mine else None
                       for i, t in tensors]  # fmt: skip
        if owner is None:
            self.follow((None,))

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
            return torch.cat([rows[t][e : e + count] for t, e, count in self.traced.stretches])

    # -- launch and update

    def launch(self, objective: Any, threads: int) -> bool:
        forward = objective.forward
        if not (self.sees(forward.x) and self.sees_target(objective.y)):
            return False
        if not self.unchanged_since(forward):
            raise RuntimeError(GONE.format("a parameter"))
        if self.capturing():
            self.refuse_capture()
        steps = self.knows_step(objective)
        in_place = steps and objective.in_step and self.steps_alone()
        grads = self.gradients_of_launch(in_place)
        state = self.compute(objective, grads, steps, in_place)
        self.last = Launched(objective, state, grads, [], steps, in_place)
        self.last.versions.extend(self._versions(self.last))
        objective.state = state
        return True

    def knows_step(self, objective: Any) -> bool:
        """Whether a launch computes the next parameters."""
        return self.updates

    def compute(
        self, objective: Any, grads: list[torch.Tensor], steps: bool, in_place: bool
    ) -> torch.Tensor:
        """The launch itself; returns what it leaves besides gradients and the next parameters."""
        self.kept.refresh()
        next_ones = (None, None) if in_place else (self.spares, self.kept.spares)
        table = tables(self.traced, self.traced.tensors, grads, self.kept.rows, *next_ones)
        forward, n_params = objective.forward, self.traced.n_params
        y, weight, mean = objective.y, objective.weight, objective.mean
        criterion = objective.criterion.over_rows_of(y)
        if mean and not mean_of_weights(objective):
            criterion, mean = share(criterion, y.numel()), False
        if not isinstance(self.traced, Stacked):
            y, weight = y.reshape(-1), None if weight is None else weight.reshape(-1)
        moments = self.moments if criterion.squared and weight is None else None
        state = self.runner.step(
            self.map, self.rule, table, forward.fused.rows_of(forward.x), y, self.traced,
            mean, moments, criterion, weight, self.buffer(state_size(n_params)),
        )  # fmt: skip
        forward.before = state[2 * n_params : 3 * n_params]
        if self.capturing():
            constants = constants_of(self.traced, criterion, self.device)
            self.captured.append((table, self.rule, grads, moments, constants))
        return state

    def loss_of(self, objective: Any) -> torch.Tensor:
        """The loss that a launch has left, of shape ()."""
        return loss_in(objective.state, self.traced.n_params)

    def steps_alone(self) -> bool:
        """Whether nothing comes between a launch that zero_grad, backward and step follow at once,
        and what they make of it."""
        return (
            self.updates
            and "zero_grad" not in vars(self.owner)
            and self.as_trainable()
            and all(t.grad is None or i in self.held for i, t in enumerate(self.traced.tensors))
        )

    def gradients_of_launch(self, cleared: bool) -> list[torch.Tensor]:
        """Where it leaves them; cleared: what the parameters have now is given up before anybody
        looks."""
        tensors, grads = self.traced.tensors, self.own_grads
        if not grads or not all(
            unheld(grads, i, cleared and t.grad is grads[i]) for i, t in enumerate(tensors)
        ):
            self.own_grads = [torch.empty_like(t, requires_grad=False) for t in tensors]
        return self.own_grads

    def buffer(self, size: int) -> torch.Tensor:
        """Where a launch leaves all else; a graph's own is among what the graph keeps."""
        held = self.states
        capturing = self.capturing()
        if capturing or not (held and len(held[0]) == size and unheld(held, 0, False)):
            new = torch.empty(size, dtype=torch.float64, device=self.device)
            if capturing:
                return new
            self.states = [new]
        return self.states[0]

    def capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def refuse_capture(self) -> None:
        """Raises where a graph could not replay what the launch rests on."""
        if self.kept.copied:
            raise RuntimeError(
                f"optimizer: {type(self.owner).__name__} counts its steps in the host's memory, "
                "where a CUDA graph does not; expected one made with fused=True"
            )

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
        if last is None or not last.steps or not self.bound_to(owner):
            return False
        tensors = self.traced.tensors
        pairs = [(t, g) for t, g in zip(tensors, last.grads, strict=True) if t.requires_grad]
        if any(t.grad is not g for t, g in pairs):
            return False
        unchanged = last.versions == self._versions(last)
        if not (last.in_place or self.move_on(last, unchanged)):
            return False
        self.kept.advance(self.options)
        increment_version([*(t for t, _ in pairs), *self.kept.on_device()])
        return True

    def move_on(self, last: Launched, unchanged: bool) -> bool:
        """To the next parameters: by an exchange of memory, or a launch; False: torch is to."""
        spares = self.kept.exchangeable()
        # What a graph has captured reads and writes the memory of then.
        if unchanged and not self.captured and self.exchange(self.spares, spares):
            self.kept.exchanged(spares)
            return True
        return self.move(last, unchanged)

    def move(self, last: Launched, unchanged: bool) -> bool:
        """The same where parameters stay where they lie."""
        self.kept.refresh()
        tensors = self.traced.tensors
        table = tables(self.traced, tensors, last.grads, self.kept.rows)
        if self.capturing():
            self.captured.append(table)
        if unchanged:
            self.runner.store(self.map, self.rule, table, last.state, tensors[0].dtype)
        else:
            self.runner.update(self.map, self.rule, table, tensors[0].dtype)
        return True
