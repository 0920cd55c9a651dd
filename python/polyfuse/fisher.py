"""Statistics of a run at the parameters it left: of least squares, or by the Fisher information."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .backends import choose
from .backends.reference import coefficients, design, kept
from .linear import Held, linear, names_of, normal_equations
from .solve import statistics_of
from .statistics import Inference, Likelihood


def statistics_of_run(data: Held, params: np.ndarray, module: Any) -> Inference:
    """params: [P]"""
    problem = data.unchanged()
    if not problem.criterion.squared:
        return likelihood_of(data, params, module)
    form = linear(problem.model, params)
    runner = choose("auto", problem)
    equations = normal_equations(problem, runner, runner.name == "cpu")
    solution = equations.solve(form.jacobian, form.offset, [], True)
    return statistics_of(data, equations, solution, params, module, elsewhere=True)


def likelihood_of(data: Held, params: np.ndarray, module: Any) -> Likelihood:
    """The covariance is the inverse of the second derivative of the summed loss."""
    problem = data.problem
    x, y, w = kept(problem)
    rows, model = design(problem.model, x), problem.model
    free = linear(model, params).free
    everything = torch.tensor(params, device=x.device)

    def loss(values: torch.Tensor) -> torch.Tensor:
        prediction = rows @ coefficients(model, everything.index_copy(0, at, values))
        return (w * problem.criterion.values(prediction, y)).sum()

    at = torch.tensor(free, device=x.device)
    values = everything[at]
    information: Any = torch.autograd.functional.hessian(loss, values)
    reason, covariance = None, np.full((len(free), len(free)), np.nan)
    inverse, failed = torch.linalg.inv_ex(information)
    if failed or not (inverse.isfinite().all() and (inverse.diagonal() > 0).all()):
        reason = "the second derivative of the loss is not positive definite"
    else:
        covariance = inverse.cpu().numpy()
    return Likelihood(
        len(y), -loss(values).item(), names_of(module, model), params, free, covariance, np.inf,
        reason,
    )  # fmt: skip
