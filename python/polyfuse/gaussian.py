"""`GaussianNLLLoss` of samples that each have a variance: one of all variances alike, and weights.

With s weights of samples and v_i their variances, sum_i s_i (log v_i + r_i^2 / v_i) is
sum_i w_i (log v + r_i^2 / v) for w_i = s_i v / v_i, where v log v = q,
q = sum_i s_i log v_i / sum_i s_i / v_i. There is such a v: q is never below -1 / e.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from . import _check
from .criteria import GAUSSIAN, Criterion, kind_of

LOG_TWO_PI = math.log(2 * math.pi)


def extra_of(criterion: Any) -> tuple[float, ...]:
    """What stands for the variance that a call of this criterion takes."""
    return (1.0,) if kind_of(type(criterion)) is GAUSSIAN else ()


def of_variances(
    criterion: Criterion, mean: bool, x: torch.Tensor, y: torch.Tensor,
    weights: tuple[Any, Any, Any], omit: bool = False,
) -> tuple[Criterion, bool, torch.Tensor]:  # fmt: skip
    """The criterion, whether it is a mean, and weights [N] that state this loss of x, y [N].

    weights: sample_weight, mask and sigma, the roots of the variances.
    """
    sample_weight, mask, sigma = weights
    if sigma is None:
        raise ValueError(
            "criterion: GaussianNLLLoss: its variance comes with every call of it; here with "
            "sigma=, the standard deviation of every sample"
        )
    _check.weight(y, *weights)
    options = dict(criterion.options)
    variance = (_check.flat(sigma).double() ** 2).clamp(min=options["eps"])
    s = _check.weight(y, sample_weight, mask, None)
    s = torch.ones_like(variance) if s is None else s.double()
    if omit:
        s = torch.where(x.isfinite() & y.isfinite(), s, 0.0)
    logarithm = variance.log() + (LOG_TWO_PI if options["full"] else 0.0)
    v = _root(float((s * logarithm).sum() / (s / variance).sum()))
    told = (("var", v), ("full", False), ("eps", 0.0))
    factor = 1 / float(s.sum()) if mean else 1.0
    weight = (s * v / variance).to(y.dtype)
    return Criterion(GAUSSIAN, told, factor), False, weight


def _root(q: float) -> float:
    """v >= 1 / e with v log v = q, by Newton's method from above."""
    q = max(q, -math.exp(-1))
    w = math.log(max(q, math.e))
    for _ in range(60):
        step = (w * math.exp(w) - q) / ((w + 1) * math.exp(w)) if w > -1 else 0.0
        w = max(w - step, -1.0)
    return math.exp(w)
