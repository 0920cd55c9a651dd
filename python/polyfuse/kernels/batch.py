"""Many small fits: each lane of a program takes one, and solves it; epochs.py takes its epochs.

A solution is Forsythe's (1957): polynomials that are orthogonal on the points, as in
csrc/core/orthogonal.h. Every pass reads the samples again, all but the first from a cache, and
computes polynomials and residuals anew: nothing is kept of a sample.
fit: (x, y, w, their strides between samples, whether the lane has a fit, its number).
"""

import triton
import triton.language as tl

from .data import kernel
from .vectors import is_finite

DETERMINED = tl.constexpr(1e-26)  # as in csrc/core/orthogonal.h
LEAST_EXPLAINED = tl.constexpr(1e-30)  # of y's own square: less is its rounding
ROUNDING = tl.constexpr(2.0**-110)  # of y, squared


@triton.jit
def fit_of(
    x_ptr, y_ptr, w_ptr, x_stride, y_stride, w_stride, x_fit, y_fit, w_fit, n_fits,
    BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return (
        x_ptr + lane * x_fit, y_ptr + lane * y_fit, w_ptr + lane * w_fit, x_stride, y_stride,
        w_stride, lane < n_fits, lane,
    )  # fmt: skip


@triton.jit
def read_sample(fit, i, OMIT: tl.constexpr, WEIGHTED: tl.constexpr):
    """x, y and weight of sample i of every fit, 0 where it is left out."""
    x = tl.load(fit[0] + i * fit[3], fit[6], other=0.0).to(tl.float64)
    y = tl.load(fit[1] + i * fit[4], fit[6], other=0.0).to(tl.float64)
    w = tl.full(y.shape, 1.0, tl.float64)
    if WEIGHTED:
        w = tl.load(fit[2] + i * fit[5], fit[6], other=0.0).to(tl.float64)
    if OMIT:
        w = tl.where(is_finite(x) & is_finite(y), w, 0.0)
    if OMIT or WEIGHTED:
        x, y = tl.where(w != 0.0, x, 0.0), tl.where(w != 0.0, y, 0.0)
    return x, y, w


@triton.jit
def frame_of(fit, n, zero, OMIT: tl.constexpr, WEIGHTED: tl.constexpr):
    """Centre of the points and one over their range, how many count, and their weight."""
    low, high, count, weight = zero + float("inf"), zero - float("inf"), zero, zero
    for i in range(n):
        x, _, w = read_sample(fit, i, OMIT, WEIGHTED)
        counts = w != 0.0
        low, high = tl.where(counts & (x < low), x, low), tl.where(counts & (x > high), x, high)
        count += counts.to(tl.float64)
        weight += w
    width = tl.where(high > low, high - low, 1.0)
    return tl.where(high >= low, 0.5 * low + 0.5 * high, 0.0), 1.0 / width, count, weight


@triton.jit
def polynomial_and_residual(t, y, mean, step, slope, k: tl.constexpr):
    """The monic polynomial of degree k at t, and y less those below it."""
    now, before, r = t * 0.0 + 1.0, t * 0.0, y
    for j in tl.static_range(k):
        r -= slope[j] * now
        now, before = (t - mean[j]) * now - step[j] * before, now
    return now, r


@triton.jit
def orthogonalise(fit, n, frame, zero, K: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr):
    """Of the monic polynomials: the recursion (mean, step), what they explain (slope), and one
    over their squares, 0 where the points do not determine them; rank, and what is left of y."""
    centre, per_range, _, weight = frame
    mean, step, slope, per_square = (), (), (), ()
    determined, rank, former, least, variance = zero + 1.0, zero, zero, zero, zero
    for k in tl.static_range(K):
        square, weighted, along = zero, zero, zero
        for i in range(n):
            x, y, w = read_sample(fit, i, OMIT, WEIGHTED)
            t = (x - centre) * per_range
            p, r = polynomial_and_residual(t, y, mean, step, slope, k)
            of_p = w * p
            square += of_p * p
            weighted += of_p * p * t
            along += of_p * r
        if k == 1:
            variance = square * former
            least = DETERMINED * (square + mean[0] * mean[0] * weight)
        if k == 2:
            least = DETERMINED * weight * variance * variance
        if k > 2:
            least = least * variance
        determined = tl.where(square > least, determined, 0.0)
        inverse = tl.where(determined != 0.0, 1.0 / square, 0.0)
        rank += determined
        mean, step = mean + (weighted * inverse,), step + (square * former,)
        slope, per_square = slope + (along * inverse,), per_square + (inverse,)
        former = inverse
    rest = zero
    for i in range(n):
        x, y, w = read_sample(fit, i, OMIT, WEIGHTED)
        _, r = polynomial_and_residual((x - centre) * per_range, y, mean, step, slope, K)
        rest += w * r * r
    return (mean, step, slope, per_square), rank, rest


@triton.jit
def square_of(per_square):
    return tl.where(per_square > 0.0, 1.0 / per_square, 0.0)


@triton.jit
def times_u(a, recurrence_ptr, j: tl.constexpr, k: tl.constexpr, K: tl.constexpr):
    """Coefficient j of u times the series a of degree k: u phi_j = (phi_(j+1) - beta phi_j -
    gamma phi_(j-1)) / alpha."""
    value = a[0] * 0.0
    if j > 0:
        value += a[j - 1] / tl.load(recurrence_ptr + j - 1)
    if j <= k:
        value -= a[j] * (tl.load(recurrence_ptr + K + j) / tl.load(recurrence_ptr + j))
    if j + 1 <= k:
        row = recurrence_ptr + j + 1
        value -= a[j + 1] * (tl.load(row + 2 * K) / tl.load(row))
    return value


@triton.jit
def best_degree(explained, rest, count, rank, BIC: tl.constexpr, K: tl.constexpr):
    """The degree of least AICc or BIC, as a float, and what it leaves over."""
    total = rest
    for k in tl.static_range(K):
        total += explained[k]
    least = tl.maximum(ROUNDING * total, 2.2250738585072014e-308)
    lowest, best, left = rest * 0.0 + float("inf"), rest * 0.0, rest
    for k in tl.static_range(K):
        squares = rest
        for j in tl.static_range(k + 1, K):
            squares += explained[j]
        score = count * tl.log(tl.maximum(squares, least) / count)
        if BIC:
            score += (k + 1) * tl.log(count)
        else:
            few = count <= k + 2.0
            score += tl.where(few, float("inf"), 2.0 * (k + 1) * count / (count - (k + 2.0)))
        better = (score < lowest) & (k < rank)
        lowest, best = tl.where(better, score, lowest), tl.where(better, k, best)
        left = tl.where(better, squares, left)
    return best, left


@kernel
def solve_fits_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int32, n_fits: tl.int64,
    x_stride: tl.int64, y_stride: tl.int64, w_stride: tl.int64,
    x_fit: tl.int64, y_fit: tl.int64, w_fit: tl.int64, shift: tl.float64, scale: tl.float64,
    recurrence_ptr, params_ptr, loss_ptr, counted_ptr, weight_ptr, explained_ptr, root_ptr,
    status_ptr, rank_ptr, degree_ptr,
    K: tl.constexpr, BLOCK: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
    DEGREE: tl.constexpr, ROOT: tl.constexpr,
):  # fmt: skip
    """DEGREE: 0: K - 1, 1: by AICc, 2: by BIC. explained [B]: R squared. ROOT: the covariance's
    root [K, K, B], whose rows are the orthonormal polynomials as series of the model's basis."""
    fit = fit_of(
        x_ptr, y_ptr, w_ptr, x_stride, y_stride, w_stride, x_fit, y_fit, w_fit, n_fits, BLOCK
    )  # fmt: skip
    inside, lane = fit[6], fit[7]
    zero = tl.zeros([BLOCK], tl.float64)
    frame = frame_of(fit, n_points, zero, OMIT, WEIGHTED)
    centre, per_range, count, weight = frame
    recursion, rank, rest = orthogonalise(fit, n_points, frame, zero, K, OMIT, WEIGHTED)
    mean, step, slope, per_square = recursion
    explained = ()
    for k in tl.static_range(K):
        explained = explained + (slope[k] * slope[k] * square_of(per_square[k]),)
    degree = zero + (K - 1)
    if DEGREE != 0:
        degree, rest = best_degree(explained, rest, count, rank, DEGREE == 2, K)
        tl.store(degree_ptr + lane, degree.to(tl.int32), inside)
    # t = slope u + offset
    per_u, offset = per_range / scale, (shift - centre) * per_range
    there = tl.where(rank > 0.0, rest - rest, float("nan"))  # nan where there is no optimum
    coef, before, now = (zero,) * K, (zero,) * K, (zero + 1.0,)
    between = zero
    for k in tl.static_range(K):
        used = k <= degree
        if k > 0:
            between += tl.where(used, explained[k], 0.0)
        sums, after = (), ()
        for j in tl.static_range(K):
            if j <= k:
                sums = sums + (coef[j] + tl.where(used, slope[k] * now[j], 0.0),)
                if ROOT:
                    row = tl.where(used, tl.sqrt(per_square[k]) * now[j], 0.0)
                    row += tl.where(rank < K, float("nan"), there)
                    at = root_ptr + (k * K + j) * n_fits + lane
                    tl.store(at, row, inside)
            else:
                sums = sums + (coef[j],)
                if ROOT:
                    tl.store(root_ptr + (k * K + j) * n_fits + lane, zero, inside)
            if j <= k + 1:
                value = per_u * times_u(now, recurrence_ptr, j, k, K) - step[k] * before[j]
                if j <= k:
                    value += (offset - mean[k]) * now[j]
                after = after + (value,)
        coef = sums
        before, now = now + (zero,) * (K - 1 - k), after
    for j in tl.static_range(K):
        tl.store(params_ptr + j * n_fits + lane, coef[j] + there, inside)
    enough = rest + between > LEAST_EXPLAINED * explained[0]
    share = tl.where(enough, 1.0 - rest / (rest + between), float("nan"))
    status = tl.where(is_finite(rest), tl.where(rank < K, 2, 0), 3)
    tl.store(explained_ptr + lane, share + there, inside)
    tl.store(loss_ptr + lane, rest / weight + there, inside)
    tl.store(counted_ptr + lane, count.to(tl.int32), inside)
    tl.store(weight_ptr + lane, weight, inside)
    tl.store(rank_ptr + lane, rank.to(tl.int32), inside)
    tl.store(status_ptr + lane, status, inside)
