"""Tiles [ROWS, VEC] of the samples; a thread's VEC are neighbours, read in one load of 16 bytes.

data: (x, y, how many, stride of x, stride of y, shift, scale, weights w, stride of w);
u = (x - shift) * scale. WEIGHTED: there are weights, of which 0 leaves a sample out.
"""

import triton
import triton.language as tl

from .vectors import is_finite

# Strides are left to Triton, which compiles a stride of 1 as such: only then are loads wide. What
# changes from launch to launch is not, or 1 and multiples of 16 would each have a kernel compiled.
kernel = triton.jit(
    do_not_specialize=[
        "n_points", "n_products", "n_fits", "first_epoch", "epochs", "record_every", "paced",
        "rank", "at_once", "to_first",
    ]
)  # fmt: skip


@triton.jit
def inside_of(ROWS: tl.constexpr, VEC: tl.constexpr):
    """The place of each sample in a tile."""
    return tl.arange(0, ROWS)[:, None] * VEC + tl.arange(0, VEC)[None, :]


@triton.jit
def here(n_points, tile, ROWS: tl.constexpr, VEC: tl.constexpr):
    """Whether each place of a tile holds a sample; of the tile's own 64 bits only one number."""
    rest = n_points - tl.cast(tile, tl.int64) * (ROWS * VEC)
    rest = tl.minimum(tl.maximum(rest, 0), ROWS * VEC).to(tl.int32)
    return inside_of(ROWS, VEC) < rest


@triton.jit
def read(
    data, tile, ROWS: tl.constexpr, VEC: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr
):
    """x, y and w as they lie in memory; y or w is x again where there is none."""
    first = tl.cast(tile, tl.int64) * (ROWS * VEC)
    at = inside_of(ROWS, VEC).to(tl.int64)
    x_at = data[0] + first * data[3] + at * data[3]
    y_at = data[1] + first * data[4] + at * data[4]
    w_at = data[7] + first * data[8] + at * data[8]
    if MASKED:
        keep = here(data[2], tile, ROWS, VEC)
        x, y = tl.load(x_at, keep, other=0.0), tl.load(y_at, keep, other=0.0)
    else:
        x, y = tl.load(x_at), tl.load(y_at)
    w = x
    if WEIGHTED:
        w = tl.load(w_at, keep, other=0.0) if MASKED else tl.load(w_at)
    return x, y, w


@triton.jit
def held(x, zero):
    """x, which as float64 would take twice the registers if it were converted ahead of a loop.

    zero: an int32 that is 0, of which the compiler does not know it.
    """
    if x.dtype == tl.float32:
        x = (x.to(tl.int32, bitcast=True) + zero).to(tl.float32, bitcast=True)
    return x


@triton.jit
def weigh(x, y, w, data, tile, MASKED: tl.constexpr, OMIT: tl.constexpr, WEIGHTED: tl.constexpr):
    """u, y and the weight, 0 for what is past the end or left out."""
    u, target = x.to(tl.float64), y.to(tl.float64)
    keep = tl.full(x.shape, True, tl.int1)
    if MASKED:
        keep = here(data[2], tile, x.shape[0], x.shape[1])
    if OMIT:
        keep = keep & is_finite(u) & is_finite(target)
    weight = keep.to(tl.float64)
    if WEIGHTED:
        keep = keep & (w != 0.0)
        weight = tl.where(keep, w.to(tl.float64), 0.0)
    if MASKED or OMIT or WEIGHTED:
        u = tl.where(keep, u, data[5])
        target = tl.where(keep, target, 0.0)
    return (u - data[5]) * data[6], target, weight
