"""Cross entropy of polynomial logits, one polynomial of x for every class: fused step and run.

A tile is [ROWS, CW], samples by classes; parameters [K, C] are padded to [KW, CW], flat, and
`lane` is where each of them lies, P in the padding.
data: (x, its stride, how many, shift, scale, weights, their stride).
"""

import triton
import triton.language as tl

from .cross_entropy import cross_entropy, shares
from .data import kernel
from .objective import terms_of
from .optimizer import follow, load_rule
from .reduce import collect, is_last, leave_barrier, publish, wait_for_all
from .state import advance, enter, leave, leave_outcome, load_bounds, remember, start_of


@triton.jit
def places(K: tl.constexpr, C: tl.constexpr, KW: tl.constexpr, CW: tl.constexpr):
    flat = tl.arange(0, KW * CW)
    term, c = flat // CW, flat % CW
    return tl.where((term < K) & (c < C), term * C + c, K * C)


@triton.jit
def tile_pass(
    params, data, targets, recurrence_ptr, first, every, K: tl.constexpr, C: tl.constexpr,
    KW: tl.constexpr, CW: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr,
    SMOOTH: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Adds the tiles first, first + every, ...: the derivatives by the coefficients [KW CW], and
    [4]: the loss, what counts in a mean, the samples that are kept."""
    c, term = tl.arange(0, CW), tl.arange(0, KW)[:, None]
    grid = tl.reshape(params, (KW, CW))
    coef = ()
    for k in tl.static_range(K):
        coef = coef + (tl.sum(tl.where(term == k, grid, 0.0), axis=0)[None, :],)
    zero = tl.zeros([ROWS, CW], tl.float64)
    sums, value, counted, kept = (zero,) * K, zero, zero, tl.zeros([ROWS], tl.float64)
    for tile in range(first, tl.cdiv(data[2], ROWS), every):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        keep = row < data[2]
        weight = tl.full([ROWS], 1.0, tl.float64)
        if WEIGHTED:
            weight = tl.load(data[5] + row * data[6], keep, other=0.0).to(tl.float64)
            keep = keep & (weight != 0.0)
        x = tl.load(data[0] + row * data[1], keep, other=0.0).to(tl.float64)
        u = tl.where(keep, (x - data[3]) * data[4], 0.0)
        share, part, counts, keep = shares(targets, row, keep, weight, c, C, INDEX, SMOOTH)
        phi = terms_of(u, recurrence_ptr, K)
        z = zero + coef[0]
        for k in tl.static_range(1, K):
            z += coef[k] * phi[k][:, None]
        terms, slope = cross_entropy(z, share, part, c, C)
        value += terms
        counted += counts
        kept += keep.to(tl.float64)
        added = ()
        for k in tl.static_range(K):
            added = added + (sums[k] + slope * phi[k][:, None],)
        sums = added
    grad = tl.zeros([KW, CW], tl.float64)
    for k in tl.static_range(K):
        grad = tl.where(term == k, tl.sum(sums[k], axis=0)[None, :], grad)
    four = tl.arange(0, 4)
    of_all = tl.where(four == 0, tl.sum(tl.sum(value, axis=1), axis=0), tl.sum(kept, axis=0))
    of_all = tl.where(four == 1, tl.sum(tl.sum(counted, axis=1), axis=0), of_all)
    return tl.reshape(grad, (KW * CW,)), of_all


@triton.jit
def leave_sums(work_ptr, part, grad, of_all, W: tl.constexpr):
    publish(work_ptr, part, grad, tl.arange(0, W), W + 4)
    publish(work_ptr, part, of_all, W + tl.arange(0, 4), W + 4)


@triton.jit
def all_sums(work_ptr, part, W: tl.constexpr, CHUNK: tl.constexpr):
    grad = collect(work_ptr, part, tl.arange(0, W), W + 4, CHUNK)
    return grad, collect(work_ptr, part, W + tl.arange(0, 4), W + 4, CHUNK)


@triton.jit
def objective_of_sums(grad, of_all, MEAN: tl.constexpr, ROUND: tl.constexpr):
    """Loss and gradient; as torch, the mean of nothing is nan, and samples that are left out have
    no gradient."""
    four = tl.arange(0, 4)
    loss = tl.sum(tl.where(four == 0, of_all, 0.0), axis=0)
    counted = tl.sum(tl.where(four == 1, of_all, 0.0), axis=0)
    kept = tl.sum(tl.where(four == 2, of_all, 0.0), axis=0)
    if MEAN:
        factor = tl.where(counted != 0.0, 1.0 / counted, float("nan"))
        loss *= factor
        grad = tl.where(kept > 0.0, grad * factor, 0.0)
    if ROUND:
        loss = loss.to(tl.float32).to(tl.float64)
        grad = grad.to(tl.float32).to(tl.float64)
    return loss, grad


@kernel
def classes_step_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, y_stride, y_class, w_stride,
    shift: tl.float64, scale: tl.float64,
    recurrence_ptr, rule_ptr, state_ptr,
    first_epoch: tl.int64, record_every: tl.int64, tol: tl.float64,
    work_ptr, counters_ptr, tables_ptr, class_ptr, ignored: tl.int64, smoothing: tl.float64,
    K: tl.constexpr, C: tl.constexpr, KW: tl.constexpr, CW: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, INDEX: tl.constexpr, SMOOTH: tl.constexpr, WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr, METHOD: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr,
    ROUND: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One step: the last program adds the partial sums and applies the update."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    P: tl.constexpr = K * C
    W: tl.constexpr = KW * CW
    data = (x_ptr, x_stride, n_points, shift, scale, w_ptr, w_stride)
    targets = (y_ptr, y_stride, y_class, class_ptr, ignored, smoothing)
    lane = places(K, C, KW, CW)
    entered = enter(state_ptr, tables_ptr, lane, P, T, LOAD, METHOD, SINGLE)
    grad, of_all = tile_pass(
        entered[0], data, targets, recurrence_ptr, tl.program_id(0), tl.num_programs(0), K, C, KW,
        CW, ROWS, INDEX, SMOOTH, WEIGHTED,
    )  # fmt: skip
    leave_sums(work_ptr, 0, grad, of_all, W)
    if is_last(counters_ptr):
        rule = load_rule(rule_ptr, lane, P)
        run = start_of(entered, state_ptr, P, LOAD)
        remember(state_ptr, run[0], lane, P)
        grad, of_all = all_sums(work_ptr, 0, W, CHUNK)
        loss, grad = objective_of_sums(grad, of_all, MEAN, ROUND)
        one = (first_epoch, 1, record_every, tol)
        run = advance(run, loss, grad, rule, (), one, state_ptr, P, ROUND, METHOD, False)
        leave(state_ptr, tables_ptr, run, rule, True, lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)


@kernel
def classes_stream_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int64, x_stride, y_stride, y_class, w_stride,
    shift: tl.float64, scale: tl.float64,
    recurrence_ptr, rule_ptr, state_ptr,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    work_ptr, counters_ptr, changes_ptr, tables_ptr, bounds_ptr, class_ptr, ignored: tl.int64,
    smoothing: tl.float64,
    K: tl.constexpr, C: tl.constexpr, KW: tl.constexpr, CW: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, INDEX: tl.constexpr, SMOOTH: tl.constexpr, WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr, METHOD: tl.constexpr, ALONE: tl.constexpr, CHANGES: tl.constexpr,
    LOAD: tl.constexpr, STORE: tl.constexpr, SINGLE: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """All epochs; every program adds the same partial sums in the same order and takes the same
    step, so that an epoch has one barrier; ALONE: there is one program, and no barrier."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    P: tl.constexpr = K * C
    W: tl.constexpr = KW * CW
    data = (x_ptr, x_stride, n_points, shift, scale, w_ptr, w_stride)
    targets = (y_ptr, y_stride, y_class, class_ptr, ignored, smoothing)
    lane = places(K, C, KW, CW)
    me, programs = tl.program_id(0), tl.num_programs(0)
    entered = enter(state_ptr, tables_ptr, lane, P, T, LOAD, METHOD, SINGLE)
    run = start_of(entered, state_ptr, P, LOAD)
    schedule = (first_epoch, epochs, record_every, tol)
    # The pass after the last step finds the loss at the parameters left behind.
    open_ = tl.full([], 1, tl.int1)
    loss = tl.full([], 0.0, tl.float64)
    passes = tl.full([], 0, tl.int64)
    row = tl.full([], 0, tl.int64)
    while open_:
        grad, of_all = tile_pass(
            run[0], data, targets, recurrence_ptr, me, programs, K, C, KW, CW, ROWS, INDEX,
            SMOOTH, WEIGHTED,
        )  # fmt: skip
        if not ALONE:
            part = passes % 2
            leave_sums(work_ptr, part, grad, of_all, W)
            passes += 1
            wait_for_all(counters_ptr, passes * programs)
            grad, of_all = all_sums(work_ptr, part, W, CHUNK)
        loss, grad = objective_of_sums(grad, of_all, MEAN, False)
        # Anew, to have their registers for the passes.
        bounds = load_bounds(bounds_ptr, lane, P, BOUNDED)
        if CHANGES:
            row, rule = follow(row, run[6], rule_ptr, changes_ptr, lane, P)
        else:
            rule = load_rule(rule_ptr, lane, P)
        if (run[6] < epochs) & (run[7] == 0):
            run = advance(
                run, loss, grad, rule, bounds, schedule, state_ptr, P, False, METHOD, BOUNDED
            )
        else:
            open_ = tl.full([], 0, tl.int1)
    if me == 0:
        remember(state_ptr, entered[0], lane, P)
        rule = load_rule(rule_ptr, lane, P)
        leave(state_ptr, tables_ptr, run, rule, True, lane, P, T, STORE, SINGLE)
        leave_outcome(state_ptr, run[6], run[7], loss, run[8], float("nan"), P)
    if not ALONE:
        leave_barrier(counters_ptr)
