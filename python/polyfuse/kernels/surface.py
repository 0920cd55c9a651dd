"""Models that are linear in products of factors: fused steps and runs of several variables.

phi_k = prod_d ((x[v[d, k]] - shift[d, k]) * scale[d, k] - root[d, k]), v being -1 where there is no
factor. A tile [ROWS, W] holds the terms of some samples, a lane each; column ONE is the constant.
data: (x, y, w, how many, strides of x between samples and variables, of y, of w, variables);
terms: (v [D, C], (shift, scale, root) [3, D, C], D).
"""

import triton
import triton.language as tl

from .coefficients import coefficients, pull_back
from .criterion import value_and_slope
from .data import kernel
from .fit import run_on_moments
from .moments import back_substitute, factorise
from .optimizer import follow, load_rule
from .reduce import collect, is_last, leave_barrier, publish, wait_for_all
from .state import advance, enter, leave, leave_outcome, load_bounds, remember, start_of
from .vectors import is_finite, pick


@triton.jit
def read(data, tile, ROWS: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr):
    """Of the samples of a tile: where they lie, whether they count, y and the weight, [ROWS]."""
    row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
    keep = row < data[3]
    y = tl.load(data[1] + row * data[6], keep, other=0.0).to(tl.float64)
    if OMIT:
        keep = keep & is_finite(y)
        for v in range(data[8]):
            x = tl.load(data[0] + row * data[4] + v * data[5], keep, other=0.0)
            keep = keep & is_finite(x)
    weight = keep.to(tl.float64)
    if WEIGHTED:
        w = tl.load(data[2] + row * data[7], keep, other=0.0)
        keep = keep & (w != 0.0)
        weight = tl.where(keep, w.to(tl.float64), 0.0)
    return row, keep, tl.where(keep, y, 0.0), weight


@triton.jit
def terms_at(data, terms, row, keep, column, C: tl.constexpr):
    """phi [ROWS, W]; 1 past column C."""
    phi = tl.full([row.shape[0], column.shape[0]], 1.0, tl.float64)
    start = data[0] + row[:, None] * data[4]
    depth = terms[2]
    for d in range(depth):
        at = d * C + column
        v = tl.load(terms[0] + at, column < C, other=-1)
        shift = tl.load(terms[1] + at, column < C, other=0.0)
        scale = tl.load(terms[1] + depth * C + at, column < C, other=0.0)
        root = tl.load(terms[1] + 2 * depth * C + at, column < C, other=-1.0)
        there = keep[:, None] & (v >= 0)[None, :]
        x = tl.load(start + v[None, :] * data[5], there, other=0.0).to(tl.float64)
        phi *= (x - shift[None, :]) * scale[None, :] - root[None, :]
    return phi


@triton.jit
def thinned(data, every):
    """One sample of `every`."""
    n = (data[3] + every - 1) // every
    return (
        data[0], data[1], data[2], n, data[4] * every, data[5], data[6] * every, data[7] * every,
        data[8],
    )  # fmt: skip


