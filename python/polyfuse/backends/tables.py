"""Where a device's kernels find parameters, gradients and what optimizers keep: by address.

Tables [11, P] int64 hold, of each scalar parameter, the addresses of itself, its gradient and the
KEPT numbers that its rule keeps, then of where the next parameter and those numbers go; 0: none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .. import _C
from ..rules import KEPT, METHODS, Options, row_of
from ..symbolic import Traced

Rows = Sequence[Sequence[Any]]  # [KEPT][T]: tensors, or None


class Tables(NamedTuple):
    addresses: torch.Tensor  # [11, P] int64
    single: int  # bit r: number r of what is kept lies there as float32
    memory: torch.Tensor | None = None  # that the addresses lie in, where nobody else keeps it

    def elsewhere(self) -> Tables:
        """The same of other memory, which holds 0."""
        at = self.addresses
        memory = torch.zeros(at.numel(), dtype=torch.float64, device=at.device)
        places = memory.data_ptr() + 8 * torch.arange(at.numel(), device=at.device).view_as(at)
        return Tables(torch.where(at == 0, 0, places), self.single, memory)


_tables: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()
_KEPT_TABLES = 512  # two of every loop


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of the host's values on the device, for which nobody waits, not even another stream:
    not for what is kept from launch to launch."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return values.to(device)  # which a graph, that could not replay it, refuses
    return values.pin_memory().to(device, non_blocking=True)


def nothing(count: int) -> list[list[Any]]:
    """Rows of `count` tensors of which nothing is kept."""
    return [[None] * count for _ in range(KEPT)]


def tables(
    model: Traced, params: Sequence[Any], grads: Sequence[Any], kept: Rows,
    next_params: Sequence[Any] | None = None, next_kept: Rows | None = None,
) -> Tables:  # fmt: skip
    """Of these tensors; the next parameters and what is kept go in place, unless told otherwise."""
    device = params[0].device
    to = params if next_params is None else next_params
    kept_to = kept if next_kept is None else next_kept
    rows = [
        tuple(0 if of[t] is None else address(of[t], e) for t, e in model.places)
        for of in (params, grads, *kept, to, *kept_to)
    ]
    key = (device, *rows)
    found = _tables.get(key)
    if found is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph captures a step like the last two before it: on tensors that lie "
                "where they lay, with gradients that nobody else holds"
            )
        found = _tables[key] = torch.tensor(rows, dtype=torch.int64, device=device)
        if len(_tables) > _KEPT_TABLES:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    single = sum(
        any(t is not None and t.dtype == torch.float32 for t in row) << r
        for r, row in enumerate(kept_to)
    )
    return Tables(found, single)


def address(t: torch.Tensor, element: int) -> int:
    """Of an element; of a tensor of one, that one belongs to all."""
    offset: int = element * t.itemsize if t.numel() > 1 else 0
    return t.data_ptr() + offset


def lies_apart(t: torch.Tensor, device: torch.device) -> bool:
    """Whether kernels of the device cannot reach what the optimizer keeps there."""
    return t.device != device


class Copied(NamedTuple):
    """A number that torch keeps in the host's memory, such as the count of steps."""

    row: int
    tensor: int
    host: torch.Tensor


class OnDevice:
    """What an optimizer keeps of a model's tensors, within reach of a device's kernels.

    Args:
        count: of the model's tensors T.
        kept: of those that an optimizer holds, by number, its tensors (None: there is none).
    """

    def __init__(
        self, count: int, kept: Mapping[int, Sequence[torch.Tensor | None]], device: torch.device
    ):
        self.rows, self.spares = nothing(count), nothing(count)  # spares: see `make_spares`
        self.originals = [t for of in kept.values() for t in of if t is not None]
        self.copied: list[Copied] = []
        for number, of in kept.items():
            for r, t in enumerate(of):
                if t is not None and lies_apart(t, device):
                    self.copied.append(Copied(r, number, t))
                    t = torch.empty_like(t, device=device)
                self.rows[r][number] = t
        self.seen: list[int] = []

    def make_spares(self) -> None:
        """Where the next numbers go, to take the place of these."""
        self.spares = [[None if t is None else torch.empty_like(t) for t in row]
                       for row in self.rows]  # fmt: skip

    def on_device(self) -> list[torch.Tensor]:
        """What the optimizer keeps there itself."""
        hosts = {id(c.host) for c in self.copied}
        return [t for t in self.originals if id(t) not in hosts]

    def refresh(self) -> None:
        """Copies the host's numbers where they have changed."""
        versions = [c.host._version for c in self.copied]
        if versions != self.seen:
            for c in self.copied:
                self.rows[c.row][c.tensor].copy_(c.host)
            self.seen = versions

    def exchangeable(self) -> list[torch.Tensor | None]:
        """[T, KEPT], flat: the spares of what the optimizer keeps on the device itself."""
        copies = {(c.row, c.tensor) for c in self.copied}
        return [
            None if (r, t) in copies else row[t]
            for t in range(len(self.spares[0]))
            for r, row in enumerate(self.spares)
        ]

    def exchanged(self, spares: list[Any]) -> None:
        """Takes note of an exchange with those of `exchangeable`, which now hold the old memory."""
        for i, spare in enumerate(spares):
            if spare is not None:
                self.spares[i % KEPT][i // KEPT] = spare
        for r, t, _ in self.copied:
            self.rows[r][t], self.spares[r][t] = self.spares[r][t], self.rows[r][t]

    def set(self, values: dict[int, Any]) -> None:
        """The host's numbers: values [KEPT] of each tensor that has some."""
        with torch.no_grad():
            for c in self.copied:
                c.host.fill_(values[c.tensor][c.row])
        self.seen = [c.host._version for c in self.copied]

    def advance(self, options: dict[int, Options]) -> None:
        """The host's numbers after a step that the device has taken; options: of each tensor."""
        before: dict[int, list[float]] = {}
        for c in self.copied:
            before.setdefault(c.tensor, [0.0] * KEPT)[c.row] = c.host.item()
        self.set({t: _C.advance(row_of(options[t]), numbers) for t, numbers in before.items()})


def has_place(value: Any, t: torch.Tensor, scalar: bool) -> bool:
    """Whether an update can write to a tensor of the optimizer's state of t."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_contiguous()
        and (value.device == t.device or (scalar and value.device.type == "cpu"))
        and value.shape == (() if scalar else t.shape)
        and (value.dtype in (torch.float32, torch.float64) if scalar else value.dtype == t.dtype)
    )


def of_one_dtype(kept: Sequence[Sequence[torch.Tensor | None]]) -> bool:
    """Whether each number of what is kept of several tensors lies there in one dtype."""
    return all(len({t.dtype for t in row if t is not None}) <= 1 for row in zip(*kept, strict=True))


def method_of(rule: Sequence[Options | None]) -> int:
    """The number of the rule's method; 0 where no optimizer holds any parameter."""
    return next((METHODS[type(o)].number for o in rule if o is not None), 0)
