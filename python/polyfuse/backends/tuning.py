"""How a launch over large data is fastest on this GPU: measured once for a kernel and a dtype."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

OCCUPANCIES = (1, 2, 4, 8)  # programs of one multiprocessor; none needs a compilation of its own
LARGE = 1 << 26  # bytes that a launch reads: of less, it takes longer than what there is to gain
LONG = 1 << 40  # the same where every choice has to be compiled
ROUNDS = 3

Choice = TypeVar("Choice")
_fastest: dict[Hashable, int] = {}


def index_of_fastest(
    key: Hashable, choices: Sequence[Choice], seconds: Callable[[Choice], float]
) -> int:
    """Of the choice that takes least, measured when the key comes for the first time."""
    if key not in _fastest:
        times = [seconds(choice) for choice in choices]
        _fastest[key] = times.index(min(times))
    return _fastest[key]


def fastest(
    x: torch.Tensor, kernel: Hashable, choices: Sequence[Choice], run: Callable[[Choice], None]
) -> Choice | None:
    """The fastest of the choices for a launch over x; None where there is no GPU to measure on.

    Args:
        kernel: what, besides the dtype, the kernel is compiled for.
        run: launches it by a choice; as often as one likes, to the same effect or none.
    """
    if x.device.type != "cuda":
        return None
    key = x.device, x.dtype, kernel
    if torch.cuda.is_current_stream_capturing():
        return choices[_fastest[key]] if key in _fastest else None

    def seconds(choice: Choice) -> float:
        run(choice)  # compiles, where nobody has yet
        times = []
        for _ in range(ROUNDS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run(choice)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return min(times)

    with torch.cuda.device(x.device):
        return choices[index_of_fastest(key, choices, seconds)]
