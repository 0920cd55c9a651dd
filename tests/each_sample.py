"""A kernel that is a criterion and no more: weight * value and weight * slope of N samples."""

import triton
import triton.language as tl
from polyfuse.kernels.criterion import value_and_slope


@triton.jit
def each_sample(
    prediction_ptr, target_ptr, value_ptr, slope_ptr, weight: tl.float64, number: tl.float64,
    N: tl.constexpr, KIND: tl.constexpr, LOG: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, N)
    prediction, target = tl.load(prediction_ptr + at), tl.load(target_ptr + at)
    value, slope = value_and_slope(prediction, target, KIND, number, LOG, FULL)
    tl.store(value_ptr + at, weight * value)
    tl.store(slope_ptr + at, weight * slope)
