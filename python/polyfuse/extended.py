"""Normal equations in twice float64's precision from columns of any device, which stay there.

Every column is cut into slices of so few bits that matrix products of slices are exact in float64,
in whatever order a device adds; only their sums round, in double-double arithmetic. Sources: Ozaki,
Ogita, Oishi and Rump, Error-free transformations of matrix multiplication by using fast routines of
matrix multiplication, Numerical Algorithms 59 (2012); csrc/core/twofold.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _C

ROWS = 4096  # samples whose products add up exactly: 2 BITS and 12 more are below float64's 53
BITS = 20
SLICES = 5  # 100 bits
NUMBERS = 1 << 22  # of columns at a time
MEAN_OF = 4096  # samples, about which columns are taken
EXPONENT = 0x7FF << 52  # where float64 has it

# x and y [N] of some samples -> columns [N, K], and what they are to fit [N]
Part = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Twofold(NamedTuple):
    """hi + lo, about 32 digits."""

    hi: Tensor
    lo: Tensor


def two_sum(a: Tensor, b: Tensor) -> Twofold:
    total = a + b
    of_b = total - a
    return Twofold(total, (a - (total - of_b)) + (b - of_b))


def add(a: Twofold, b: Twofold) -> Twofold:
    high, low = two_sum(a.hi, b.hi), two_sum(a.lo, b.lo)
    total = two_sum(high.hi, high.lo + low.hi)
    return two_sum(total.hi, low.lo + total.lo)


def multiply(a: Twofold, b: Tensor) -> Twofold:
    """Dekker's product, which needs no fused multiply-add."""

    def upper(v: Tensor) -> Tensor:
        spread = v * 134217729.0
        return spread - (spread - v)

    product, a_up, b_up = a.hi * b, upper(a.hi), upper(b)
    a_rest, b_rest = a.hi - a_up, b - b_up
    error = ((a_up * b_up - product) + a_up * b_rest + a_rest * b_up) + a_rest * b_rest
    return two_sum(product, error + a.lo * b)


def total(parts: Twofold) -> Twofold:
    """[M, ...] -> [...]"""
    while (count := len(parts.hi)) > 1:
        half = count // 2
        both = add(*(Twofold(*(t[i * half : (i + 1) * half] for t in parts)) for i in range(2)))
        parts = Twofold(*(torch.cat([b, t[2 * half :]]) for b, t in zip(both, parts, strict=True)))
    return Twofold(parts.hi[0], parts.lo[0])


def slices(a: Twofold) -> Tensor:
    """[B, R, K] -> [B, R, SLICES K], multiples of a power of two each, which add up to a."""
    largest = a.hi.abs().amax(dim=1, keepdim=True)
    unit = (largest.view(torch.int64) & EXPONENT).view(torch.float64) * 2.0
    parts = []
    for _ in range(SLICES):
        unit = unit * 2.0**-BITS
        far = unit * (1.5 * 2.0**52)  # where float64 holds multiples of the unit alone
        parts.append((a.hi + far) - far)
        a = two_sum(a.hi - parts[-1], a.lo)
    return torch.cat(parts, dim=2)


def products(a: Twofold, b: Twofold) -> Twofold:
    """a^T b, [N, K] and [N, M] -> [K, M]."""
    n, rows = len(a.hi), min(ROWS, len(a.hi))

    def cut(v: Twofold) -> Tensor:
        return slices(Twofold(*(pad(t, (0, 0, 0, -n % rows)).unflatten(0, (-1, rows)) for t in v)))

    exact = cut(a).mT @ cut(b)
    parts = exact.unflatten(2, (SLICES, -1)).unflatten(1, (SLICES, -1))
    parts = parts.transpose(2, 3).flatten(0, 2)
    return total(Twofold(parts, torch.zeros_like(parts)))


def equations_of(
    part: Part, x: Tensor, y: Tensor, w: Tensor | None, constant: bool
) -> tuple[_C.NormalEquations, np.ndarray]:
    """As that of regression.py; where there is a constant, column 0 is 1."""
    n = len(y)
    few = slice(None, None, max(1, n // MEAN_OF))
    columns, _ = part(x[few], y[few])
    n_terms, shift = columns.shape[1], columns.mean(dim=0) * constant
    shift[: int(constant)] = 0.0

    def parts() -> Iterator[tuple[Twofold, Tensor, Tensor]]:
        """Columns less the shift [N, K], and y and w [N, 1]."""
        at_once = max(ROWS, NUMBERS // n_terms)
        for at in (slice(i, i + at_once) for i in range(0, n, at_once)):
            columns, rest = part(x[at], y[at])
            weight = torch.ones_like(rest) if w is None else w[at]
            yield two_sum(columns, -shift), rest[:, None], weight[:, None]

    def sums(of: Callable[[Twofold, Tensor, Tensor], Twofold]) -> np.ndarray:
        """[K + 1, M, 2]"""
        each = [of(*samples) for samples in parts()]
        found = total(Twofold(*(torch.stack(t) for t in zip(*each, strict=True))))
        return torch.stack(found, dim=-1).cpu().numpy()

    def about_zero(columns: Twofold, y: Tensor, w: Tensor) -> Twofold:
        both = beside(columns, Twofold(-y, torch.zeros_like(y)))
        return products(multiply(both, w), both)

    everything = sums(about_zero)
    gram, right = np.ascontiguousarray(everything[:-1, :-1]), everything[:, -1:]
    equations = _C.NormalEquations.of_sums(
        gram, right, np.zeros(n_terms), shift.cpu().numpy(), constant
    )
    # About the optimum, as csrc/cpu/normal_equations.cpp: what is left to solve for is rounding.
    reference = equations.solve(None, None, [], False).coefficients
    coefficients = torch.from_numpy(reference).to(x.device)

    def about_optimum(columns: Twofold, y: Tensor, w: Tensor) -> Twofold:
        each = beside(multiply(columns, coefficients), Twofold(-y, torch.zeros_like(y)))
        r = Twofold(*(t[:, None] for t in total(Twofold(*(t.T for t in each)))))
        return products(multiply(beside(columns, r), w), r)

    right = sums(about_optimum)
    equations = _C.NormalEquations.of_sums(gram, right, reference, shift.cpu().numpy(), constant)
    return equations, shift.cpu().numpy()


def beside(a: Twofold, b: Twofold) -> Twofold:
    return Twofold(*(torch.cat(both, dim=1) for both in zip(a, b, strict=True)))
