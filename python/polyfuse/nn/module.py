"""Models: a Module whose forward is traced to a polynomial, and the ready-made Polynomial."""

from __future__ import annotations

from typing import Any

import torch


class Module(torch.nn.Module):
    pass


class Polynomial(Module):
    """A polynomial of one variable, ``sum_k coefficients[k] * x**k``, evaluated by Horner's rule.

    Args:
        degree: highest power, >= 0.
        dtype, device: of the one parameter ``coefficients`` [degree + 1], which starts at zero.

    Shapes: x of any shape; the output has the shape of x.

    Raises:
        ValueError: when degree is not an int >= 0.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> model = nn.Polynomial(2)
        >>> model(torch.tensor([1.0, 2.0])).tolist()
        [0.0, 0.0]
    """

    def __init__(self, degree: int, *, dtype: Any = None, device: Any = None):
        super().__init__()
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
            raise ValueError(f"degree: expected an int >= 0, got {degree!r}")
        self.coefficients = torch.nn.Parameter(torch.zeros(degree + 1, dtype=dtype, device=device))

    @property
    def degree(self) -> int:
        return self.coefficients.numel() - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.coefficients[-1] * torch.ones_like(x)
        for k in range(self.degree - 1, -1, -1):
            y = y * x + self.coefficients[k]
        return y

    def extra_repr(self) -> str:
        return f"degree={self.degree}"
