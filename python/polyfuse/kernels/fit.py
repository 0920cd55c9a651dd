"""Fused run from the moments: one pass over the samples, then all epochs in the last program."""

import triton
import triton.language as tl

from .affine import jumps
from .data import kernel
from .moments import load_fit, objective_of_moments, pilot, store_moments, thinned
from .optimizer import follow, load_rule
from .passes import add_moments, tile_pass, zero_sums
from .reduce import collect, is_last, publish
from .state import advance, enter, leave, leave_outcome, load_bounds, remember, start_of
from .vectors import is_finite, totals, unpack


@triton.jit
def descend(
    until, run, fit, rule, rules, bounds, schedule, state_ptr, model, p_lane, k_lane,
    P: tl.constexpr, IDENTITY: tl.constexpr, ROUND: tl.constexpr, METHOD: tl.constexpr,
    CHANGES: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """Epochs one by one, until so many are done or the run converged.

    rules: (the table of rules, when they change).
    """
    row = tl.full([], 0, tl.int64)
    while (run[6] < until) & (run[7] == 0):
        loss, grad = objective_of_moments(fit, run[0], model, p_lane, k_lane, IDENTITY, ROUND)
        run = advance(run, loss, grad, rule, bounds, schedule, state_ptr, P, ROUND, METHOD, BOUNDED)
        if CHANGES:
            row, rule = follow(row, run[6], rules[0], rules[1], p_lane, P)
    return run


@triton.jit
def run_on_moments(
    fit, model, rule_ptr, changes_ptr, state_ptr, tables_ptr, scratch_ptr, bounds_ptr, schedule,
    p_lane, k_lane, P: tl.constexpr, T: tl.constexpr, JUMP: tl.constexpr, BAND: tl.constexpr,
    CLOSED: tl.constexpr, STEP: tl.constexpr, IDENTITY: tl.constexpr, LOAD: tl.constexpr,
    STORE: tl.constexpr, ROUND: tl.constexpr, METHOD: tl.constexpr, SINGLE: tl.constexpr,
    CHANGES: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """All epochs, CLOSED: by powers of one epoch's matrix; and what they leave behind."""
    epochs = schedule[1]
    rule, rules = load_rule(rule_ptr, p_lane, P), (rule_ptr, changes_ptr)
    bounds = load_bounds(bounds_ptr, p_lane, P, BOUNDED)
    entered = enter(state_ptr, tables_ptr, p_lane, P, T, LOAD, METHOD, SINGLE)
    run = start_of(entered, state_ptr, P, LOAD)
    remember(state_ptr, run[0], p_lane, P)
    if CLOSED:
        if epochs >= 4:
            # The first step is taken apart because it fills the momentum buffers.
            run = descend(
                1, run, fit, rule, rules, bounds, schedule, state_ptr, model, p_lane, k_lane, P,
                IDENTITY, ROUND, METHOD, False, BOUNDED,
            )  # fmt: skip
            run = jumps(
                run, fit, rule, schedule, state_ptr, scratch_ptr, model, p_lane, k_lane,
                P, JUMP, BAND, IDENTITY,
            )  # fmt: skip
    run = descend(
        epochs, run, fit, rule, rules, bounds, schedule, state_ptr, model, p_lane, k_lane, P,
        IDENTITY, ROUND, METHOD, CHANGES, BOUNDED,
    )  # fmt: skip
    loss = run[8]
    if not STEP:
        loss, _ = objective_of_moments(fit, run[0], model, p_lane, k_lane, IDENTITY, ROUND)
    # A run on moments that are not finite comes to nothing.
    keep = STEP | is_finite(fit[4])
    leave(state_ptr, tables_ptr, run, rule, keep, p_lane, P, T, STORE, SINGLE)
    leave_outcome(state_ptr, run[6], run[7], loss, run[8], fit[4], P)


@kernel
def moments_kernel(
    x_ptr, y_ptr, n_points: tl.int64, x_stride, y_stride,
    shift: tl.float64, scale: tl.float64,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    moments_ptr, scratch_ptr, work_ptr, counters_ptr, tables_ptr, w_ptr, w_stride,
    changes_ptr, bounds_ptr,
    P: tl.constexpr, K: tl.constexpr, PW: tl.constexpr, KW: tl.constexpr, SW: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr, BAND: tl.constexpr,
    JUMP: tl.constexpr, GIVEN: tl.constexpr, RUN: tl.constexpr, CLOSED: tl.constexpr,
    STEP: tl.constexpr, IDENTITY: tl.constexpr, OMIT: tl.constexpr, MEAN: tl.constexpr,
    LOAD: tl.constexpr, STORE: tl.constexpr, ROUND: tl.constexpr, METHOD: tl.constexpr,
    SINGLE: tl.constexpr, WEIGHTED: tl.constexpr, CHANGES: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """GIVEN: the moments are there; RUN: epochs follow, CLOSED: by powers of one epoch's matrix."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    data = (x_ptr, y_ptr, n_points, x_stride, y_stride, shift, scale, w_ptr, w_stride)
    p_lane, k_lane, lane = tl.arange(0, PW), tl.arange(0, KW), tl.arange(0, SW)
    mine = True
    if not GIVEN:
        frame, reference = pilot(data, moments_ptr, k_lane, lane, K, ROWS, VEC, WEIGHTED)
        framed = thinned(data, 1, frame[0], frame[1])
        sums = tile_pass(
            zero_sums(3 * K, ROWS), framed, tl.program_id(0), tl.num_programs(0),
            unpack(reference, k_lane, K), add_moments, K, ROWS, VEC, OMIT, WEIGHTED,
        )  # fmt: skip
        publish(work_ptr, 0, totals(sums, lane, 3 * K), lane, 3 * K)
        mine = is_last(counters_ptr)
        if mine:
            total = collect(work_ptr, 0, lane, 3 * K, CHUNK)
            store_moments(moments_ptr, frame, reference, total, k_lane, lane, K)
            tl.debug_barrier()
    if RUN:
        if mine:
            run_on_moments(
                load_fit(moments_ptr, shift, scale, k_lane, K, MEAN),
                (factor_ptr, span_ptr, slots_ptr, n_products), rule_ptr, changes_ptr, state_ptr,
                tables_ptr, scratch_ptr, bounds_ptr, (first_epoch, epochs, record_every, tol),
                p_lane, k_lane, P, T, JUMP, BAND, CLOSED, STEP, IDENTITY, LOAD, STORE, ROUND,
                METHOD, SINGLE, CHANGES, BOUNDED,
            )  # fmt: skip
