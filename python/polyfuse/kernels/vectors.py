"""Short vectors: a padded tensor [W] in registers, and the same as a tuple of scalars."""

import triton
import triton.language as tl


@triton.jit
def pick(vector, index, lane):
    """vector[index], for an index that is known at run time."""
    return tl.sum(tl.where(lane == index, vector, 0.0), axis=0)


@triton.jit
def projected(value, low, high):
    """Onto [low, high]; nan stays."""
    return tl.where(value < low, low, tl.where(value > high, high, value))


@triton.jit
def unpack(vector, lane, N: tl.constexpr):
    """The first N elements as scalars."""
    scalars = ()
    for k in tl.static_range(N):
        scalars = scalars + (pick(vector, k, lane),)
    return scalars


@triton.jit
def totals(columns, lane, N: tl.constexpr):
    """N tensors [R], summed, as one vector."""
    vector = tl.zeros(lane.shape, tl.float64)
    for k in tl.static_range(N):
        vector = tl.where(lane == k, tl.sum(columns[k], axis=0), vector)
    return vector


@triton.jit
def times(matrix, vector):
    """matrix [W, W] times vector [W]."""
    return tl.sum(matrix * vector[None, :], axis=1)


@triton.jit
def transposed_times(matrix, vector):
    return tl.sum(matrix * vector[:, None], axis=0)


@triton.jit
def is_finite(v):
    return tl.abs(v) < float("inf")
