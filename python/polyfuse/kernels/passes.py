"""Passes over a program's share of the samples: sums [ROWS] that stay in registers."""

import triton
import triton.language as tl

from .basis import horner
from .criterion import SQUARED_ERROR, value_and_slope
from .data import read, weigh
from .vectors import is_finite


@triton.jit
def add_loss(sums, sample, objective, K: tl.constexpr, WEIGHTED: tl.constexpr):
    """Adds a tile: [w value, K of w slope * u^k, w].

    objective: the coefficients, and what `value_and_slope` is told.
    """
    u, y, weight = sample
    KIND: tl.constexpr = objective[1]
    prediction = horner(objective[0], u, K)
    value, product = value_and_slope(prediction, y, KIND, objective[2], objective[3], objective[4])
    count = sums[K + 1]
    if WEIGHTED:
        if KIND == SQUARED_ERROR:
            value *= weight
            product *= weight
        else:  # of what does not count they may be undefined
            value = tl.where(weight != 0.0, value * weight, 0.0)
            product = tl.where(weight != 0.0, product * weight, 0.0)
        count += tl.sum(weight, axis=1)
    else:
        count += u.shape[1]
    result = (sums[0] + tl.sum(value, axis=1),)
    for k in tl.static_range(K):
        result = result + (sums[k + 1] + tl.sum(product, axis=1),)
        product *= u
    return result + (count,)


@triton.jit
def add_moments(sums, sample, coef, K: tl.constexpr, WEIGHTED: tl.constexpr):
    """Adds a tile: [2 K - 1 of w u^k, K of w u^k r, w r^2]."""
    u, y, weight = sample
    r = horner(coef, u, K) - y
    product = weight
    square = r * r
    if WEIGHTED:
        square *= weight
    power, cross = (), ()
    for k in tl.static_range(2 * K - 1):
        power = power + (sums[k] + tl.sum(product, axis=1),)
        if k < K:
            cross = cross + (sums[2 * K - 1 + k] + tl.sum(product * r, axis=1),)
        product *= u
    return power + cross + (sums[3 * K - 1] + tl.sum(square, axis=1),)


@triton.jit
def add_products(sums, sample, coef, K: tl.constexpr, WEIGHTED: tl.constexpr):
    """Adds a tile: [K of y u^k]."""
    u, product, _ = sample
    result = ()
    for k in tl.static_range(K):
        result = result + (sums[k] + tl.sum(product, axis=1),)
        product *= u
    return result


@triton.jit
def add_nonfinite(sums, sample, coef, K: tl.constexpr, WEIGHTED: tl.constexpr):
    """Adds a tile: [samples with a nan or inf]; those that do not count are zeros here."""
    finite = is_finite(sample[0]) & is_finite(sample[1])
    return (sums[0] + tl.sum(1.0 - finite.to(tl.float64), axis=1),)


@triton.jit
def tile_pass(
    sums, data, first, every, given, ADD: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Adds the tiles first, first + every, ...: whole ones unmasked, and then what is left.

    given: what ADD needs besides the samples.
    Loads that are masked take single elements; many sums take longer than that, and to compile.
    """
    whole = data[2] // (ROWS * VEC)
    begin = first
    if K <= 8:
        for tile in range(first, whole, every):
            x, y, w = read(data, tile, ROWS, VEC, False, WEIGHTED)
            sample = weigh(x, y, w, data, tile, False, OMIT, WEIGHTED)
            sums = ADD(sums, sample, given, K, OMIT or WEIGHTED)
        begin = first + tl.cdiv(tl.maximum(whole - first, 0), every) * every
    for tile in range(begin, whole + 1, every):
        x, y, w = read(data, tile, ROWS, VEC, True, WEIGHTED)
        sums = ADD(sums, weigh(x, y, w, data, tile, True, OMIT, WEIGHTED), given, K, True)
    return sums


@triton.jit
def zero_sums(N: tl.constexpr, ROWS: tl.constexpr):
    return (tl.zeros([ROWS], tl.float64),) * N
