"""Polynomials side by side under one loss: a batch, or several outputs of one x."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .bases import series
from .criteria import CROSS_ENTROPY, Criterion
from .polynomials import PLAIN, Powers
from .symbolic import Traced


@dataclass(frozen=True)
class Stacked(Traced):
    """Its parameters are the coefficients [K, *of_y] of one tensor, in the terms of a basis or, of
    outputs, of several variables.

    `slots` has the first of them alone.
    """

    basis: str = "monomial"
    batch: bool = False  # rather than outputs: x may be one for each, [N, *of_y]

    @property
    def n_params(self) -> int:
        return self.tensors[0].numel()

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        return tuple((0, element) for element in range(self.n_params))

    @property
    def stretches(self) -> list[tuple[int, int, int]]:
        return [(0, 0, self.n_params)]

    @property
    def rows_of_y(self) -> tuple[int, ...] | None:
        return self.of_y or None

    @property
    def outputs(self) -> int:
        return self.n_params // self.n_terms

    def takes(self, x: torch.Tensor) -> bool:
        if self.exponents:
            return x.ndim == 2 and x.shape[1] == len(self.variables)
        alone = not self.of_y  # of x in any shape
        return alone or x.ndim == 1 or (self.batch and x.shape[1:] == self.of_y)

    def shape_of(self, x: torch.Tensor) -> tuple[int, ...]:
        if self.exponents:
            return torch.Size((*x.shape[:-1], *self.of_y))
        return torch.Size((*x.shape, *self.of_y) if x.ndim == 1 or not self.batch else x.shape)

    def of(self, coefficients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What the model gives at x."""
        if self.exponents:
            from .backends.reference import design

            return (design(self, x) @ coefficients.double()).to(x.dtype)
        if self.of_y and (x.ndim == 1 or not self.batch):
            x = x.reshape(*x.shape, *(1 for _ in self.of_y))
        u = x if (self.shift, self.scale) == PLAIN else (x - self.shift) * self.scale
        return series(self.basis, coefficients, u)

    def fits(self, y: torch.Tensor, x: torch.Tensor, criterion: Criterion) -> bool:
        """Cross entropy of outputs takes classes [N] of int64, or probabilities."""
        if criterion.kind is not CROSS_ENTROPY:
            return self.takes(x) and super().fits(y, x, criterion)
        if self.batch or not self.of_y or not self.takes(x):
            return False
        options = dict(criterion.options)
        if options["weight"] is not None and len(options["weight"]) != self.outputs:
            return False
        if y.dtype is torch.int64:
            return y.shape == x.shape[:1]
        return y.dtype is x.dtype and y.shape == self.shape_of(x) and options["ignore_index"] < 0

    def formula(self) -> str:
        terms = "powers" if self.basis == "monomial" else f"{self.basis} series"
        if self.exponents:
            terms = f"products of {len(self.variables)} variables"
        if not self.of_y:
            return f"{terms} of degree {self.degree}"
        kind = "fits of a batch" if self.batch else "outputs"
        return f"{self.outputs} {kind} side by side, {terms} of degree {self.degree}"


def stacked(
    coefficients: torch.Tensor, basis: str, shift: float, scale: float, batch: bool
) -> Stacked:
    degree, shape = coefficients.shape[0] - 1, tuple(coefficients.shape[1:])
    return Stacked(
        (coefficients,), ((0, 0),), (), degree, shift, scale, 0, (),
        of_y=shape, basis=basis, batch=batch,
    )  # fmt: skip


def stacked_surfaces(
    coefficients: torch.Tensor, exponents: tuple[Powers, ...],
    variables: tuple[tuple[float, float], ...],
) -> Stacked:  # fmt: skip
    """Outputs of several variables; coefficients [K, C]."""
    return Stacked(
        (coefficients,), ((0, 0),), (), max(map(sum, exponents)), *PLAIN, 0, (),
        of_y=tuple(coefficients.shape[1:]), exponents=exponents, variables=variables,
    )  # fmt: skip
