"""Moments of models of several variables, sums over pairs of columns, and runs from them.

data and terms: as in surface.py.
"""

import triton
import triton.language as tl

from .data import kernel
from .fit import run_on_moments
from .moments import back_substitute, factorise
from .reduce import collect, is_last, publish
from .surface import read, terms_at


@triton.jit
def thinned(data, every):
    """One sample of `every`."""
    n = (data[3] + every - 1) // every
    return (
        data[0], data[1], data[2], n, data[4] * every, data[5] * every, data[6] * every, data[7],
        data[8], data[9], data[10],
    )  # fmt: skip


@triton.jit
def gram_of(
    data, terms, reference, first, every, lane, C: tl.constexpr, OUTPUTS: tl.constexpr,
    W: tl.constexpr, ROWS: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums [W, W] of w a_i a_j over the tiles first, first + every, ...; a: the C terms, and then
    r = V reference - y, of OUTPUTS one each, whose references [W, W] lie in their columns."""
    gram = tl.zeros([W, W], tl.float64)
    for tile in range(first, tl.cdiv(data[3], ROWS), every):
        row, keep, y, w = read(data, tile, lane - C, ROWS, OUTPUTS, OMIT, WEIGHTED)
        phi = terms_at(data, terms, row, keep, lane, C)
        if OUTPUTS > 0:
            r = tl.dot(phi, reference, out_dtype=tl.float64) - y
            both = tl.where(lane[None, :] < C, phi, r)
            w = tl.max(w, axis=1)
        else:
            r = tl.sum(phi * reference[None, :], axis=1) - y
            both = tl.where(lane[None, :] == C, r[:, None], phi)
        gram = tl.dot(tl.trans(both * w[:, None]), both, gram, out_dtype=tl.float64)
    return gram


@triton.jit
def solve(sums, residual, lane, K: tl.constexpr):
    """The optimum [W] of the data whose residuals are those of a reference of 0, in that column."""
    i, j = lane[:, None], lane[None, :]
    cross = tl.sum(tl.where((i < K) & (j == residual), sums, 0.0), axis=1)
    of_itself = tl.where((i == residual) & (j == residual), sums, 0.0)
    square = tl.sum(tl.sum(of_itself, axis=1), axis=0)
    gram = tl.where((i < K) & (j < K), sums, 0.0)
    power = tl.sum(tl.where(i == j, gram, 0.0), axis=1)
    lower, along = factorise(gram, cross, square, lane, K)
    step, swell = along, tl.full([], float("inf"), tl.float64)
    most = tl.full([], K, tl.int32)
    while (most >= 0) & (swell > 1e5 * square):  # as csrc/cpu/surface_run.cpp
        step = back_substitute(lower, tl.where(lane < most, along, 0.0), lane, K)
        swell = tl.sum(step * step * power, axis=0)
        most -= 1
    return step


@triton.jit
def pilot(
    data, terms, lane, K: tl.constexpr, C: tl.constexpr, OUTPUTS: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """A reference as `gram_of` takes it, from about 1024 samples; every program finds the same
    bits."""
    few = thinned(data, tl.maximum(data[3] // 1024, 1))
    reference = tl.zeros([W, W] if OUTPUTS > 0 else [W], tl.float64)
    sums = gram_of(few, terms, reference, 0, 1, lane, C, OUTPUTS, W, ROWS, True, WEIGHTED)
    if OUTPUTS > 0:
        for residual in range(C, C + OUTPUTS):
            step = solve(sums, residual, lane, K)
            reference = tl.where(lane[None, :] == residual, step[:, None], reference)
    else:
        reference = solve(sums, C, lane, K)
    return reference


@triton.jit
def load_fit(
    moments_ptr, change_ptr, weight, lane, K: tl.constexpr, C: tl.constexpr, OUTPUTS: tl.constexpr,
    W: tl.constexpr, ONE: tl.constexpr, MEAN: tl.constexpr, CHANGE: tl.constexpr,
):  # fmt: skip
    """As that of moments.py, from the sums of `gram_of` [W, W] and then the reference, [K] or
    [K, OUTPUTS], of which lanes are the coefficients: outputs have the terms' gram in common.
    CHANGE: the terms of the moments are not the model's, whose coefficients [K, K] turns into
    theirs."""
    MANY: tl.constexpr = OUTPUTS if OUTPUTS > 0 else 1
    i, j, inside = lane[:, None], lane[None, :], lane < K * MANY
    alike = inside[:, None] & inside[None, :] & (i % MANY == j % MANY)
    if MEAN:
        weight *= 1.0 / (tl.load(moments_ptr + ONE * W + ONE) * MANY)
    change = tl.where(i == j, 1.0, 0.0).to(tl.float64)
    if CHANGE:
        change = tl.load(change_ptr + i * K + j, alike, other=0.0)
    if OUTPUTS > 0:
        squares = tl.load(moments_ptr + (C + lane) * (W + 1), lane < OUTPUTS, other=0.0)
        square = tl.sum(squares, axis=0)
    else:
        square = tl.load(moments_ptr + C * W + C)
    return (
        change,
        tl.load(moments_ptr + i // MANY * W + j // MANY, alike, other=0.0),
        tl.load(moments_ptr + lane // MANY * W + C + lane % MANY, inside, other=0.0),
        tl.load(moments_ptr + W * W + lane, inside, other=0.0),
        square,
        weight,
    )


@kernel
def surface_moments_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, y_stride, w_stride,
    n_variables: tl.int32, x_column, y_output, w_output,
    variable_ptr, frame_ptr, n_factors: tl.int32,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    moments_ptr, scratch_ptr, work_ptr, counters_ptr, tables_ptr, changes_ptr, change_ptr,
    bounds_ptr, weight: tl.float64,
    P: tl.constexpr, K: tl.constexpr, C: tl.constexpr, OUTPUTS: tl.constexpr, ONE: tl.constexpr,
    PW: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, BAND: tl.constexpr,
    JUMP: tl.constexpr, GIVEN: tl.constexpr, RUN: tl.constexpr, CLOSED: tl.constexpr,
    STEP: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr, MEAN: tl.constexpr,
    LOAD: tl.constexpr, STORE: tl.constexpr, ROUND: tl.constexpr, METHOD: tl.constexpr,
    SINGLE: tl.constexpr, WEIGHTED: tl.constexpr, CHANGES: tl.constexpr, CHANGE: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """As moments_kernel; the moments are sums over pairs of terms, on the tensor cores."""
    data = (
        x_ptr, y_ptr, w_ptr, n_points, x_stride, y_stride, w_stride, n_variables, x_column,
        y_output, w_output,
    )  # fmt: skip
    terms = (variable_ptr, frame_ptr, n_factors)
    p_lane, lane, flat = tl.arange(0, PW), tl.arange(0, W), tl.arange(0, W * W)
    mine = True
    if not GIVEN:
        reference = pilot(data, terms, lane, K, C, OUTPUTS, W, ROWS, WEIGHTED)
        sums = gram_of(
            data, terms, reference, tl.program_id(0), tl.num_programs(0), lane, C, OUTPUTS, W, ROWS,
            OMIT, WEIGHTED,
        )  # fmt: skip
        publish(work_ptr, 0, tl.reshape(sums, [W * W]), flat, W * W)
        mine = is_last(counters_ptr)
        if mine:
            tl.store(moments_ptr + flat, collect(work_ptr, 0, flat, W * W, CHUNK))
            at = moments_ptr + W * W
            if OUTPUTS > 0:
                output = lane[None, :] - C
                there = (lane < K)[:, None] & (output >= 0) & (output < OUTPUTS)
                tl.store(at + lane[:, None] * OUTPUTS + output, reference, there)
            else:
                tl.store(at + lane, reference)
            tl.debug_barrier()
    if RUN:
        if mine:
            k_lane = p_lane if OUTPUTS > 0 else lane
            run_on_moments(
                load_fit(
                    moments_ptr, change_ptr, weight, k_lane, K, C, OUTPUTS, W, ONE, MEAN, CHANGE
                ),
                (factor_ptr, span_ptr, slots_ptr, n_products), rule_ptr, changes_ptr, state_ptr,
                tables_ptr, scratch_ptr, bounds_ptr, (first_epoch, epochs, record_every, tol),
                p_lane, k_lane, P, x_ptr.dtype.element_ty, JUMP, BAND, CLOSED, STEP, IDENTITY, LOAD,
                STORE, ROUND, METHOD, SINGLE, CHANGES, BOUNDED,
            )  # fmt: skip
