"""Models that are linear in products of factors: fused steps and runs of several variables.

phi_k = prod_d ((x[v[d, k]] - shift[d, k]) * scale[d, k] - root[d, k]), v being -1 where there is no
factor. A tile [ROWS, W] holds the terms of some samples, a lane each; column ONE is the constant.
OUTPUTS: of y [N, OUTPUTS], with coefficients [K, OUTPUTS]; 0: of y [N].
data: (x, y, w, how many, strides between samples of x, y and w, variables, strides of x between
variables, of y and w between outputs); terms: (v [D, C], (shift, scale, root) [3, D, C], D);
targets: as in cross_entropy.py.
"""

import triton
import triton.language as tl

from .coefficients import coefficients, pull_back
from .criterion import value_and_slope
from .cross_entropy import CROSS_ENTROPY, cross_entropy, shares
from .data import kernel
from .optimizer import follow, load_rule
from .reduce import collect, is_last, leave_barrier, wait_for_all
from .state import advance, enter, leave, leave_outcome, load_bounds, remember, start_of
from .vectors import is_finite, pick


@triton.jit
def some(flags):
    """Whether any of a row is true."""
    return tl.max(flags.to(tl.int32), axis=1) > 0


@triton.jit
def read(
    data, tile, output, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, OMIT: tl.constexpr,
    WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Of the samples of a tile: where they lie, whether they count, y and the weight, [ROWS]; y and
    weight of OUTPUTS are [ROWS, lanes], each lane's of its `output`, 0 where that is none."""
    row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
    keep = row < data[3]
    y_at, w_at, there = data[1] + row * data[5], data[2] + row * data[6], keep
    if OUTPUTS > 0:
        y_at = y_at[:, None] + output[None, :] * data[9]
        w_at = w_at[:, None] + output[None, :] * data[10]
        there = keep[:, None] & ((output >= 0) & (output < OUTPUTS))[None, :]
    y = tl.load(y_at, there, other=0.0).to(tl.float64)
    if OMIT:
        keep = keep & (~some(~is_finite(y)) if OUTPUTS > 0 else is_finite(y))
        for v in range(data[7]):
            x = tl.load(data[0] + row * data[4] + v * data[8], keep, other=0.0)
            keep = keep & is_finite(x)
        there = there & keep[:, None] if OUTPUTS > 0 else keep
    weight = there.to(tl.float64)
    if WEIGHTED:
        w = tl.load(w_at, there, other=0.0)
        there = there & (w != 0.0)
        keep = some(there) if OUTPUTS > 0 else there
        weight = tl.where(there, w.to(tl.float64), 0.0)
    return row, keep, tl.where(there, y, 0.0), weight


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
        x = tl.load(start + v[None, :] * data[8], there, other=0.0).to(tl.float64)
        phi *= (x - shift[None, :]) * scale[None, :] - root[None, :]
    return phi


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
        row, keep, y, w = read(data, tile, lane, ROWS, 0, OMIT, WEIGHTED)
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
def publish_losses(
    work_ptr, part, data, terms, params, told, targets, lane, K: tl.constexpr, C: tl.constexpr,
    OUTPUTS: tl.constexpr, CW: tl.constexpr, ROWS: tl.constexpr, WEIGHTED: tl.constexpr,
    INDEX: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """The same of OUTPUTS, in CW lanes: leaves [K OUTPUTS of w slope phi_k, w value, what counts in
    a mean], and of cross entropy how many samples are kept."""
    KIND: tl.constexpr = told[0]
    W: tl.constexpr = lane.shape[0]
    CLASSES: tl.constexpr = KIND == CROSS_ENTROPY
    SIZE: tl.constexpr = K * OUTPUTS
    REST: tl.constexpr = 3 if CLASSES else 2
    output = tl.arange(0, CW)
    place = lane[:, None] * OUTPUTS + output[None, :]
    there = (lane < K)[:, None] & (output < OUTPUTS)[None, :]
    coef = tl.gather(params, tl.reshape(tl.where(there, place, 0), [W * CW]), axis=0)
    coef = tl.where(there, tl.reshape(coef, [W, CW]), 0.0)
    sums = tl.zeros([W, CW], tl.float64)
    total, counted = tl.zeros([ROWS, CW], tl.float64), tl.zeros([ROWS, CW], tl.float64)
    kept = tl.zeros([ROWS], tl.float64)
    for tile in range(tl.program_id(0), tl.cdiv(data[3], ROWS), tl.num_programs(0)):
        row, keep, y, w = read(data, tile, output, ROWS, OUTPUTS, False, WEIGHTED)
        if CLASSES:
            share, part_of_loss, w, keep = shares(
                targets, row, keep, tl.max(w, axis=1), output, OUTPUTS, INDEX, SMOOTH
            )
            kept += keep.to(tl.float64)
        phi = terms_at(data, terms, row, keep, lane, C)
        prediction = tl.dot(phi, coef, out_dtype=tl.float64)
        if CLASSES:
            value, slope = cross_entropy(prediction, share, part_of_loss, output, OUTPUTS)
        else:
            value, slope = value_and_slope(prediction, y, KIND, told[1], told[2], told[3])
            value, slope = tl.where(w != 0.0, value * w, 0.0), tl.where(w != 0.0, slope * w, 0.0)
        total += value
        counted += w
        sums = tl.dot(tl.trans(phi), slope, sums, out_dtype=tl.float64)
    at = work_ptr + (part * tl.num_programs(0) + tl.program_id(0)) * (SIZE + REST)
    tl.store(at + place, sums, there)
    tl.store(at + SIZE, tl.sum(tl.sum(total, axis=1), axis=0))
    tl.store(at + SIZE + 1, tl.sum(tl.sum(counted, axis=1), axis=0))
    if CLASSES:
        tl.store(at + SIZE + 2, tl.sum(kept, axis=0))


@triton.jit
def objective_of_sums(
    work_ptr, part, params, model, p_lane, k_lane, weight, K: tl.constexpr, OUTPUTS: tl.constexpr,
    CHUNK: tl.constexpr, IDENTITY: tl.constexpr, MEAN: tl.constexpr, ROUND: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Loss and gradient [P] from what the programs have published."""
    CLASSES: tl.constexpr = KIND == CROSS_ENTROPY
    REST: tl.constexpr = 3 if CLASSES else 2
    SIZE: tl.constexpr = K * OUTPUTS if OUTPUTS > 0 else K
    ends = tl.arange(0, 4 if CLASSES else 2)
    rest = collect(work_ptr, part, SIZE + ends, SIZE + REST, CHUNK)
    if MEAN:
        weight *= 1.0 / pick(rest, 1, ends)
    sums = collect(work_ptr, part, k_lane, SIZE + REST, CHUNK)
    loss = pick(rest, 0, ends) * weight
    grad_coef = tl.where(k_lane < SIZE, sums * weight, 0.0)
    if CLASSES:  # as torch, samples that are left out have no gradient
        grad_coef = tl.where(pick(rest, 2, ends) > 0.0, grad_coef, 0.0)
    grad = pull_back(params, grad_coef, model, p_lane, k_lane, IDENTITY)
    if ROUND:
        loss = loss.to(tl.float32).to(tl.float64)
        grad = grad.to(tl.float32).to(tl.float64)
    return loss, grad


@kernel
def surface_step_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, y_stride, w_stride,
    n_variables: tl.int32, x_column, y_output, w_output,
    variable_ptr, frame_ptr, n_factors: tl.int32,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, record_every: tl.int64, tol: tl.float64, work_ptr, counters_ptr,
    tables_ptr, weight: tl.float64, number: tl.float64, class_ptr, ignored: tl.int64,
    smoothing: tl.float64,
    P: tl.constexpr, K: tl.constexpr, C: tl.constexpr, OUTPUTS: tl.constexpr, PW: tl.constexpr,
    W: tl.constexpr, CW: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr,
    MEAN: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr, ROUND: tl.constexpr,
    KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr, METHOD: tl.constexpr,
    SINGLE: tl.constexpr, WEIGHTED: tl.constexpr, INDEX: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """One step: the last program adds the partial sums and applies the update."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (
        x_ptr, y_ptr, w_ptr, n_points, x_stride, y_stride, w_stride, n_variables, x_column,
        y_output, w_output,
    )  # fmt: skip
    terms = (variable_ptr, frame_ptr, n_factors)
    targets = (y_ptr, y_stride, y_output, class_ptr, ignored, smoothing)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, lane = tl.arange(0, PW), tl.arange(0, W)
    k_lane = p_lane if OUTPUTS > 0 else lane
    entered = enter(state_ptr, tables_ptr, p_lane, P, T, LOAD, METHOD, SINGLE)
    if OUTPUTS > 0:
        publish_losses(
            work_ptr, 0, data, terms, entered[0], (KIND, number, LOG, FULL), targets, lane, K, C,
            OUTPUTS, CW, ROWS, WEIGHTED, INDEX, SMOOTH,
        )  # fmt: skip
    else:
        coef = coefficients(entered[0], model, p_lane, lane, IDENTITY)
        publish_loss(
            work_ptr, 0, data, terms, coef, (KIND, number, LOG, FULL), lane, K, C, ROWS, OMIT,
            WEIGHTED,
        )  # fmt: skip
    if is_last(counters_ptr):
        rule = load_rule(rule_ptr, p_lane, P)
        run = start_of(entered, state_ptr, P, LOAD)
        remember(state_ptr, run[0], p_lane, P)
        loss, grad = objective_of_sums(
            work_ptr, 0, run[0], model, p_lane, k_lane, weight, K, OUTPUTS, CHUNK, IDENTITY, MEAN,
            ROUND, KIND,
        )  # fmt: skip
        one = (first_epoch, 1, record_every, tol)
        run = advance(run, loss, grad, rule, (), one, state_ptr, P, ROUND, METHOD, False)
        leave(state_ptr, tables_ptr, run, rule, True, p_lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)


@kernel
def surface_stream_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, y_stride, w_stride,
    n_variables: tl.int32, x_column, y_output, w_output,
    variable_ptr, frame_ptr, n_factors: tl.int32,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    work_ptr, counters_ptr, weight: tl.float64, number: tl.float64, class_ptr, ignored: tl.int64,
    smoothing: tl.float64, changes_ptr, tables_ptr, bounds_ptr,
    P: tl.constexpr, K: tl.constexpr, C: tl.constexpr, OUTPUTS: tl.constexpr, PW: tl.constexpr,
    W: tl.constexpr, CW: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr,
    MEAN: tl.constexpr, KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr,
    METHOD: tl.constexpr, WEIGHTED: tl.constexpr, CHANGES: tl.constexpr, LOAD: tl.constexpr,
    STORE: tl.constexpr, SINGLE: tl.constexpr, BOUNDED: tl.constexpr, INDEX: tl.constexpr,
    SMOOTH: tl.constexpr,
):  # fmt: skip
    """All epochs, as stream_kernel takes them; a program alone meets nobody at the barrier."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (
        x_ptr, y_ptr, w_ptr, n_points, x_stride, y_stride, w_stride, n_variables, x_column,
        y_output, w_output,
    )  # fmt: skip
    terms = (variable_ptr, frame_ptr, n_factors)
    targets = (y_ptr, y_stride, y_output, class_ptr, ignored, smoothing)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, lane = tl.arange(0, PW), tl.arange(0, W)
    k_lane = p_lane if OUTPUTS > 0 else lane
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
        part = passes % 2
        if OUTPUTS > 0:
            publish_losses(
                work_ptr, part, data, terms, run[0], (KIND, number, LOG, FULL), targets, lane, K,
                C, OUTPUTS, CW, ROWS, WEIGHTED, INDEX, SMOOTH,
            )  # fmt: skip
        else:
            coef = coefficients(run[0], model, p_lane, lane, IDENTITY)
            publish_loss(
                work_ptr, part, data, terms, coef, (KIND, number, LOG, FULL), lane, K, C, ROWS,
                OMIT, WEIGHTED,
            )  # fmt: skip
        passes += 1
        wait_for_all(counters_ptr, passes * tl.num_programs(0))
        loss, grad = objective_of_sums(
            work_ptr, part, run[0], model, p_lane, k_lane, weight, K, OUTPUTS, CHUNK, IDENTITY,
            MEAN, False, KIND,
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
