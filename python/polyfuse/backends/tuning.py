"""How many programs read large data fastest on this GPU: measured once for a kernel and a dtype."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

OCCUPANCIES = (1, 2, 4, 8)  # programs of one multiprocessor; none needs a compilation of its own
LARGE = 1 << 26  # bytes of x and y: of less, launches take longer than what there is to gain
ROUNDS = 3

_fastest: dict[Hashable, int] = {}


def fastest(key: Hashable, choices: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The choice that takes least, measured when the key comes for the first time."""
    if key not in _fastest:
        _fastest[key] = min(choices, key=seconds)
    return _fastest[key]


def occupancy(x: torch.Tensor, kernel: Hashable, run: Callable[[int], None]) -> int | None:
    """The fastest of OCCUPANCIES for a pass over x; None where there is nothing to measure or gain.

    Args:
        kernel: what, besides the dtype, the kernel is compiled for.
        run: launches it with so many programs; as often as one likes, to the same effect.
    """
    if x.device.type != "cuda" or 2 * x.nbytes < LARGE:
        return None
    if torch.cuda.is_current_stream_capturing():
        return _fastest.get((x.device, x.dtype, kernel))

    def seconds(choice: int) -> float:
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
        return fastest((x.device, x.dtype, kernel), OCCUPANCIES, seconds)
