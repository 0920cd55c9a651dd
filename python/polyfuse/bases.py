"""Bases of polynomials, each by its three-term recurrence, as `numpy.polynomial` defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import polynomial


class Basis(NamedTuple):
    """phi_0 = 1, phi_{j+1} = (alpha u + beta) phi_j + gamma phi_{j-1}."""

    series: Any  # numpy's class
    recurrence: Callable[[int], tuple[float, float, float]]  # j -> alpha, beta, gamma

    @property
    def window(self) -> tuple[float, float]:
        """Where the basis is at home: what a domain is mapped to."""
        low, high = self.series.window
        return float(low), float(high)


BASES = {
    "monomial": Basis(polynomial.Polynomial, lambda j: (1.0, 0.0, 0.0)),
    "chebyshev": Basis(polynomial.Chebyshev, lambda j: (2.0, 0.0, -1.0) if j else (1.0, 0.0, 0.0)),
    "legendre": Basis(polynomial.Legendre, lambda j: ((2 * j + 1) / (j + 1), 0.0, -j / (j + 1))),
    "hermite": Basis(polynomial.Hermite, lambda j: (2.0, 0.0, -2.0 * j)),
    "hermite_e": Basis(polynomial.HermiteE, lambda j: (1.0, 0.0, -1.0 * j)),
    "laguerre": Basis(
        polynomial.Laguerre,
        lambda j: (-1 / (j + 1), (2 * j + 1) / (j + 1), -j / (j + 1)),
    ),
}


def series(basis: str, coefficients: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Clenshaw's recurrence, from the highest term down; of powers it is Horner's.

    coefficients [K, ...] broadcast with u.
    """
    terms = coefficients.shape[0]
    rows = [BASES[basis].recurrence(k) for k in range(terms)]
    y, above = coefficients[-1] * torch.ones_like(u), None
    for k in range(terms - 2, -1, -1):
        alpha, beta, _ = rows[k]
        new = y * (alpha * u + beta) + coefficients[k]
        if above is not None and rows[k + 1][2]:
            new = new + rows[k + 1][2] * above
        y, above = new, y
    return y


def terms(basis: str, n_terms: int, u: torch.Tensor) -> list[torch.Tensor]:
    """phi_k(u) of every term."""
    phi = [torch.ones_like(u)]
    for alpha, beta, gamma in recurrence_of(basis, n_terms).T.tolist():
        phi.append((alpha * u + beta) * phi[-1] + (gamma * phi[-2] if len(phi) > 1 else 0.0))
    return phi[:-1]


def products(
    basis: str, exponents: Sequence[tuple[int, ...]], u: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Of several variables: every term is the product of one of each, phi_p(u_v)."""
    highest = map(max, zip(*exponents, strict=True))
    of_each = [terms(basis, most + 1, v) for most, v in zip(highest, u, strict=True)]
    found: dict[tuple[int, ...], torch.Tensor] = {}
    for powers in exponents:
        used = [v for v, p in enumerate(powers) if p]
        if not used:
            found[powers] = of_each[0][0]
            continue
        rest = (*powers[: used[-1]], *(0 for _ in powers[used[-1] :]))
        factor = of_each[used[-1]][powers[used[-1]]]
        found[powers] = found[rest] * factor if any(rest) else factor
    return list(found.values())


@cache  # kernels point to it
def recurrence_of(name: str, n_terms: int) -> np.ndarray:
    """alpha, beta, gamma [3, K]."""
    rows = [BASES[name].recurrence(j) for j in range(n_terms)]
    return np.ascontiguousarray(np.array(rows, dtype=np.float64).T)


def name_of(series: Any) -> str:
    """The name of a basis, of numpy's class or an object of it."""
    cls = series if isinstance(series, type) else type(series)
    for name, basis in BASES.items():
        if basis.series is cls:
            return name
    raise TypeError(f"series: expected one of numpy.polynomial's classes, got {cls.__name__}")
