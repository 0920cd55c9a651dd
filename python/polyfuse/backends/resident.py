"""The state of a run that stays on the device: launches read and write it by address."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from ..problem import Schedule
from ..rules import SgdOptions, kept_of, scalar_place
from .device import StateBuffer, n_recorded, state_size
from .tables import OnDevice, has_place, of_one_dtype, tables


class Resident(StateBuffer):
    """Parameters, gradients and what the optimizer keeps: where the first launch finds them, and
    every launch leaves them. From one launch to the next they are kept in float64.

    Args:
        known: the model's trace.
        held: what the optimizer holds of the model.
        kept: of each tensor that it holds, by number, what it keeps; it gets those in `new` with
            `commit`.
        new: (tensor's number, name in the optimizer's state) of what it does not keep yet.
    """

    def __init__(
        self, known: Any, held: Any, kept: dict[int, list[Any]], new: dict[tuple[int, str], Any]
    ):
        super().__init__(len(known.order))
        tensors, self.device = known.tensors, known.device
        self.new, self.seen = new, where(known, held)
        self.kept = OnDevice(len(tensors), kept, self.device)
        self.grads = [
            torch.empty_like(t, requires_grad=False) if t.requires_grad else None for t in tensors
        ]
        unfilled = {id(value) for (_, name), value in new.items() if name == "momentum_buffer"}
        start = [[None if id(t) in unfilled else t for t in row] for row in self.kept.rows]
        self.tables = tables(known.traced, tensors, self.grads, start, None, self.kept.rows)
        self.restart()

    def restart(self) -> None:
        """The next launch is the first of a run."""
        self.kept.refresh()
        self.load = self.first = True
        self.done, self.loss = 0, math.nan
        # Of a launch whose outcome nobody has taken yet.
        self.first_epoch: int | None = None
        self.engine = ""

    def serves(self, known: Any, held: Any) -> bool:
        """Whether all lies where it lay, and nobody else holds the gradients of the last run."""
        return (
            not self.new
            and self.seen == where(known, held)
            and all(
                self.grads[i] is None or unheld(self.grads, i, t.grad is self.grads[i])
                for i, t in enumerate(known.tensors)
            )
        )

    def begin(self, schedule: Schedule) -> None:
        size = state_size(self.n_params, n_recorded(schedule))
        self.load, self.first = self.first, False
        if self.buffer is None or self.buffer.numel() < size:
            buffer = torch.empty(size, dtype=torch.float64, device=self.device)
            if self.buffer is not None:
                buffer[: self.buffer.numel()] = self.buffer
            self.buffer = buffer
        self.forget()

    def launched(self, schedule: Schedule, engine: str) -> None:
        self.first_epoch, self.engine = schedule.first_epoch, engine

    def finish(self) -> None:
        """Takes note of what the last launch has done; waits for it."""
        if self.first_epoch is None:
            return
        outcome = self.outcome()
        # A run on moments that are not finite comes to nothing.
        if self.engine == "stream" or math.isfinite(outcome["square"]):
            self.done, self.loss = self.first_epoch + int(outcome["epochs"]), outcome["loss"]
        self.first_epoch = None

    def left(self) -> tuple[Resident, int, float] | None:
        """What the launches have left, as `fit` keeps it; None where nothing was done."""
        self.finish()
        return (self, self.done, self.loss) if self.done else None

    def copy(self) -> Resident:
        return self

    @property
    def params(self) -> np.ndarray:
        return self.rows()[0]

    def commit(self, known: Any, held: Any) -> None:
        """Hands on what the loop would have left: gradients, and all that the optimizer keeps."""
        for t, grad in zip(known.tensors, self.grads, strict=True):
            if grad is not None:
                t.grad = grad
        for (number, name), value in self.new.items():
            held.optimizer.state[known.tensors[number]][name] = value
        if self.kept.copied:
            values, at = self.rows()[3:], known.at
            self.kept.set({c.tensor: values[:, at[c.tensor][0]] for c in self.kept.copied})
        owned = [known.tensors[t] for t in held.tensors]
        increment_version([*owned, *self.kept.on_device()])
        known.resident = self


def where(known: Any, held: Any) -> tuple[Any, ...]:
    """The tensors of a run, and where they lie."""
    places: list[Any] = [id(held.optimizer), *(t.data_ptr() for t in known.tensors)]
    for t, options in held.tensors.items():
        there = held.optimizer.state.get(known.tensors[t], {})
        for number in kept_of(options):
            value = None if number is None else there.get(number.name)
            places += (t, id(value), value.data_ptr()) if isinstance(value, torch.Tensor) else (t,)
    return tuple(places)


def unheld(grads: list[Any], i: int, given: bool) -> bool:
    """Whether nobody but the list, and where given a parameter, holds a gradient or its memory."""
    return holders(grads, i) == _FEWEST[given]


def holders(grads: list[Any], i: int) -> tuple[int, int]:
    storage = grads[i].untyped_storage()
    return sys.getrefcount(grads[i]), torch._C._storage_Use_Count(storage._cdata)


def fewest(given: bool) -> tuple[int, int]:
    """References to a gradient that nobody else holds, which vary with torch."""
    grads, owner = [torch.empty(1)], torch.empty(1, requires_grad=True)
    owner.grad = grads[0] if given else None
    return holders(grads, 0)


_FEWEST = {given: fewest(given) for given in (False, True)}


def resident(known: Any, held: Any) -> Resident | None:
    """Of the model and its optimizer as they are; None where kernels cannot write what it keeps."""
    last, known.resident = known.resident, None
    if last is not None and last.serves(known, held):
        last.restart()
        return last
    kept: dict[int, list[Any]] = {}
    new: dict[tuple[int, str], Any] = {}
    for t, options in held.tensors.items():
        tensor = known.tensors[t]
        there = held.optimizer.state.get(tensor, {})
        values = kept[t] = []
        for number in kept_of(options):
            value = None if number is None else there.get(number.name)
            if number is not None and value is None:
                value = new[t, number.name] = started(number, options, tensor, held.optimizer)
            elif number is not None and not has_place(value, tensor, number.scalar):
                return None
            values.append(value)
    if not of_one_dtype(list(kept.values())):
        return None
    return Resident(known, held, kept, new)


def started(number: Any, options: Any, tensor: torch.Tensor, optimizer: Any) -> torch.Tensor:
    """What an optimizer keeps before its first step, where torch keeps it."""
    if number.scalar:
        dtype, device = scalar_place(optimizer, tensor)
        return torch.tensor(number.start(options), dtype=dtype, device=device)
    if isinstance(options, SgdOptions):
        return torch.empty_like(tensor, requires_grad=False)
    return torch.full_like(tensor, number.start(options), requires_grad=False)
