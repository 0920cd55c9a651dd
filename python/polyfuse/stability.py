"""When a run of SGD diverges, and what is said of it."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from .problem import Problem
from .rules import SgdOptions, is_sgd


def largest_stable_lr(problem: Problem) -> float | None:
    """The lr above which SGD diverges on this data; None where groups differ or maximize is set,
    and for any other criterion than squared error.

    With c the largest curvature and m the momentum: 2 (1 + m) / (1 - dampening) / c, and
    2 (1 + m) / (1 + 2 m) / c with nesterov. Source: the roots of one step on a quadratic; Polyak,
    Some methods of speeding up the convergence of iteration methods (1964).
    """
    owned = [i for i, o in enumerate(problem.rule) if o is not None]
    options = {o for o in problem.rule if isinstance(o, SgdOptions)}
    if len(options) != 1 or not is_sgd(problem.rule):
        return None
    if not (problem.model.affine and problem.criterion.squared) or problem.model.exponents:
        return None
    o = options.pop()
    if o.maximize or o.dampening == 1:
        return None
    u = (problem.x.double() - problem.model.shift) * problem.model.scale
    w = torch.ones_like(u) if problem.weight is None else problem.weight.double()
    counted = torch.isfinite(u) & torch.isfinite(problem.y) & (w != 0)
    u, w = u[counted], w[counted]
    terms = problem.model.degree + 1
    power = np.array([float((w * u**k).sum()) for k in range(2 * terms - 1)])
    gram = power[np.add.outer(np.arange(terms), np.arange(terms))] * 2
    if problem.reduction == "mean":
        gram /= power[0]
    jacobian = np.zeros((terms, len(problem.model.slots)))
    for factor, degree, slots in problem.model.terms:
        for s in slots:
            jacobian[degree, s] += factor
    hessian = (jacobian.T @ gram @ jacobian)[np.ix_(owned, owned)]
    curvature = float(np.linalg.eigvalsh(hessian)[-1]) + o.weight_decay
    if not (np.isfinite(curvature) and curvature > 0):
        return None
    limit = 2 * (1 + o.momentum) / (1 + 2 * o.momentum if o.nesterov else 1 - o.dampening)
    return limit / curvature


def warn_diverged(problem: Problem) -> None:
    lr = largest_stable_lr(problem)
    advice = "" if lr is None else f"; the largest stable lr for this data is about {lr:.3g}"
    warnings.warn(f"the fit diverged to inf or nan{advice}", RuntimeWarning, stacklevel=3)
