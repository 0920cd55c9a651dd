"""The state buffer and the tables of addresses, as `backends/device.py` lays them out."""

import triton
import triton.language as tl

from .optimizer import SGD, is_owned, update
from .vectors import projected


@triton.jit
def load_row(tables_ptr, row, lane, P: tl.constexpr, T: tl.constexpr):
    """Elements of type T at the addresses of a row of the tables, and whether they are there."""
    address = tl.load(tables_ptr + row * P + lane, lane < P, other=0)
    value = tl.load(address.to(tl.pointer_type(T)), address != 0, other=0.0)
    return value.to(tl.float64), address != 0


@triton.jit
def store_row(tables_ptr, row, lane, value, keep, P: tl.constexpr, T: tl.constexpr):
    address = tl.load(tables_ptr + row * P + lane, (lane < P) & keep, other=0)
    tl.store(address.to(tl.pointer_type(T)), value.to(T), address != 0)


@triton.jit
def load_tables(
    tables_ptr, lane, P: tl.constexpr, T: tl.constexpr, METHOD: tl.constexpr, SINGLE: tl.constexpr
):
    """(params, *kept), [P] each; bit r of SINGLE: number r kept lies there as float32."""
    params, _ = load_row(tables_ptr, 0, lane, P, T)
    entered = (params,)
    for r in tl.static_range(4):
        if (SINGLE >> r) & 1:
            value, there = load_row(tables_ptr, 2 + r, lane, P, tl.float32)
        else:
            value, there = load_row(tables_ptr, 2 + r, lane, P, tl.float64)
        entered = entered + (value,)
        if (METHOD == SGD) & (r == 0):
            filled = there.to(tl.float64)
    if METHOD == SGD:
        entered = (entered[0], entered[1], filled, entered[3], entered[4])
    return entered


@triton.jit
def store_tables(
    tables_ptr, lane, run, owned, P: tl.constexpr, T: tl.constexpr, SINGLE: tl.constexpr
):
    """The parameters that an optimizer holds, and what is kept, to where the next ones go."""
    store_row(tables_ptr, 6, lane, run[0], owned, P, T)
    for r in tl.static_range(4):
        if (SINGLE >> r) & 1:
            store_row(tables_ptr, 7 + r, lane, run[1 + r], owned, P, tl.float32)
        else:
            store_row(tables_ptr, 7 + r, lane, run[1 + r], owned, P, tl.float64)


@triton.jit
def load_state(state_ptr, lane, P: tl.constexpr):
    """The same from the state buffer."""
    inside = lane < P
    entered = (tl.load(state_ptr + lane, inside, other=0.0),)
    for r in tl.static_range(4):
        entered = entered + (tl.load(state_ptr + (3 + r) * P + lane, inside, other=0.0),)
    return entered


@triton.jit
def enter(
    state_ptr, tables_ptr, lane, P: tl.constexpr, T: tl.constexpr, LOAD: tl.constexpr,
    METHOD: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    if LOAD:
        entered = load_tables(tables_ptr, lane, P, T, METHOD, SINGLE)
    else:
        entered = load_state(state_ptr, lane, P)
    return entered


@triton.jit
def remember(state_ptr, params, lane, P: tl.constexpr):
    """Leaves the parameters as they were before the run."""
    tl.store(state_ptr + 2 * P + lane, params, lane < P)


@triton.jit
def leave(
    state_ptr, tables_ptr, run, rule, keep, lane, P: tl.constexpr, T: tl.constexpr,
    STORE: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Writes what a run leaves behind, but its outcome; keep: to the tables as well."""
    inside = lane < P
    tl.debug_barrier()  # every thread has read what is written here, whichever holds which lanes
    tl.store(state_ptr + lane, run[0], inside)
    for r in tl.static_range(4):
        tl.store(state_ptr + (3 + r) * P + lane, run[1 + r], inside)
    tl.store(state_ptr + P + lane, run[5], inside)
    if STORE:
        stepped = keep & (run[6] > 0)
        store_row(tables_ptr, 1, lane, run[5], inside & stepped, P, T)
        store_tables(tables_ptr, lane, run, is_owned(rule) & stepped, P, T, SINGLE)


@triton.jit
def leave_outcome(state_ptr, epochs, converged, loss, previous, square, P: tl.constexpr):
    at = state_ptr + 7 * P
    tl.store(at, epochs.to(tl.float64))
    tl.store(at + 1, converged.to(tl.float64))
    tl.store(at + 2, loss)
    tl.store(at + 3, previous)
    tl.store(at + 4, square)


@triton.jit
def record(state_ptr, loss, epoch, first_epoch, every, P: tl.constexpr):
    """Writes the loss of an epoch that is recorded."""
    if every > 0:
        if epoch % every == 0:
            index = epoch // every - (first_epoch + every - 1) // every
            tl.store(state_ptr + 7 * P + 5 + index, loss)


@triton.jit
def load_bounds(bounds_ptr, lane, P: tl.constexpr, BOUNDED: tl.constexpr):
    """(low, high), [P] each; () where there are none."""
    bounds = ()
    if BOUNDED:
        inside = lane < P
        low = tl.load(bounds_ptr + lane, inside, other=0.0)
        bounds = (low, tl.load(bounds_ptr + P + lane, inside, other=0.0))
    return bounds


@triton.jit
def advance(
    run, loss, grad, rule, bounds, schedule, state_ptr, P: tl.constexpr, ROUND: tl.constexpr,
    METHOD: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """The epoch that follows from a loss and its gradient.

    run: (params, *kept, grad, epochs done, converged, previous loss);
    schedule: (first epoch, epochs, record_every, tol).
    """
    kept = (run[1], run[2], run[3], run[4])
    done, previous = run[6], run[8]
    record(state_ptr, loss, schedule[0] + done, schedule[0], schedule[2], P)
    converged = (tl.abs(loss) < float("inf")) & (
        tl.abs(previous - loss) <= schedule[3] * tl.abs(loss)
    )
    if ROUND:
        new = update(rule, run[0], grad, kept, METHOD, tl.float32)
    else:
        new = update(rule, run[0], grad, kept, METHOD, tl.float64)
    params = new[0]
    if BOUNDED:
        params = projected(params, bounds[0], bounds[1])
    result = (tl.where(converged, run[0], params),)
    for i in tl.static_range(1, 5):
        result = result + (tl.where(converged, run[i], new[i]),)
    return result + (
        tl.where(converged, run[5], grad),
        done + tl.where(converged, 0, 1).to(tl.int64),
        converged,
        tl.where(converged, previous, loss),
    )


@triton.jit
def start_of(entered, state_ptr, P: tl.constexpr, LOAD: tl.constexpr):
    """A run before its first epoch; one from the tables finds no state yet."""
    previous = tl.full([], float("nan"), tl.float64)
    if not LOAD:
        previous = tl.load(state_ptr + 7 * P + 3)
    return entered + (
        tl.zeros(entered[0].shape, tl.float64),
        tl.full([], 0, tl.int64),
        tl.full([], 0, tl.int1),
        previous,
    )
