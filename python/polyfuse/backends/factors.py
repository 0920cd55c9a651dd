"""Terms of several variables, or of a series, as products of factors: how GPU kernels are told."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..bases import BASES, recurrence_of
from ..exponents import Powers


class Terms(NamedTuple):
    """Every term as a product of factors (x[variable] - shift) * scale - root, on the device."""

    variable: torch.Tensor  # [D, C] int32; -1: there is no factor
    frame: torch.Tensor  # shift, scale and root [3, D, C] float64; 0, 0 and -1 where there is none
    one: int  # the column that is 1: a term, or one more


@lru_cache(maxsize=64)
def terms_of(
    exponents: tuple[Powers, ...], variables: tuple[tuple[float, float], ...],
    device: torch.device, basis: str = "monomial",
) -> Terms:  # fmt: skip
    """Products of powers of the variables, or of polynomials of a basis: these have real roots."""
    one = (0,) * len(variables)
    columns = exponents if one in exponents else (*exponents, one)
    depth = max(1, *map(sum, columns))
    variable = np.full((depth, len(columns)), -1, dtype=np.int32)
    frame = np.tile(np.array([0.0, 0.0, -1.0])[:, None, None], (depth, len(columns)))
    for c, powers in enumerate(columns):
        d = 0
        for v, power in enumerate(powers):
            for alpha, root in factors(basis, power):
                shift, scale = variables[v]
                variable[d, c], frame[:, d, c] = v, (shift, alpha * scale, alpha * root)
                d += 1
    return Terms(
        torch.from_numpy(variable).to(device), torch.from_numpy(frame).to(device),
        columns.index(one),
    )  # fmt: skip


@lru_cache(maxsize=256)
def factors(basis: str, degree: int) -> list[tuple[float, float]]:
    """phi_degree(u) as a product of alpha u - alpha root."""
    alphas = recurrence_of(basis, degree + 1)[0, :degree]
    if basis == "monomial":
        return [(alpha, 0.0) for alpha in alphas]
    phi = BASES[basis].series.basis(degree)
    roots = phi.roots()
    roots = roots - phi(roots) / phi.deriv()(roots)  # Newton's step, from what eigenvalues leave
    return list(zip(alphas, roots, strict=True))
