"""Criteria: value and slope (derivative) of one residual r = prediction - target."""

import triton


@triton.jit
def squared_error_value(r):
    return r * r


@triton.jit
def squared_error_slope(r):
    return r + r
