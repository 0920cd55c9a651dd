"""Sums over the programs of a launch, in a fixed order, and the barrier among them.

work [2, programs, N] float64 holds the partial sums, counters [2] int64 are 0 between launches.
"""

import triton
import triton.language as tl


@triton.jit
def publish(work_ptr, part, vector, lane, N: tl.constexpr):
    """Leaves this program's partial sums in half `part` of work."""
    at = work_ptr + (part * tl.num_programs(0) + tl.program_id(0)) * N
    tl.store(at + lane, vector, lane < N)


@triton.jit
def collect(work_ptr, part, lane, N: tl.constexpr, CHUNK: tl.constexpr):
    """The sums over all programs."""
    programs = tl.num_programs(0)
    rows = tl.arange(0, CHUNK)
    total = tl.zeros([CHUNK, lane.shape[0]], tl.float64)
    for first in range(0, programs, CHUNK):
        program = first + rows[:, None]
        at = work_ptr + (part * programs + program) * N + lane[None, :]
        inside = (program < programs) & (lane[None, :] < N)
        total += tl.load(at, inside, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit
def is_last(counters_ptr):
    """Whether all other programs have published; the last one to ask leaves the counter at 0."""
    tl.debug_barrier()
    before = tl.atomic_add(counters_ptr, 1, sem="acq_rel")
    last = before == tl.num_programs(0) - 1
    if last:
        tl.store(counters_ptr, tl.cast(0, tl.int64))
    return last


@triton.jit
def wait_for_all(counters_ptr, target):
    """The barrier: returns when the programs have come here `target` times in all."""
    tl.debug_barrier()
    seen = tl.atomic_add(counters_ptr, 1, sem="acq_rel")
    while seen < target:
        seen = tl.atomic_add(counters_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def leave_barrier(counters_ptr):
    """The last program to come here leaves both counters at 0."""
    if is_last(counters_ptr + 1):
        tl.store(counters_ptr, tl.cast(0, tl.int64))
