"""Moments of a least-squares fit about a reference polynomial, and the loss and gradient from them.

With u = (x - shift) * scale and r = reference(u) - y they are sum u^k, sum u^k r, sum r^2; they lie
as `backends/device.py` says: shift, scale, square, reference [K], power [2 K - 1], cross [K].
"""

import triton
import triton.language as tl

from .basis import change_of_variable
from .coefficients import coefficients, pull_back
from .data import here, read
from .passes import add_moments, tile_pass, zero_sums
from .vectors import is_finite, pick, times, totals, transposed_times


@triton.jit
def gram_of(moments_ptr, lane, K: tl.constexpr):
    """sum u^(j+k), [W, W]"""
    j, k = lane[:, None], lane[None, :]
    return tl.load(moments_ptr + 3 + K + j + k, (j < K) & (k < K), other=0.0)


@triton.jit
def store_moments(moments_ptr, frame, reference, sums, k_lane, lane, K: tl.constexpr):
    """frame: (shift, scale); sums: those of `add_moments`."""
    tl.store(moments_ptr, frame[0])
    tl.store(moments_ptr + 1, frame[1])
    tl.store(moments_ptr + 2, pick(sums, 3 * K - 1, lane))
    tl.store(moments_ptr + 3 + k_lane, reference, k_lane < K)
    tl.store(moments_ptr + 3 + K + lane, sums, lane < 3 * K - 1)


@triton.jit
def solve(gram, cross, square, reference, lane, K: tl.constexpr):
    """The optimum, as `solve` of csrc/core/moments.h finds it."""
    lower, along = factorise(gram, cross, square, lane, K)
    return reference + back_substitute(lower, along, lane, K)


@triton.jit
def factorise(gram, cross, square, lane, K: tl.constexpr):
    """Cholesky's factor [K, K], and the optimum along its rows; 0 for what is left out."""
    i, j = lane[:, None], lane[None, :]
    left, lower = gram, tl.zeros(gram.shape, tl.float64)
    right, step = -cross, tl.zeros(cross.shape, tl.float64)
    for m in range(K):
        column = tl.sum(tl.where(j == m, left, 0.0), axis=1)
        pivot = pick(column, m, lane)
        power = pick(tl.sum(tl.where(i == j, gram, 0.0), axis=1), m, lane)
        rest = pick(right, m, lane)
        used = (pivot > 1e-13 * power) & (rest * rest * power <= 1e5 * square * pivot * pivot)
        root = tl.where(used, tl.sqrt(tl.maximum(pivot, 0.0)), float("inf"))
        column = tl.where(lane >= m, column / root, 0.0)
        row = tl.sum(tl.where(i == j, column[:, None], 0.0), axis=0)
        lower = tl.where(j == m, column[:, None], lower)
        left -= tl.where((i > m) & (j > m), column[:, None] * row[None, :], 0.0)
        forward = rest / root
        step = tl.where(lane == m, forward, step)
        right -= tl.where(lane > m, column * forward, 0.0)
    return lower, step


@triton.jit
def back_substitute(lower, step, lane, K: tl.constexpr):
    j = lane[None, :]
    for back in range(K):
        m = K - 1 - back
        column = tl.sum(tl.where(j == m, lower, 0.0), axis=1)
        diagonal = pick(column, m, lane)
        rest = pick(step, m, lane) - tl.sum(tl.where(lane > m, column * step, 0.0), axis=0)
        value = tl.where(diagonal > 0.0, rest / tl.where(diagonal > 0.0, diagonal, 1.0), 0.0)
        step = tl.where(lane == m, value, step)
    return step


@triton.jit
def bounds_of(data, ROWS: tl.constexpr, VEC: tl.constexpr, WEIGHTED: tl.constexpr):
    """The least and the largest of the finite x that count; inf and -inf where there are none."""
    low, high = tl.full([], float("inf"), tl.float64), tl.full([], float("-inf"), tl.float64)
    for tile in range(tl.cdiv(data[2], ROWS * VEC)):
        x, _, w = read(data, tile, ROWS, VEC, True, WEIGHTED)
        x = x.to(tl.float64)
        keep = is_finite(x) & here(data[2], tile, ROWS, VEC)
        if WEIGHTED:
            keep = keep & (w != 0.0)
        low = tl.minimum(low, tl.min(tl.min(tl.where(keep, x, float("inf")), axis=1), axis=0))
        high = tl.maximum(high, tl.max(tl.max(tl.where(keep, x, float("-inf")), axis=1), axis=0))
    return low, high


