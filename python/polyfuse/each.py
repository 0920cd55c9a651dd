"""Statistics of many fits: of every output, or of every fit of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .statistics import Inference

KEPT = 64  # statistics, of those that were asked for last


class Each:
    """Statistics of every output, or of every fit of a batch; each computed when it is asked for.

    ``statistics[c]`` are a `Statistics` or a `Likelihood`, those of output c, ``statistics[i, j]``
    those of one fit of a batch of two dimensions. They can be gone through, in that order.

    Attributes:
        shape: ``(outputs,)``, or batch_shape.

    Example:
        >>> import torch, polyfuse as pf
        >>> x = torch.arange(1.0, 7, dtype=torch.float64)
        >>> y = torch.stack([1 + x.sin(), 2 * x + x.cos()], 1)
        >>> model = pf.nn.Polynomial(1, outputs=2, dtype=torch.float64)
        >>> statistics = pf.solve(model, x, y).statistics
        >>> statistics[1].standard_errors.round(3), statistics.stack("r_squared").round(3)
        (array([0.746, 0.192]), array([0.67 , 0.969]))
    """

    def __init__(self, shape: tuple[int, ...], kind: str, of: Callable[[int], Inference]):
        """kind: of what they are, output or fit; of: a number in the order of the shape."""
        self.shape, self.kind = shape, kind
        self._of = lru_cache(maxsize=KEPT)(of)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Inference]:
        return map(self._of, range(len(self)))

    def __getitem__(self, at: Any) -> Inference:
        found = tuple(map(index, at if isinstance(at, tuple) else (at,)))
        if len(found) != len(self.shape):
            raise IndexError(f"expected an index of {len(self.shape)} numbers, got {at!r}")
        for i, size in zip(found, self.shape, strict=True):
            if not -size <= i < size:
                raise IndexError(f"expected an index within {self.shape}, got {at!r}")
        places = [i % size for i, size in zip(found, self.shape, strict=True)]
        return self._of(int(np.ravel_multi_index(places, self.shape)))

    def __repr__(self) -> str:
        return f"statistics of {len(self):,} {self.kind}s, shape {self.shape}"

    def stack(self, name: str) -> np.ndarray:
        """One of their attributes, of all of them, [\\*shape, ...]."""
        values = np.stack([getattr(s, name) for s in self])
        return values.reshape(*self.shape, *values.shape[1:])

    def named(self) -> Iterator[tuple[str, Inference]]:
        """With the name of each, such as "output 0"."""
        for at, found in zip(np.ndindex(self.shape), self, strict=True):
            yield f"{self.kind} {', '.join(map(str, at))}", found
