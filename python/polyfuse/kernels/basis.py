"""Monomial basis: phi_k(u) = u^k."""

import triton
import triton.language as tl


@triton.jit
def horner(coef, u, K: tl.constexpr):
    """sum_k coef[k] u^k, coef a tuple of K scalars."""
    value = u * 0.0 + coef[K - 1]
    for k in tl.static_range(K - 1):
        value = value * u + coef[K - 2 - k]
    return value


@triton.jit
def change_of_variable(a, b, row, column, K: tl.constexpr):
    """Matrix [W, W] from coefficients in v = a u + b to those in u: C(k, j) a^j b^(k-j)."""
    i, k = row[:, None], column[None, :]
    change = tl.where((i == 0) & (k == 0), 1.0, 0.0).to(tl.float64)
    power = tl.where(column == 0, 1.0, 0.0).to(tl.float64)
    for m in range(1, K):
        raised = tl.sum(tl.where(i == k + 1, power[None, :], 0.0), axis=1)
        stay = tl.sum(tl.where(i == k, power[None, :], 0.0), axis=1)
        v = b * stay + a * raised
        change = tl.where(k == m, v[:, None], change)
        power = tl.sum(tl.where(i == k, v[:, None], 0.0), axis=0)
    return change