@triton.jit
def thinned(data, every, shift, scale):
    """One sample of `every`, in a variable of its own."""
    n = (data[2] + every - 1) // every
    return (
        data[0], data[1], n, data[3] * every, data[4] * every, shift, scale, data[7],
        data[8] * every,
    )  # fmt: skip


@triton.jit
def pilot(
    data, moments_ptr, k_lane, lane, K: tl.constexpr, ROWS: tl.constexpr, VEC: tl.constexpr,
    WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Frame and reference [K] from about 1024 samples, or from all where weights of 0 leave those
    out; every program finds the same bits."""
    every = tl.maximum(data[2] // 1024, 1)
    low, high = bounds_of(thinned(data, every, 0.0, 1.0), ROWS, VEC, WEIGHTED)
    if WEIGHTED:
        if low > high:
            every = every * 0 + 1
            low, high = bounds_of(data, ROWS, VEC, WEIGHTED)
    shift = tl.where(low <= high, 0.5 * low + 0.5 * high, 0.0)
    scale = 1.0 / tl.where(low < high, 0.5 * high - 0.5 * low, 1.0)
    few = thinned(data, every, shift, scale)
    zero = (tl.full([], 0.0, tl.float64),) * K
    sums = tile_pass(
        zero_sums(3 * K, ROWS), few, 0, 1, zero, add_moments, K, ROWS, VEC, True, WEIGHTED
    )  # fmt: skip
    total = totals(sums, lane, 3 * K)
    power = k_lane[:, None] + k_lane[None, :]
    gram = tl.zeros(power.shape, tl.float64)
    cross = tl.zeros(k_lane.shape, tl.float64)
    for k in range(2 * K - 1):
        gram = tl.where(power == k, pick(total, k, lane), gram)
    for k in range(K):
        cross = tl.where(k_lane == k, pick(total, 2 * K - 1 + k, lane), cross)
    gram = tl.where((k_lane[:, None] < K) & (k_lane[None, :] < K), gram, 0.0)
    square = pick(total, 3 * K - 1, lane)
    return (shift, scale), solve(gram, cross, square, tl.zeros(k_lane.shape, tl.float64), k_lane, K)


@triton.jit
def load_fit(moments_ptr, shift, scale, lane, K: tl.constexpr, MEAN: tl.constexpr):
    """The moments and the model's variable: (change, gram, cross, reference, square, weight)."""
    a = scale / tl.load(moments_ptr + 1)
    b = (tl.load(moments_ptr) - shift) * scale
    inside = lane < K
    weight = tl.full([], 1.0, tl.float64)
    if MEAN:
        weight = 1.0 / tl.load(moments_ptr + 3 + K)
    return (
        change_of_variable(a, b, lane, lane, K),
        gram_of(moments_ptr, lane, K),
        tl.load(moments_ptr + 3 * K + 2 + lane, inside, other=0.0),
        tl.load(moments_ptr + 3 + lane, inside, other=0.0),
        tl.load(moments_ptr + 2),
        weight,
    )


@triton.jit
def grad_of_moved(fit, grad_moved, params, model, p_lane, k_lane, IDENTITY: tl.constexpr):
    """From half the gradient with respect to coefficients in u to that of the parameters."""
    grad_coef = transposed_times(fit[0], 2.0 * grad_moved) * fit[5]
    return pull_back(params, grad_coef, model, p_lane, k_lane, IDENTITY)


@triton.jit
def objective_of_moments(
    fit, params, model, p_lane, k_lane, IDENTITY: tl.constexpr, ROUND: tl.constexpr
):
    """Loss and gradient [P]: square + 2 cross d + d gram d, d = coefficients in u - reference."""
    delta = times(fit[0], coefficients(params, model, p_lane, k_lane, IDENTITY)) - fit[3]
    slope = times(fit[1], delta)
    loss = (fit[4] + tl.sum(delta * (2.0 * fit[2] + slope), axis=0)) * fit[5]
    grad = grad_of_moved(fit, fit[2] + slope, params, model, p_lane, k_lane, IDENTITY)
    if ROUND:
        loss = loss.to(tl.float32).to(tl.float64)
        grad = grad.to(tl.float32).to(tl.float64)
    return loss, grad