@triton.jit
def gram_of(
    data, terms, reference, first, every, lane, C: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums [W, W] of w a_i a_j over the tiles first, first + every, ...; a: the C terms, and then
    r = V reference - y."""
    gram = tl.zeros([W, W], tl.float64)
    for tile in range(first, tl.cdiv(data[3], ROWS), every):
        row, keep, y, w = read(data, tile, ROWS, OMIT, WEIGHTED)
        phi = terms_at(data, terms, row, keep, lane, C)
        r = tl.sum(phi * reference[None, :], axis=1) - y
        both = tl.where(lane[None, :] == C, r[:, None], phi)
        gram = tl.dot(tl.trans(both * w[:, None]), both, gram, out_dtype=tl.float64)
    return gram


@triton.jit
def pilot(
    data, terms, lane, K: tl.constexpr, C: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr,
    WEIGHTED: tl.constexpr,
):  # fmt: skip
    """A reference [W] from about 1024 samples; every program finds the same bits."""
    zero = tl.zeros([W], tl.float64)
    few = thinned(data, tl.maximum(data[3] // 1024, 1))
    sums = gram_of(few, terms, zero, 0, 1, lane, C, W, ROWS, True, WEIGHTED)
    i, j = lane[:, None], lane[None, :]
    cross = tl.sum(tl.where((i < K) & (j == C), sums, 0.0), axis=1)
    square = tl.sum(tl.sum(tl.where((i == C) & (j == C), sums, 0.0), axis=1), axis=0)
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
def load_fit(
    moments_ptr, change_ptr, weight, lane, K: tl.constexpr, C: tl.constexpr, W: tl.constexpr,
    ONE: tl.constexpr, MEAN: tl.constexpr, CHANGE: tl.constexpr,
):  # fmt: skip
    """As that of moments.py, from the sums of `gram_of` [W, W] and then the reference [W]; CHANGE:
    the terms of the moments are not the model's, whose coefficients [K, K] turns into theirs."""
    i, j, inside = lane[:, None], lane[None, :], lane < K
    if MEAN:
        weight *= 1.0 / tl.load(moments_ptr + ONE * W + ONE)
    change = tl.where(i == j, 1.0, 0.0).to(tl.float64)
    if CHANGE:
        change = tl.load(change_ptr + i * K + j, (i < K) & (j < K), other=0.0)
    return (
        change,
        tl.load(moments_ptr + i * W + j, (i < K) & (j < K), other=0.0),
        tl.load(moments_ptr + lane * W + C, inside, other=0.0),
        tl.load(moments_ptr + W * W + lane, inside, other=0.0),
        tl.load(moments_ptr + C * W + C),
        weight,
    )


@kernel
def surface_moments_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, x_column,
    y_stride, w_stride, n_variables: tl.int32,
    variable_ptr, frame_ptr, n_factors: tl.int32,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    moments_ptr, scratch_ptr, work_ptr, counters_ptr, tables_ptr, changes_ptr, change_ptr,
    bounds_ptr, weight: tl.float64,
    P: tl.constexpr, K: tl.constexpr, C: tl.constexpr, ONE: tl.constexpr, PW: tl.constexpr,
    W: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, BAND: tl.constexpr,
    JUMP: tl.constexpr, GIVEN: tl.constexpr, RUN: tl.constexpr, CLOSED: tl.constexpr,
    STEP: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr, MEAN: tl.constexpr,
    LOAD: tl.constexpr, STORE: tl.constexpr, ROUND: tl.constexpr, METHOD: tl.constexpr,
    SINGLE: tl.constexpr, WEIGHTED: tl.constexpr, CHANGES: tl.constexpr, CHANGE: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """As moments_kernel; the moments are sums over pairs of terms, on the tensor cores."""
    data = (
        x_ptr, y_ptr, w_ptr, n_points, x_stride, x_column, y_stride, w_stride, n_variables,
    )  # fmt: skip
    terms = (variable_ptr, frame_ptr, n_factors)
    p_lane, lane, flat = tl.arange(0, PW), tl.arange(0, W), tl.arange(0, W * W)
    mine = True
    if not GIVEN:
        reference = pilot(data, terms, lane, K, C, W, ROWS, WEIGHTED)
        sums = gram_of(
            data, terms, reference, tl.program_id(0), tl.num_programs(0), lane, C, W, ROWS, OMIT,
            WEIGHTED,
        )  # fmt: skip
        publish(work_ptr, 0, tl.reshape(sums, [W * W]), flat, W * W)
        mine = is_last(counters_ptr)
        if mine:
            tl.store(moments_ptr + flat, collect(work_ptr, 0, flat, W * W, CHUNK))
            tl.store(moments_ptr + W * W + lane, reference)
            tl.debug_barrier()
    if RUN:
        if mine:
            run_on_moments(
                load_fit(moments_ptr, change_ptr, weight, lane, K, C, W, ONE, MEAN, CHANGE),
                (factor_ptr, span_ptr, slots_ptr, n_products), rule_ptr, changes_ptr, state_ptr,
                tables_ptr, scratch_ptr, bounds_ptr, (first_epoch, epochs, record_every, tol),
                p_lane, lane, P, x_ptr.dtype.element_ty, JUMP, BAND, CLOSED, STEP, IDENTITY, LOAD,
                STORE, ROUND, METHOD, SINGLE, CHANGES, BOUNDED,
            )  # fmt: skip


@triton.jit
def publish_loss(
    work_ptr, part, data, terms, coef, told, lane, K: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """One pass over this program's tiles; leaves [K of w slope phi_k, w value, w].

    told: what `value_and_slope` is told.
    """
    KIND: tl.constexpr = told[0]
    sums = tl.zeros([ROWS, lane.shape[0]], tl.float64)
    total, count = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for tile in range(tl.program_id(0), tl.cdiv(data[3], ROWS), tl.num_programs(0)):
        row, keep, y, w = read(data, tile, ROWS, OMIT, WEIGHTED)
        phi = terms_at(data, terms, row, keep, lane, C)
        prediction = tl.sum(phi * coef[None, :], axis=1)
        value, slope = value_and_slope(prediction, y, KIND, told[1], told[2], told[3])
        total += tl.where(keep, value * w, 0.0)
        sums += phi * tl.where(keep, slope * w, 0.0)[:, None]
        count += w
    at = work_ptr + (part * tl.num_programs(0) + tl.program_id(0)) * (K + 2)
    tl.store(at + lane, tl.sum(sums, axis=0), lane < K)
    tl.store(at + K, tl.sum(total, axis=0))
    tl.store(at + K + 1, tl.sum(count, axis=0))


@triton.jit
def objective_of_sums(
    work_ptr, part, params, model, p_lane, k_lane, weight, K: tl.constexpr, CHUNK: tl.constexpr,
    IDENTITY: tl.constexpr, MEAN: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Loss and gradient [P] from what the programs have published."""
    ends = tl.arange(0, 2)
    both = collect(work_ptr, part, K + ends, K + 2, CHUNK)
    if MEAN:
        weight *= 1.0 / pick(both, 1, ends)
    sums = collect(work_ptr, part, k_lane, K + 2, CHUNK)
    loss = pick(both, 0, ends) * weight
    grad_coef = tl.where(k_lane < K, sums * weight, 0.0)
    grad = pull_back(params, grad_coef, model, p_lane, k_lane, IDENTITY)
    if ROUND:
        loss = loss.to(tl.float32).to(tl.float64)
        grad = grad.to(tl.float32).to(tl.float64)
    return loss, grad


@kernel
def surface_step_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, x_column,
    y_stride, w_stride, n_variables: tl.int32,
    variable_ptr, frame_ptr, n_factors: tl.int32,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, record_every: tl.int64, tol: tl.float64, work_ptr, counters_ptr,
    tables_ptr, weight: tl.float64, number: tl.float64,
    P: tl.constexpr, K: tl.constexpr, C: tl.constexpr, PW: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr,
    MEAN: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr, ROUND: tl.constexpr,
    KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr, METHOD: tl.constexpr,
    SINGLE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """One step: the last program adds the partial sums and applies the update."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (
        x_ptr, y_ptr, w_ptr, n_points, x_stride, x_column, y_stride, w_stride, n_variables,
    )  # fmt: skip
    terms = (variable_ptr, frame_ptr, n_factors)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, lane = tl.arange(0, PW), tl.arange(0, W)
    entered = enter(state_ptr, tables_ptr, p_lane, P, T, LOAD, METHOD, SINGLE)
    coef = coefficients(entered[0], model, p_lane, lane, IDENTITY)
    publish_loss(
        work_ptr, 0, data, terms, coef, (KIND, number, LOG, FULL), lane, K, C, ROWS, OMIT, WEIGHTED
    )
    if is_last(counters_ptr):
        rule = load_rule(rule_ptr, p_lane, P)
        run = start_of(entered, state_ptr, P, LOAD)
        remember(state_ptr, run[0], p_lane, P)
        loss, grad = objective_of_sums(
            work_ptr, 0, run[0], model, p_lane, lane, weight, K, CHUNK, IDENTITY, MEAN, ROUND
        )
        one = (first_epoch, 1, record_every, tol)
        run = advance(run, loss, grad, rule, (), one, state_ptr, P, ROUND, METHOD, False)
        leave(state_ptr, tables_ptr, run, rule, True, p_lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)


@kernel
def surface_stream_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, x_column,
    y_stride, w_stride, n_variables: tl.int32,
    variable_ptr, frame_ptr, n_factors: tl.int32,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    work_ptr, counters_ptr, weight: tl.float64, number: tl.float64, changes_ptr, tables_ptr,
    bounds_ptr,
    P: tl.constexpr, K: tl.constexpr, C: tl.constexpr, PW: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr,
    MEAN: tl.constexpr, KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr,
    METHOD: tl.constexpr, WEIGHTED: tl.constexpr, CHANGES: tl.constexpr, LOAD: tl.constexpr,
    STORE: tl.constexpr, SINGLE: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """All epochs, as stream_kernel takes them; a program alone meets nobody at the barrier."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (
        x_ptr, y_ptr, w_ptr, n_points, x_stride, x_column, y_stride, w_stride, n_variables,
    )  # fmt: skip
    terms = (variable_ptr, frame_ptr, n_factors)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, lane = tl.arange(0, PW), tl.arange(0, W)
    rule = load_rule(rule_ptr, p_lane, P)
    bounds = load_bounds(bounds_ptr, p_lane, P, BOUNDED)
    entered = enter(state_ptr, tables_ptr, p_lane, P, T, LOAD, METHOD, SINGLE)
    run = start_of(entered, state_ptr, P, LOAD)
    schedule = (first_epoch, epochs, record_every, tol)
    # The pass after the last step finds the loss at the parameters left behind.
    open_ = tl.full([], 1, tl.int1)
    loss = tl.full([], 0.0, tl.float64)
    passes = tl.full([], 0, tl.int64)
    row = tl.full([], 0, tl.int64)
    while open_:
        coef = coefficients(run[0], model, p_lane, lane, IDENTITY)
        part = passes % 2
        publish_loss(
            work_ptr, part, data, terms, coef, (KIND, number, LOG, FULL), lane, K, C, ROWS, OMIT,
            WEIGHTED,
        )  # fmt: skip
        passes += 1
        wait_for_all(counters_ptr, passes * tl.num_programs(0))
        loss, grad = objective_of_sums(
            work_ptr, part, run[0], model, p_lane, lane, weight, K, CHUNK, IDENTITY, MEAN, False
        )  # fmt: skip
        if (run[6] < epochs) & (run[7] == 0):
            run = advance(
                run, loss, grad, rule, bounds, schedule, state_ptr, P, False, METHOD, BOUNDED
            )
            if CHANGES:
                row, rule = follow(row, run[6], rule_ptr, changes_ptr, p_lane, P)
        else:
            open_ = tl.full([], 0, tl.int1)
    if tl.program_id(0) == 0:
        remember(state_ptr, entered[0], p_lane, P)
        leave(state_ptr, tables_ptr, run, rule, True, p_lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)
    leave_barrier(counters_ptr)
