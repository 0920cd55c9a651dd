"""Powers of an affine recurrence s <- s + E [s; 1], s = (params - origin [P], momentum [P]).

The difference E = M - I [S, S], S = 2 P + 1, is what is doubled, (I + E)^2 - I = 2 E + E^2, so that
slow modes keep their relative accuracy; its last row stays 0. Matrices lie in global memory.
"""

import triton
import triton.language as tl

from .coefficients import coefficients
from .moments import grad_of_moved, objective_of_moments
from .optimizer import SGD, fills_momentum, is_owned, update
from .state import record
from .vectors import is_finite, pick, times


@triton.jit
def compose(a_ptr, b_ptr, out_ptr, S: tl.constexpr, SW: tl.constexpr, BAND: tl.constexpr):
    """out = (I + a)(I + b) - I, BAND rows at a time; out is neither a nor b."""
    tl.debug_barrier()
    column = tl.arange(0, SW)[None, :]
    for first in range(0, S, BAND):
        row = first + tl.arange(0, BAND)[:, None]
        inside = (row < S) & (column < S)
        total = tl.load(a_ptr + row * S + column, inside, other=0.0)
        total += tl.load(b_ptr + row * S + column, inside, other=0.0)
        for k in range(S - 1):
            left = tl.load(a_ptr + row * S + k, row < S, other=0.0)
            total += left * tl.load(b_ptr + k * S + column, column < S, other=0.0)
        tl.store(out_ptr + row * S + column, total, inside)
    tl.debug_barrier()


@triton.jit
def power(one_ptr, work_ptr, steps, S: tl.constexpr, SW: tl.constexpr, BAND: tl.constexpr):
    """The address of the steps-th power of one; work [4, S, S]."""
    tl.debug_barrier()  # somebody may still read the power before this one
    size: tl.constexpr = S * S
    result, spare = tl.full([], 0, tl.int32), tl.full([], size, tl.int32)
    square, other = tl.full([], 2 * size, tl.int32), tl.full([], 3 * size, tl.int32)
    for first in range(0, S * S, SW):
        at = first + tl.arange(0, SW)
        tl.store(work_ptr + result + at, tl.zeros([SW], tl.float64), at < S * S)
        tl.store(work_ptr + square + at, tl.load(one_ptr + at, at < S * S), at < S * S)
    while steps > 0:
        if steps & 1 == 1:
            compose(work_ptr + square, work_ptr + result, work_ptr + spare, S, SW, BAND)
            result, spare = spare, result
        if steps > 1:
            compose(work_ptr + square, work_ptr + square, work_ptr + other, S, SW, BAND)
            square, other = other, square
        steps = steps >> 1
    tl.debug_barrier()
    return work_ptr + result


@triton.jit
def apply(jump_ptr, moved, momentum, lane, P: tl.constexpr, S: tl.constexpr):
    """s + jump [s; 1]"""
    row = jump_ptr + lane * S
    lower, inside = row + P * S, lane < P
    new_moved = moved + tl.load(row + 2 * P, inside, other=0.0)
    new_momentum = momentum + tl.load(lower + 2 * P, inside, other=0.0)
    for k in range(P):
        m, b = pick(moved, k, lane), pick(momentum, k, lane)
        new_moved += tl.load(row + k, inside, other=0.0) * m
        new_moved += tl.load(row + P + k, inside, other=0.0) * b
        new_momentum += tl.load(lower + k, inside, other=0.0) * m
        new_momentum += tl.load(lower + P + k, inside, other=0.0) * b
    return new_moved, new_momentum


@triton.jit
def store_column(one_ptr, column, rule, p, g, b, lane, P: tl.constexpr, S: tl.constexpr):
    """What one step adds to (p, b), for the part of the state that column stands for."""
    zero = tl.zeros(p.shape, tl.float64)
    new = update(rule, p, g, (b, zero + 1.0, zero, zero), SGD, tl.float64)
    tl.store(one_ptr + lane * S + column, new[0] - p, lane < P)
    tl.store(one_ptr + (P + lane) * S + column, new[1] - b, lane < P)


