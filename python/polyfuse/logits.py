"""The polynomials of one x that make up several outputs, such as the logits of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .bases import series
from .criteria import CROSS_ENTROPY, Criterion
from .symbolic import Traced


@dataclass(frozen=True)
class Logits(Traced):
    """Its parameters are the coefficients [K, C] of one tensor, in the terms of a basis."""

    outputs: int = 1
    basis: str = "monomial"

    def shape_of(self, x: torch.Tensor) -> tuple[int, ...]:
        return (*x.shape, self.outputs)

    def of(self, coefficients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What the model gives: x [...] -> [..., C]."""
        u = x.unsqueeze(-1)
        if (self.shift, self.scale) != (0.0, 1.0):
            u = (u - self.shift) * self.scale
        return series(self.basis, coefficients, u)

    def fits(self, y: torch.Tensor, x: torch.Tensor, criterion: Criterion) -> bool:
        """Of x [N], y are classes [N] of int64, or probabilities [N, C]."""
        if criterion.kind is not CROSS_ENTROPY or x.ndim != 1:
            return False
        options = dict(criterion.options)
        if options["weight"] is not None and len(options["weight"]) != self.outputs:
            return False
        if y.dtype is torch.int64:
            return y.shape == x.shape
        shape = (len(x), self.outputs)
        return y.dtype is x.dtype and y.shape == shape and options["ignore_index"] < 0

    def out_of_range(self, y: torch.Tensor, criterion: Criterion) -> int | None:
        """The first of the classes y [N] that is none, nor ignored; of probabilities None."""
        if y.is_floating_point():
            return None
        bad = ((y < 0) | (y >= self.outputs)) & (y != dict(criterion.options)["ignore_index"])
        return int(y[bad][0]) if bad.any() else None


def logits(coefficients: torch.Tensor, basis: str, shift: float, scale: float) -> Logits:
    terms, outputs = coefficients.shape
    slots = tuple((0, e) for e in range(terms * outputs))
    return Logits(
        (coefficients,), slots, (), terms - 1, shift, scale, 1, (), outputs=outputs, basis=basis
    )
