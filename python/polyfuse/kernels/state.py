"""The state buffer and the tables of addresses, as `backends/device.py` lays them out."""

import triton
import triton.language as tl

from .optimizer import fills_momentum, sgd


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
def enter(state_ptr, tables_ptr, lane, P: tl.constexpr, T: tl.constexpr, TABLES: tl.constexpr):
    """Parameters, momentum and whether there is one, [P] each."""
    inside = lane < P
    if TABLES:
        params, _ = load_row(tables_ptr, 0, lane, P, T)
        momentum, has_momentum = load_row(tables_ptr, 2, lane, P, T)
    else:
        params = tl.load(state_ptr + lane, inside, other=0.0)
        momentum = tl.load(state_ptr + 3 * P + lane, inside, other=0.0)
        has_momentum = tl.load(state_ptr + 4 * P + lane, inside, other=0.0) != 0.0
    return params, momentum, has_momentum


@triton.jit
def remember(state_ptr, params, lane, P: tl.constexpr):
    """Leaves the parameters as they were before the run."""
    tl.store(state_ptr + 2 * P + lane, params, lane < P)


@triton.jit
def leave(
    state_ptr, tables_ptr, run, rule, lane, P: tl.constexpr, T: tl.constexpr, TABLES: tl.constexpr
):
    """Writes what a run leaves behind, but its outcome; the next parameters have their own rows."""
    params, momentum, has_momentum, grad = run[0], run[1], run[2], run[3]
    inside = lane < P
    tl.store(state_ptr + lane, params, inside)
    tl.store(state_ptr + 3 * P + lane, momentum, inside)
    tl.store(state_ptr + 4 * P + lane, has_momentum.to(tl.float64), inside)
    tl.store(state_ptr + P + lane, grad, inside)
    if TABLES:
        owned = rule[6] != 0.0
        store_row(tables_ptr, 1, lane, grad, inside, P, T)
        store_row(tables_ptr, 3, lane, params, owned, P, T)
        store_row(tables_ptr, 4, lane, momentum, owned, P, T)


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
def advance(run, loss, grad, rule, schedule, state_ptr, P: tl.constexpr, ROUND: tl.constexpr):
    """The epoch that follows from a loss and its gradient.

    run: (params, momentum, has_momentum, grad, epochs done, converged, previous loss);
    schedule: (first epoch, epochs, record_every, tol).
    """
    params, momentum, has_momentum, kept = run[0], run[1], run[2], run[3]
    done, converged, previous = run[4], run[5], run[6]
    record(state_ptr, loss, schedule[0] + done, schedule[0], schedule[2], P)
    converged = (tl.abs(loss) < float("inf")) & (
        tl.abs(previous - loss) <= schedule[3] * tl.abs(loss)
    )
    if ROUND:
        new_params, new_momentum = sgd(rule, params, grad, momentum, has_momentum == 0, tl.float32)
    else:
        new_params, new_momentum = sgd(rule, params, grad, momentum, has_momentum == 0, tl.float64)
    return (
        tl.where(converged, params, new_params),
        tl.where(converged, momentum, new_momentum),
        tl.where(converged, has_momentum, has_momentum | fills_momentum(rule)),
        tl.where(converged, kept, grad),
        done + tl.where(converged, 0, 1).to(tl.int64),
        converged,
        tl.where(converged, previous, loss),
    )


@triton.jit
def start_of(entered, state_ptr, P: tl.constexpr, TABLES: tl.constexpr):
    """A run before its first epoch; a step from the tables finds no state yet."""
    previous = tl.full([], float("nan"), tl.float64)
    if not TABLES:
        previous = tl.load(state_ptr + 7 * P + 3)
    return (
        entered[0],
        entered[1],
        entered[2],
        tl.zeros(entered[0].shape, tl.float64),
        tl.full([], 0, tl.int64),
        tl.full([], 0, tl.int1),
        previous,
    )
