"""Fused step and fused run that read the samples in every epoch."""

import triton
import triton.language as tl

from .coefficients import coefficients, pull_back
from .criterion import SQUARED_ERROR
from .data import held, kernel, read, weigh
from .optimizer import follow, load_rule
from .passes import add_loss, tile_pass, zero_sums
from .reduce import collect, is_last, leave_barrier, publish, wait_for_all
from .state import advance, enter, leave, leave_outcome, load_bounds, remember, start_of
from .vectors import pick, totals, unpack


@triton.jit
def objective_of_sums(
    total, lane, params, model, p_lane, k_lane, weight, K: tl.constexpr, KIND: tl.constexpr,
    IDENTITY: tl.constexpr, MEAN: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Loss and gradient [P] from the sums of `add_loss`."""
    loss = pick(total, 0, lane)
    if KIND == SQUARED_ERROR:
        weight = 1.0
    if MEAN:
        weight *= 1.0 / pick(total, K + 1, lane)
    sums = tl.sum(tl.where(lane[None, :] == k_lane[:, None] + 1, total[None, :], 0.0), axis=1)
    grad_coef = tl.where(k_lane < K, sums * weight, 0.0)
    grad = pull_back(params, grad_coef, model, p_lane, k_lane, IDENTITY)
    loss *= weight
    if ROUND:
        loss = loss.to(tl.float32).to(tl.float64)
        grad = grad.to(tl.float32).to(tl.float64)
    return loss, grad


@kernel
def step_kernel(
    x_ptr, y_ptr, n_points: tl.int64, x_stride, y_stride,
    shift: tl.float64, scale: tl.float64,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, record_every: tl.int64, tol: tl.float64,
    work_ptr, counters_ptr, tables_ptr, weight: tl.float64, number: tl.float64,
    w_ptr, w_stride,
    P: tl.constexpr, K: tl.constexpr, PW: tl.constexpr, KW: tl.constexpr, SW: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr,
    IDENTITY: tl.constexpr, OMIT: tl.constexpr, MEAN: tl.constexpr,
    LOAD: tl.constexpr, STORE: tl.constexpr, ROUND: tl.constexpr, KIND: tl.constexpr,
    LOG: tl.constexpr, FULL: tl.constexpr, METHOD: tl.constexpr, SINGLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
):  # fmt: skip
    """One step: the last program adds the partial sums and applies the update."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (x_ptr, y_ptr, n_points, x_stride, y_stride, shift, scale, w_ptr, w_stride)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, k_lane, lane = tl.arange(0, PW), tl.arange(0, KW), tl.arange(0, SW)
    entered = enter(state_ptr, tables_ptr, p_lane, P, T, LOAD, METHOD, SINGLE)
    coef = unpack(coefficients(entered[0], model, p_lane, k_lane, IDENTITY), k_lane, K)
    sums = tile_pass(
        zero_sums(K + 2, ROWS), data, tl.program_id(0), tl.num_programs(0),
        (coef, KIND, number, LOG, FULL), add_loss, K, ROWS, VEC, OMIT,
        WEIGHTED,
    )  # fmt: skip
    publish(work_ptr, 0, totals(sums, lane, K + 2), lane, K + 2)
    if is_last(counters_ptr):
        rule = load_rule(rule_ptr, p_lane, P)
        run = start_of(entered, state_ptr, P, LOAD)
        remember(state_ptr, run[0], p_lane, P)
        total = collect(work_ptr, 0, lane, K + 2, CHUNK)
        loss, grad = objective_of_sums(
            total, lane, run[0], model, p_lane, k_lane, weight, K, KIND, IDENTITY, MEAN, ROUND
        )
        one = (first_epoch, 1, record_every, tol)
        run = advance(run, loss, grad, rule, (), one, state_ptr, P, ROUND, METHOD, False)
        leave(state_ptr, tables_ptr, run, rule, True, p_lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)


@kernel
def stream_kernel(
    x_ptr, y_ptr, n_points: tl.int64, x_stride, y_stride,
    shift: tl.float64, scale: tl.float64,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    work_ptr, counters_ptr, weight: tl.float64, number: tl.float64, w_ptr, w_stride,
    changes_ptr, tables_ptr, bounds_ptr,
    P: tl.constexpr, K: tl.constexpr, PW: tl.constexpr, KW: tl.constexpr, SW: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr,
    ALONE: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr, MEAN: tl.constexpr,
    KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr, METHOD: tl.constexpr,
    WEIGHTED: tl.constexpr, CHANGES: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr,
    SINGLE: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """All epochs: RESIDENT tiles of every program stay in registers, the others are read again.

    Every program adds the same partial sums in the same order and takes the same step, so that an
    epoch has one barrier; ALONE: there is one program, and no barrier.
    """
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (x_ptr, y_ptr, n_points, x_stride, y_stride, shift, scale, w_ptr, w_stride)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, k_lane, lane = tl.arange(0, PW), tl.arange(0, KW), tl.arange(0, SW)
    me, programs = tl.program_id(0), tl.num_programs(0)
    rule = load_rule(rule_ptr, p_lane, P)
    bounds = load_bounds(bounds_ptr, p_lane, P, BOUNDED)
    entered = enter(state_ptr, tables_ptr, p_lane, P, T, LOAD, METHOD, SINGLE)
    run = start_of(entered, state_ptr, P, LOAD)
    schedule = (first_epoch, epochs, record_every, tol)
    xs, ys, ws = (), (), ()
    for i in tl.static_range(RESIDENT):
        x, y, w = read(data, me + i * programs, ROWS, VEC, True, WEIGHTED)
        xs, ys, ws = xs + (x,), ys + (y,), ws + (w,)

    # The pass after the last step finds the loss at the parameters left behind.
    open_ = tl.full([], 1, tl.int1)
    loss = tl.full([], 0.0, tl.float64)
    passes = tl.full([], 0, tl.int64)
    row = tl.full([], 0, tl.int64)
    while open_:
        coef = unpack(coefficients(run[0], model, p_lane, k_lane, IDENTITY), k_lane, K)
        sums = zero_sums(K + 2, ROWS)
        zero = run[6] >> 62
        limited = (x_ptr, y_ptr, n_points + zero, x_stride, y_stride, shift, scale, w_ptr, w_stride)
        for i in tl.static_range(RESIDENT):
            x, y = held(xs[i], zero.to(tl.int32)), held(ys[i], zero.to(tl.int32))
            w = x
            if WEIGHTED:
                w = held(ws[i], zero.to(tl.int32))
            sample = weigh(x, y, w, limited, me + i * programs, True, OMIT, WEIGHTED)
            sums = add_loss(sums, sample, (coef, KIND, number, LOG, FULL), K, True)
        first = me + RESIDENT * programs
        sums = tile_pass(
            sums, data, first, programs, (coef, KIND, number, LOG, FULL), add_loss, K, ROWS, VEC,
            OMIT, WEIGHTED,
        )  # fmt: skip
        total = totals(sums, lane, K + 2)
        if not ALONE:
            part = passes % 2
            publish(work_ptr, part, total, lane, K + 2)
            passes += 1
            wait_for_all(counters_ptr, passes * programs)
            total = collect(work_ptr, part, lane, K + 2, CHUNK)
        loss, grad = objective_of_sums(
            total, lane, run[0], model, p_lane, k_lane, weight, K, KIND, IDENTITY, MEAN, False
        )
        if (run[6] < epochs) & (run[7] == 0):
            run = advance(
                run, loss, grad, rule, bounds, schedule, state_ptr, P, False, METHOD, BOUNDED
            )
            if CHANGES:
                row, rule = follow(row, run[6], rule_ptr, changes_ptr, p_lane, P)
        else:
            open_ = tl.full([], 0, tl.int1)
    if me == 0:
        remember(state_ptr, entered[0], p_lane, P)
        leave(state_ptr, tables_ptr, run, rule, True, p_lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)
    if not ALONE:
        leave_barrier(counters_ptr)
