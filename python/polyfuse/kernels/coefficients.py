"""Coefficients as a function of the parameters, and its chain rule (DeviceMap).

coef[k] = sum over products of factor * prod(params); model: (factor, span, slots, how many).
"""

import triton
import triton.language as tl

from .vectors import pick


@triton.jit
def coefficients(params, model, p_lane, k_lane, IDENTITY: tl.constexpr):
    """[P] -> [K]"""
    if IDENTITY:
        coef = params
    else:
        coef = tl.zeros(k_lane.shape, tl.float64)
        for t in range(model[3]):
            span = model[1] + 3 * t
            product = tl.load(model[0] + t)
            for f in range(tl.load(span + 1), tl.load(span + 2)):
                product *= pick(params, tl.load(model[2] + f), p_lane)
            coef += tl.where(k_lane == tl.load(span), product, 0.0)
    return coef


@triton.jit
def pull_back(params, grad_coef, model, p_lane, k_lane, IDENTITY: tl.constexpr):
    """grad[i] = sum_k grad_coef[k] d coef[k] / d params[i]"""
    if IDENTITY:
        grad = grad_coef
    else:
        grad = tl.zeros(p_lane.shape, tl.float64)
        for t in range(model[3]):
            span = model[1] + 3 * t
            begin, end = tl.load(span + 1), tl.load(span + 2)
            slope = tl.load(model[0] + t) * pick(grad_coef, tl.load(span), k_lane)
            for f in range(begin, end):
                product = slope
                for o in range(begin, end):
                    other = pick(params, tl.load(model[2] + o), p_lane)
                    product *= tl.where(o == f, 1.0, other)
                grad += tl.where(p_lane == tl.load(model[2] + f), product, 0.0)
    return grad
