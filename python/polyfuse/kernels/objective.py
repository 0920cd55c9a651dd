"""Loss and gradient of every fit of a program, one in each lane: from its samples, or of squared
error from its orthogonal polynomials."""

import triton
import triton.language as tl

from .batch import read_sample, square_of
from .criterion import value_and_slope


@triton.jit
def factorise(recursion, per_slope, offset, recurrence_ptr, K: tl.constexpr):
    """The design's triangular factor, entry [k, j] at j K + k, and y along the orthonormal
    polynomials; as in csrc/core/orthogonal.h."""
    mean, step, slope, per_square = recursion
    zero = per_square[0] * 0.0
    size, along = (), ()
    for k in tl.static_range(K):
        norm = tl.sqrt(square_of(per_square[k]))
        size = size + (tl.where(norm > 0.0, tl.sqrt(step[k]), 0.0),)
        along = along + (slope[k] * norm,)
    factor = (tl.sqrt(square_of(per_square[0])),) + (zero,) * (K - 1)
    for j in tl.static_range(K - 1):
        row = recurrence_ptr + j
        alpha, beta, gamma = tl.load(row), tl.load(row + K), tl.load(row + 2 * K)
        for k in tl.static_range(K):
            value = zero
            if k <= j + 1:
                if k <= j:
                    value += (mean[k] - offset) * factor[j * K + k]
                if k > 0:
                    value += size[k] * factor[j * K + k - 1]
                if k < j:
                    value += size[k + 1] * factor[j * K + k + 1]
                value = value * per_slope * alpha
                if k <= j:
                    value += factor[j * K + k] * beta
                if k < j:
                    value += factor[(j - 1) * K + k] * gamma
            factor = factor + (value,)
    return factor, along


@triton.jit
def quadratic(p, factor, along, rest, weight, K: tl.constexpr):
    """Loss and K derivatives of squared error at p, with e = factor p - along."""
    loss, left, gradient = rest, (), ()
    for k in tl.static_range(K):
        e = -along[k]
        for j in tl.static_range(k, K):
            e += p[j] * factor[j * K + k]
        loss += e * e
        left = left + (e,)
    for j in tl.static_range(K):
        value = left[0] * factor[j * K]
        for k in tl.static_range(1, j + 1):
            value += left[k] * factor[j * K + k]
        gradient = gradient + (value * (2.0 * weight),)
    return (loss * weight,) + gradient


@triton.jit
def back_substitute(factor, along, K: tl.constexpr):
    """The coefficients of the optimum, 0 where it is not determined, the last first."""
    coef = ()
    for back in tl.static_range(K):
        rest, pivot = along[K - 1 - back], factor[(K - 1 - back) * (K + 1)]
        for m in tl.static_range(back):
            rest -= factor[(K - 1 - m) * K + K - 1 - back] * coef[m]
        coef = coef + (rest * tl.where(pivot == 0.0, 0.0, 1.0 / pivot),)
    return coef


@triton.jit
def terms_of(u, recurrence_ptr, K: tl.constexpr):
    """phi_k(u) of the K terms."""
    phi = (u * 0.0 + 1.0,)
    for j in tl.static_range(K - 1):
        row = recurrence_ptr + j
        following = (tl.load(row) * u + tl.load(row + K)) * phi[j]
        if j > 0:
            following += tl.load(row + 2 * K) * phi[j - 1]
        phi = phi + (following,)
    return phi


@triton.jit
def loss_and_gradient(
    fit, n, p, variable, recurrence_ptr, weight, number, K: tl.constexpr, KIND: tl.constexpr,
    LOG: tl.constexpr, FULL: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Of every fit at p: the loss, then K derivatives; variable: (shift, scale)."""
    sums = (p[0] * 0.0,) * (K + 1)
    for i in range(n):
        x, y, w = read_sample(fit, i, OMIT, WEIGHTED)
        phi = terms_of((x - variable[0]) * variable[1], recurrence_ptr, K)
        prediction = p[0] * phi[0]
        for j in tl.static_range(1, K):
            prediction += p[j] * phi[j]
        value, slope = value_and_slope(prediction, y, KIND, number, LOG, FULL)
        if OMIT or WEIGHTED:
            value = tl.where(w != 0.0, value * w, 0.0)
            slope = tl.where(w != 0.0, slope * w, 0.0)
        added = (sums[0] + value,)
        for j in tl.static_range(K):
            added = added + (sums[1 + j] + slope * phi[j],)
        sums = added
    result = ()
    for j in tl.static_range(K + 1):
        result = result + (sums[j] * weight,)
    return result
