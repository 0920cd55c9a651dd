"""Criteria: value and slope, the derivative by the prediction, of every sample of a tile.

Values and subgradients are torch's, those of infinite predictions as well. Of its options a
criterion has one number at most, and flags.
"""

import triton
import triton.language as tl

from .. import criteria

SQUARED_ERROR = tl.constexpr(criteria.MSE.tag)
L1 = tl.constexpr(criteria.L1.tag)
SMOOTH_L1 = tl.constexpr(criteria.SMOOTH_L1.tag)
HUBER = tl.constexpr(criteria.HUBER.tag)
SOFT_MARGIN = tl.constexpr(criteria.SOFT_MARGIN.tag)
BCE = tl.constexpr(criteria.BCE.tag)
POISSON = tl.constexpr(criteria.POISSON.tag)
KL_DIV = tl.constexpr(criteria.KL_DIV.tag)
GAUSSIAN = tl.constexpr(criteria.GAUSSIAN.tag)


@triton.jit
def clamp(x, most):
    """x, but at least -most and at most most; nan stays."""
    return tl.where(x < -most, -most, tl.where(x > most, most, x))


@triton.jit
def log1p(x):
    """log(1 + x), x >= 0: what rounding loses in u = 1 + x is (x - (u - 1)) / u of it."""
    u = x + 1.0
    lost = tl.where(u < float("inf"), x - (u - 1.0), 0.0)
    return tl.log(u) + lost / u


@triton.jit
def squared_error(prediction, target):
    """r^2 with r = prediction - target"""
    r = prediction - target
    return r * r, r + r


@triton.jit
def absolute_error(prediction, target):
    """|r|"""
    r = prediction - target
    return tl.abs(r), (r > 0.0).to(tl.float64) - (r < 0.0).to(tl.float64)


@triton.jit
def smooth_l1(prediction, target, beta):
    """r^2 / (2 beta) where |r| < beta, |r| - beta / 2 beyond"""
    r = prediction - target
    size = tl.abs(r)
    value = tl.where(size < beta, (0.5 / beta) * r * r, size - 0.5 * beta)
    return value, tl.where(r < -beta, -1.0, tl.where(r > beta, 1.0, r / beta))


@triton.jit
def huber(prediction, target, delta):
    """r^2 / 2 where |r| < delta, delta (|r| - delta / 2) beyond"""
    r = prediction - target
    size = tl.abs(r)
    value = tl.where(size < delta, 0.5 * r * r, delta * (size - 0.5 * delta))
    return value, clamp(r, delta)


@triton.jit
def soft_margin(prediction, target):
    """log(1 + exp(-target prediction)), the targets being 1 and -1"""
    e = tl.exp(-(target * prediction))
    return log1p(e), -(target * e) / (e + 1.0)


@triton.jit
def bce_with_logits(prediction, target, pos_weight):
    """-pos_weight target log s - (1 - target) log(1 - s) with s = sigmoid(prediction)"""
    e = tl.exp(-tl.abs(prediction))
    log_sigmoid = tl.where(prediction < 0.0, prediction, 0.0) - log1p(e)
    sigmoid = tl.where(prediction < 0.0, e, 1.0) / (e + 1.0)
    positive = pos_weight * target
    value = (1.0 - target) * prediction - ((pos_weight - 1.0) * target + 1.0) * log_sigmoid
    return value, (positive + 1.0 - target) * sigmoid - positive


@triton.jit
def poisson_nll(prediction, target, eps, LOG_INPUT: tl.constexpr, FULL: tl.constexpr):
    """exp(p) - target p, or p - target log(p + eps); FULL: Stirling's log(target!) above 1"""
    if LOG_INPUT:
        mean = tl.exp(prediction)
        value, slope = mean - target * prediction, mean - target
    else:
        mean = prediction + eps
        value, slope = prediction - target * tl.log(mean), 1.0 - target / mean
    if FULL:
        stirling = target * tl.log(target) - target + 0.5 * tl.log(6.283185307179586 * target)
        value += tl.where(target > 1.0, stirling, 0.0)
    return value, slope


@triton.jit
def kl_div(prediction, target, LOG_TARGET: tl.constexpr):
    """target (log(target) - prediction), or with log(target) as the target"""
    if LOG_TARGET:
        weight = tl.exp(target)
        value, slope = weight * (target - prediction), -weight
    else:
        entropy = tl.where(target == 0.0, 0.0, target * tl.log(target))
        value, slope = entropy - target * prediction, -target
    return value, slope


@triton.jit
def gaussian_nll(prediction, target, variance, FULL: tl.constexpr):
    """(log(variance) + r^2 / variance) / 2, and log(2 pi) / 2 with FULL"""
    r = prediction - target
    slope = r * (1.0 / variance)
    constant = tl.log(tl.full([], variance, tl.float64))
    if FULL:
        constant += 1.8378770664093453
    return 0.5 * (r * slope + constant), slope


@triton.jit
def value_and_slope(
    prediction, target, KIND: tl.constexpr, number, LOG: tl.constexpr, FULL: tl.constexpr
):
    """number: the option that is one; LOG: whether a logarithm is given."""
    if KIND == L1:
        value, slope = absolute_error(prediction, target)
    elif KIND == SMOOTH_L1:
        value, slope = smooth_l1(prediction, target, number)
    elif KIND == HUBER:
        value, slope = huber(prediction, target, number)
    elif KIND == SOFT_MARGIN:
        value, slope = soft_margin(prediction, target)
    elif KIND == BCE:
        value, slope = bce_with_logits(prediction, target, number)
    elif KIND == POISSON:
        value, slope = poisson_nll(prediction, target, number, LOG, FULL)
    elif KIND == KL_DIV:
        value, slope = kl_div(prediction, target, LOG)
    elif KIND == GAUSSIAN:
        value, slope = gaussian_nll(prediction, target, number, FULL)
    else:
        value, slope = squared_error(prediction, target)
    return value, slope
