"""Epochs of many small fits: each lane of a program takes one.

fit: as in batch.py. pace: (rules [1 + C, 1 + OPTIONS], changes [C + 1], rates [P, 3] of the first
epochs, of which the last goes on, P). kept_ptrs: rows [K, B] of what the rule keeps of every
parameter, those that KEPT has a bit for.
"""

import triton
import triton.language as tl

from .batch import fit_of, frame_of, orthogonalise, read_sample
from .data import kernel
from .objective import back_substitute, factorise, loss_and_gradient, quadratic
from .optimizer import OPTIONS, move
from .vectors import is_finite


@triton.jit
def rule_at(pace, row, epoch, CHANGES: tl.constexpr):
    """Which of the rules holds in an epoch, that rule, and its rates."""
    if CHANGES:
        row += (tl.load(pace[1] + row) <= epoch).to(tl.int64)
    rule, rates = (), ()
    for o in tl.static_range(1 + OPTIONS):
        rule = rule + (tl.load(pace[0] + row * (1 + OPTIONS) + o),)
    for r in tl.static_range(3):
        rates = rates + (tl.load(pace[2] + tl.minimum(epoch, pace[3] - 1) * 3 + r),)
    return row, rule, rates


@triton.jit
def stepped(
    p, g, kept_ptrs, to_ptrs, box, rule, rates, at, active, METHOD: tl.constexpr,
    KEPT: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """A parameter after an update; what is kept of it is in memory: no registers could hold it."""
    kept = ()
    for r in tl.static_range(4):
        value = p * 0.0
        if (KEPT >> r) & 1:
            value = tl.load(kept_ptrs[r] + at, active, other=0.0).to(tl.float64)
        kept = kept + (value,)
    new = move(rule, rates, p, g, kept, METHOD, tl.float64)
    for r in tl.static_range(4):
        if (KEPT >> r) & 1:
            tl.store(to_ptrs[r] + at, new[1 + r], active)
    value = new[0]
    if BOUNDED:
        low = tl.load(box[0] + at, active, other=0.0)
        high = tl.load(box[1] + at, active, other=0.0)
        value = tl.where(value < low, low, tl.where(value > high, high, value))
    return tl.where(active, value, p)


@triton.jit
def load_params(params_ptr, lane, n_fits, K: tl.constexpr):
    p = ()
    for j in tl.static_range(K):
        at = params_ptr + j * n_fits + lane
        p = p + (tl.load(at, lane < n_fits, other=0.0).to(tl.float64),)
    return p


@triton.jit
def record(recorded_ptr, loss, epoch, first_epoch, every, lane, n_fits):
    """The loss of an epoch, where it is to be recorded."""
    if epoch % every == 0:
        row = epoch // every - (first_epoch + every - 1) // every
        tl.store(recorded_ptr + row * n_fits + lane, loss, lane < n_fits)


@triton.jit
def leave(left, p, loss, rank, active, lane, n_fits, K: tl.constexpr):
    """left: addresses of params, loss, status, rank. Whether the data or the fit is what is not
    finite, the host looks up."""
    inside = lane < n_fits
    bounded = is_finite(loss)
    for j in tl.static_range(K):
        bounded = bounded & is_finite(p[j])
        tl.store(left[0] + j * n_fits + lane, p[j], inside)
    tl.store(left[1] + lane, tl.where(rank > 0, loss, float("nan")), inside)
    status = tl.where(bounded, active.to(tl.int32), 4)
    tl.store(left[2] + lane, tl.where(rank > 0, status, 2), inside)
    tl.store(left[3] + lane, rank, inside)


@kernel
def descend_fits_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int32, n_fits: tl.int64,
    x_stride: tl.int64, y_stride: tl.int64, w_stride: tl.int64,
    x_fit: tl.int64, y_fit: tl.int64, w_fit: tl.int64, shift: tl.float64, scale: tl.float64,
    recurrence_ptr, rules_ptr, changes_ptr, rates_ptr, paced: tl.int64,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, tol: tl.float64,
    weight: tl.float64, number: tl.float64,
    params_ptr, loss_ptr, status_ptr, rank_ptr, kept0_ptr, kept1_ptr, kept2_ptr, kept3_ptr,
    grad_ptr, recorded_ptr, done_ptr, previous_ptr, low_ptr, high_ptr,
    K: tl.constexpr, BLOCK: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr, KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr,
    METHOD: tl.constexpr, KEPT: tl.constexpr, CHANGES: tl.constexpr, TOL: tl.constexpr,
    PREVIOUS: tl.constexpr, RECORD: tl.constexpr, BOUNDED: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """MOMENTS: of squared error, from orthogonal polynomials, without another read of the data.
    TOL: a fit stops after the first epoch that changes its loss by no more than tol * loss. With
    a first epoch that is not the first, grad, done, previous and rank are as a launch left them."""
    fit = fit_of(
        x_ptr, y_ptr, w_ptr, x_stride, y_stride, w_stride, x_fit, y_fit, w_fit, n_fits, BLOCK
    )  # fmt: skip
    inside, lane = fit[6], fit[7]
    zero = tl.zeros([BLOCK], tl.float64)
    frame = frame_of(fit, n_points, zero, OMIT, WEIGHTED)
    centre, per_range, count, total = frame
    loss_weight = zero + weight
    if MEAN:
        loss_weight *= tl.where(count > 0.0, 1.0 / total, 1.0)
    if MOMENTS:
        recursion, rank, rest = orthogonalise(fit, n_points, frame, zero, K, OMIT, WEIGHTED)
        offset = (shift - centre) * per_range
        factor, along = factorise(recursion, scale / per_range, offset, recurrence_ptr, K)
    else:
        rank = zero
        if first_epoch == 0:
            _, rank, _ = orthogonalise(fit, n_points, frame, zero, K, OMIT, WEIGHTED)
        else:
            rank = tl.load(rank_ptr + lane, inside, other=0).to(tl.float64)
    p = load_params(params_ptr, lane, n_fits, K)
    variable, kept_ptrs = (shift, scale), (kept0_ptr, kept1_ptr, kept2_ptr, kept3_ptr)
    pace = (rules_ptr, changes_ptr, rates_ptr, paced)
    active = inside
    if TOL:
        done = tl.where(first_epoch > 0, tl.load(done_ptr + lane, inside, other=0), 0)
        active = inside & (done == first_epoch)
    if PREVIOUS:
        before = tl.load(previous_ptr + lane, inside, other=0.0)
        previous = tl.where(first_epoch > 0, before, float("nan"))
    row, epoch = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    going = tl.full([], 1, tl.int32)
    while (epoch < epochs) & (going > 0):
        if MOMENTS:
            found = quadratic(p, factor, along, rest, loss_weight, K)
        else:
            found = loss_and_gradient(
                fit, n_points, p, variable, recurrence_ptr, loss_weight, number, K, KIND, LOG,
                FULL, OMIT, WEIGHTED,
            )  # fmt: skip
        if RECORD:
            record(recorded_ptr, found[0], first_epoch + epoch, first_epoch, record_every, lane,
                   n_fits)  # fmt: skip
        if TOL:
            active = active & ~(tl.abs(previous - found[0]) <= tol * tl.abs(found[0]))
            going = tl.max(active.to(tl.int32), axis=0)
            done += active.to(tl.int64)
        if PREVIOUS:
            previous = tl.where(active, found[0], previous)
        row, rule, rates = rule_at(pace, row, epoch, CHANGES)
        new_p = ()
        for j in tl.static_range(K):
            at = j * n_fits + lane
            value = stepped(
                p[j], found[1 + j], kept_ptrs, kept_ptrs, (low_ptr, high_ptr), rule, rates, at,
                active, METHOD, KEPT, BOUNDED,
            )  # fmt: skip
            new_p = new_p + (value,)
            if TOL:
                tl.store(grad_ptr + at, found[1 + j], active)
            elif epoch + 1 == epochs:
                tl.store(grad_ptr + at, found[1 + j], inside)
        p = new_p
        epoch += 1
    if MOMENTS:
        final = quadratic(p, factor, along, rest, loss_weight, K)
    else:
        final = loss_and_gradient(
            fit, n_points, p, variable, recurrence_ptr, loss_weight, number, K, KIND, LOG, FULL,
            OMIT, WEIGHTED,
        )  # fmt: skip
    if RECORD:
        while epoch < epochs:  # all have stopped
            record(recorded_ptr, final[0], first_epoch + epoch, first_epoch, record_every, lane,
                   n_fits)  # fmt: skip
            epoch += 1
    if TOL:
        tl.store(done_ptr + lane, done, inside)
    else:
        tl.store(done_ptr + lane, first_epoch + epochs, inside)
    if PREVIOUS:
        tl.store(previous_ptr + lane, previous, inside)
    left = (params_ptr, loss_ptr, status_ptr, rank_ptr)
    leave(left, p, final[0], rank.to(tl.int32), active, lane, n_fits, K)


@kernel
def step_fits_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int32, n_fits: tl.int64,
    x_stride: tl.int64, y_stride: tl.int64, w_stride: tl.int64,
    x_fit: tl.int64, y_fit: tl.int64, w_fit: tl.int64, shift: tl.float64, scale: tl.float64,
    recurrence_ptr, rule_ptr, rates_ptr, weight: tl.float64, number: tl.float64,
    params_ptr, kept0_ptr, kept1_ptr, kept2_ptr, kept3_ptr,
    to_ptr, to0_ptr, to1_ptr, to2_ptr, to3_ptr, before_ptr, loss_ptr, grad_ptr,
    K: tl.constexpr, BLOCK: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
    KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr, METHOD: tl.constexpr,
    KEPT: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """One step of a training loop: the loss of every fit before it, the gradient, and where there
    is a METHOD the parameters after it and what is kept of them. BEFORE: a copy of those before."""
    fit = fit_of(
        x_ptr, y_ptr, w_ptr, x_stride, y_stride, w_stride, x_fit, y_fit, w_fit, n_fits, BLOCK
    )  # fmt: skip
    inside, lane = fit[6], fit[7]
    p = load_params(params_ptr, lane, n_fits, K)
    found = loss_and_gradient(
        fit, n_points, p, (shift, scale), recurrence_ptr, weight, number, K, KIND, LOG, FULL, OMIT,
        WEIGHTED,
    )  # fmt: skip
    tl.store(loss_ptr + lane, found[0], inside)
    start = tl.full([], 0, tl.int64)
    _, rule, rates = rule_at((rule_ptr, rule_ptr, rates_ptr, 1), start, start, False)
    kept_ptrs = (kept0_ptr, kept1_ptr, kept2_ptr, kept3_ptr)
    to_ptrs = (to0_ptr, to1_ptr, to2_ptr, to3_ptr)
    for j in tl.static_range(K):
        at = j * n_fits + lane
        if BEFORE:
            tl.store(before_ptr + at, p[j], inside)
        tl.store(grad_ptr + at, found[1 + j], inside)
        if METHOD != 0:
            value = stepped(
                p[j], found[1 + j], kept_ptrs, to_ptrs, (), rule, rates, at, inside, METHOD, KEPT,
                False,
            )  # fmt: skip
            tl.store(to_ptr + at, value, inside)


@triton.jit
def project(fit, n, q_ptr, K: tl.constexpr, WEIGHTED: tl.constexpr):
    """What the orthonormal polynomials q [N, K] explain of y, and what they leave."""
    zero = tl.zeros(fit[6].shape, tl.float64)
    along, rest = (zero,) * K, zero
    for i in range(n):
        _, y, w = read_sample(fit, i, False, WEIGHTED)
        added = ()
        for k in tl.static_range(K):
            added = added + (along[k] + w * y * tl.load(q_ptr + i * K + k),)
        along = added
    for i in range(n):
        _, y, w = read_sample(fit, i, False, WEIGHTED)
        for k in tl.static_range(K):
            y -= along[k] * tl.load(q_ptr + i * K + k)
        rest += tl.where(w != 0.0, w * y * y, 0.0)
    return along, rest


@triton.jit
def load_factor(factor_ptr, K: tl.constexpr):
    """As `factorise` gives it; wherever it is used, for want of registers."""
    factor = ()
    for j in tl.static_range(K):
        for k in tl.static_range(K):
            factor = factor + (tl.load(factor_ptr + k * K + j),)
    return factor


@triton.jit
def jump_by(map_ptr, moved, buffer, optimum, K: tl.constexpr, BUFFER: tl.constexpr,
            DECAY: tl.constexpr):  # fmt: skip
    """One row of a map [2 K, 3 K], as in csrc/core/leap.h; a fit that is at its optimum stays
    there, though the map overflows."""
    change = moved[0] * 0.0
    for j in tl.static_range(K):
        change += tl.where(moved[j] == 0.0, 0.0, moved[j] * tl.load(map_ptr + j))
        if BUFFER:
            of_buffer = buffer[j] * tl.load(map_ptr + K + j)
            change += tl.where(buffer[j] == 0.0, 0.0, of_buffer)
        if DECAY:
            of_optimum = optimum[K - 1 - j] * tl.load(map_ptr + 2 * K + j)
            change += tl.where(optimum[K - 1 - j] == 0.0, 0.0, of_optimum)
    return change


@triton.jit
def jump_to(maps_ptr, which, p, buffer, optimum, K: tl.constexpr, BUFFER: tl.constexpr,
            DECAY: tl.constexpr):  # fmt: skip
    """Parameters and buffers after the epochs of a map; optimum: the last coefficient first."""
    map_ptr = maps_ptr + which * (6 * K * K)
    moved, new_p, new_buffer = (), (), ()
    for j in tl.static_range(K):
        moved = moved + (p[j] - optimum[K - 1 - j],)
    for i in tl.static_range(K):
        row = map_ptr + i * 3 * K
        change = jump_by(row, moved, buffer, optimum, K, BUFFER, DECAY)
        new_p = new_p + (moved[i] + change + optimum[K - 1 - i],)
        after = buffer[i]
        if BUFFER:
            after += jump_by(row + 3 * K * K, moved, buffer, optimum, K, BUFFER, DECAY)
        new_buffer = new_buffer + (after,)
    return new_p, new_buffer


@kernel
def leap_fits_kernel(
    x_ptr, y_ptr, w_ptr, n_points: tl.int32, n_fits: tl.int64,
    x_stride: tl.int64, y_stride: tl.int64, w_stride: tl.int64,
    x_fit: tl.int64, y_fit: tl.int64, w_fit: tl.int64, shift: tl.float64, scale: tl.float64,
    recurrence_ptr, rules_ptr, rates_ptr, paced: tl.int64,
    first_epoch: tl.int64, epochs: tl.int64, record_every: tl.int64, weight: tl.float64,
    rank: tl.int32, q_ptr, factor_ptr, maps_ptr, at_once: tl.int32, to_first: tl.int64,
    params_ptr, loss_ptr, status_ptr, rank_ptr, kept0_ptr, grad_ptr, recorded_ptr, done_ptr,
    K: tl.constexpr, BLOCK: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr,
    METHOD: tl.constexpr, RECORD: tl.constexpr, BUFFER: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """SGD of fits that share their design: the first epoch and the last as they are, those between
    by jumps, of which the first is of `to_first` epochs and the second from one record to the next;
    as in csrc/core/leap.h. A launch begins at an epoch that is recorded, where any are."""
    fit = fit_of(
        x_ptr, y_ptr, w_ptr, x_stride, y_stride, w_stride, x_fit, y_fit, w_fit, n_fits, BLOCK
    )  # fmt: skip
    inside, lane = fit[6], fit[7]
    along, rest = project(fit, n_points, q_ptr, K, WEIGHTED)
    optimum = back_substitute(load_factor(factor_ptr, K), along, K)
    p, buffer = load_params(params_ptr, lane, n_fits, K), ()
    for j in tl.static_range(K):
        held = p[j] * 0.0
        if BUFFER:
            held = tl.load(kept0_ptr + j * n_fits + lane, inside, other=0.0).to(tl.float64)
        buffer = buffer + (held,)
    pace = (rules_ptr, rules_ptr, rates_ptr, paced)
    epoch, last = tl.full([], 0, tl.int64), epochs - 1
    if at_once != 0:
        if METHOD != 0:
            p, buffer = jump_to(maps_ptr, 0, p, buffer, optimum, K, BUFFER, DECAY)
        epoch = last
    while epoch < epochs:
        found = quadratic(p, load_factor(factor_ptr, K), along, rest, weight, K)
        if RECORD:
            record(recorded_ptr, found[0], first_epoch + epoch, first_epoch, record_every, lane,
                   n_fits)  # fmt: skip
        leaps = epoch < last
        if (epoch == 0) | (epoch == last):
            _, rule, rates = rule_at(pace, tl.full([], 0, tl.int64), epoch, False)
            new_p, new_buffer = (), ()
            for j in tl.static_range(K):
                kept = (buffer[j], p[j] * 0.0, p[j] * 0.0, p[j] * 0.0)
                new = move(rule, rates, p[j], found[1 + j], kept, METHOD, tl.float64)
                new_p, new_buffer = new_p + (new[0],), new_buffer + (new[1],)
                tl.store(grad_ptr + j * n_fits + lane, found[1 + j], inside)
            p, buffer = new_p, new_buffer
            epoch += 1
            leaps = epoch < last
            if RECORD:
                leaps = leaps & (epoch % record_every != 0)
        if leaps:
            to = last
            if RECORD:
                to = tl.minimum(last, epoch // record_every * record_every + record_every)
            if METHOD != 0:
                which = tl.where(to - epoch == to_first, 0, 2)
                if RECORD:
                    which = tl.where(to - epoch == record_every, 1, which)
                p, buffer = jump_to(maps_ptr, which, p, buffer, optimum, K, BUFFER, DECAY)
            epoch = to
    final = quadratic(p, load_factor(factor_ptr, K), along, rest, weight, K)
    if BUFFER:
        for j in tl.static_range(K):
            tl.store(kept0_ptr + j * n_fits + lane, buffer[j], inside)
    tl.store(done_ptr + lane, first_epoch + epochs, inside)
    left = (params_ptr, loss_ptr, status_ptr, rank_ptr)
    ranks = tl.full([BLOCK], 0, tl.int32) + rank
    leave(left, p, final[0], ranks, inside, lane, n_fits, K)