@triton.jit
def one_epoch(
    one_ptr, fit, origin, rule, model, p_lane, k_lane, P: tl.constexpr, S: tl.constexpr,
    IDENTITY: tl.constexpr,
):  # fmt: skip
    """One epoch as a matrix; the gradient's linear part comes from the Gram matrix alone."""
    zero = tl.zeros(p_lane.shape, tl.float64)
    _, base = objective_of_moments(fit, origin, model, p_lane, k_lane, IDENTITY, False)
    constant = coefficients(zero, model, p_lane, k_lane, IDENTITY)
    for j in range(P):
        unit = tl.where(p_lane == j, 1.0, 0.0).to(tl.float64)
        turned = coefficients(unit, model, p_lane, k_lane, IDENTITY) - constant
        slope = times(fit[1], times(fit[0], turned))
        response = grad_of_moved(fit, slope, unit, model, p_lane, k_lane, IDENTITY)
        store_column(one_ptr, j, rule, unit, response, zero, p_lane, P, S)
        store_column(one_ptr, P + j, rule, zero, zero, unit, p_lane, P, S)
        tl.store(one_ptr + 2 * P * S + j, 0.0)
        tl.store(one_ptr + 2 * P * S + P + j, 0.0)
    store_column(one_ptr, 2 * P, rule, origin, base, zero, p_lane, P, S)
    tl.store(one_ptr + 2 * P * S + 2 * P, 0.0)
    tl.debug_barrier()


@triton.jit
def origin_of(fit, params, rule, lane, P: tl.constexpr, IDENTITY: tl.constexpr):
    """The reference polynomial in the model's variable where that is finite, else the start."""
    origin = params
    if IDENTITY:
        coef = tl.zeros(lane.shape, tl.float64)
        for back in range(P):
            k = P - 1 - back
            row = tl.sum(tl.where(lane[:, None] == k, fit[0], 0.0), axis=0)
            rest = pick(fit[3], k, lane) - tl.sum(tl.where(lane > k, row * coef, 0.0), axis=0)
            coef = tl.where(lane == k, rest / pick(row, k, lane), coef)
        infinite = tl.sum(tl.where(is_finite(coef), 0, 1), axis=0)
        origin = tl.where(is_owned(rule) & (infinite == 0), coef, params)
    return origin


@triton.jit
def jumps(
    run, fit, rule, schedule, state_ptr, work_ptr, model, p_lane, k_lane,
    P: tl.constexpr, SW: tl.constexpr, BAND: tl.constexpr, IDENTITY: tl.constexpr,
):  # fmt: skip
    """The epochs up to the last, which the caller takes apart for the gradient it leaves behind."""
    S: tl.constexpr = 2 * P + 1
    first_epoch, every, last = schedule[0], schedule[2], schedule[1] - 1
    one_ptr, powers_ptr = work_ptr, work_ptr + S * S
    params, filled, done = run[0], run[2] != 0.0, run[6]
    origin = origin_of(fit, params, rule, p_lane, P, IDENTITY)
    one_epoch(one_ptr, fit, origin, rule, model, p_lane, k_lane, P, S, IDENTITY)
    moved, momentum = params - origin, tl.where(filled, run[1], 0.0)
    length = tl.full([], 0, tl.int64)
    jump_ptr = powers_ptr
    loss = run[8]
    while done < last:
        target = last
        if every > 0:
            epoch = first_epoch + done
            target = tl.minimum(last, done + every - epoch % every)
            if epoch % every == 0:
                loss, _ = objective_of_moments(
                    fit, origin + moved, model, p_lane, k_lane, IDENTITY, False
                )
                record(state_ptr, loss, epoch, first_epoch, every, P)
        if target - done != length:
            length = target - done
            jump_ptr = power(one_ptr, powers_ptr, length, S, SW, BAND)
        moved, momentum = apply(jump_ptr, moved, momentum, p_lane, P, S)
        done = target
    momentum = tl.where(filled & fills_momentum(rule, SGD), momentum, run[1])
    return (origin + moved, momentum, run[2], run[3], run[4], run[5], done, run[7], run[8])
