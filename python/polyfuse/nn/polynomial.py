"""The ready-made model: a polynomial, or many of them at once."""

from __future__ import annotations

import math
from typing import Any

import torch

from .module import Module


class Polynomial(Module):
    """A polynomial of one variable, ``sum_k coefficients[k] * u**k``, evaluated by Horner's rule.

    With a batch_shape, as many independent polynomials, which `polyfuse.fit` and `polyfuse.solve`
    fit in one launch, each with a loss and a status of its own.

    Args:
        degree: highest power, >= 0.
        batch_shape: shape of the batch of polynomials; () for a single one.
        domain: (low, high), the range of x that is mapped to u from -1 to 1, as in
            `numpy.polynomial`; None: u is x. Give one where x is far from zero (Unix time,
            wavelengths): coefficients in x would lose what float32 cannot hold.
        dtype, device: of the one parameter ``coefficients`` [degree + 1, *batch_shape], which
            starts at zero.

    Shapes: a single polynomial takes x of any shape, and gives the shape of x. A batch takes x [N],
    shared by all, or [N, *batch_shape], and gives [N, *batch_shape]: samples come first, as in
    `numpy.polyfit`. Data that has them last is handed over as ``y.movedim(-1, 0)``, a view.

    Raises:
        ValueError: when degree is not an int >= 0, batch_shape not of sizes >= 1, or domain not two
            finite numbers, the lower first.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> model = nn.Polynomial(2)
        >>> model(torch.tensor([1.0, 2.0])).tolist()
        [0.0, 0.0]
        >>> pixels = nn.Polynomial(1, batch_shape=(480, 640), domain=(0, 3600))
        >>> pixels(torch.arange(0.0, 3600.0, 60.0)).shape
        torch.Size([60, 480, 640])
    """

    def __init__(
        self,
        degree: int,
        *,
        batch_shape: tuple[int, ...] = (),
        domain: tuple[float, float] | None = None,
        dtype: Any = None,
        device: Any = None,
    ):
        super().__init__()
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
            raise ValueError(f"degree: expected an int >= 0, got {degree!r}")
        shape = tuple(batch_shape) if isinstance(batch_shape, (tuple, list)) else None
        if shape is None or not all(type(s) is int and s >= 1 for s in shape):
            raise ValueError(f"batch_shape: expected a tuple of sizes >= 1, got {batch_shape!r}")
        self.batch_shape = shape
        self.domain = None if domain is None else _interval(domain)
        self.coefficients = torch.nn.Parameter(
            torch.zeros(degree + 1, *shape, dtype=dtype, device=device)
        )

    @property
    def degree(self) -> int:
        return self.coefficients.shape[0] - 1

    @property
    def variable(self) -> tuple[float, float]:
        """(shift, scale) of u = (x - shift) * scale."""
        if self.domain is None:
            return 0.0, 1.0
        low, high = self.domain
        return 0.5 * low + 0.5 * high, 2.0 / (high - low)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.batch_shape and x.ndim == 1:
            x = x.reshape(-1, *(1 for _ in self.batch_shape))
        shift, scale = self.variable
        u = x if self.domain is None else (x - shift) * scale
        y = self.coefficients[-1] * torch.ones_like(u)
        for k in range(self.degree - 1, -1, -1):
            y = y * u + self.coefficients[k]
        return y

    def extra_repr(self) -> str:
        parts = [f"degree={self.degree}"]
        if self.batch_shape:
            parts.append(f"batch_shape={self.batch_shape}")
        if self.domain is not None:
            parts.append(f"domain={self.domain}")
        return ", ".join(parts)


def _interval(domain: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in domain)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"domain: expected two finite numbers, low < high, got {domain!r}")
    return low, high
