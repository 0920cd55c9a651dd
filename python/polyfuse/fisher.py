"""Statistics by the Fisher information, for criteria other than the squared error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .backends.reference import coefficients, design, kept
from .criteria import BCE, POISSON, SOFT_MARGIN, Criterion
from .linear import Held, linear
from .statistics import Likelihood


def likelihood_of(data: Held, params: np.ndarray, names: list[str]) -> Likelihood:
    """The covariance is the inverse of the second derivative of the summed loss."""
    problem = data.problem
    x, y, w = kept(problem)
    terms, model = design(problem.model, x), problem.model
    form = linear(model, params)
    everything = torch.tensor(params, device=x.device)
    at = torch.tensor(form.free, device=x.device)

    def loss(values: torch.Tensor) -> torch.Tensor:
        prediction = terms @ coefficients(model, everything.index_copy(0, at, values))
        return (w * problem.criterion.values(prediction, y)).sum()

    information: Any = torch.autograd.functional.hessian(loss, everything[at])
    reason, covariance = None, np.full((len(at), len(at)), np.nan)
    inverse, failed = torch.linalg.inv_ex(information)
    if failed or not (inverse.isfinite().all() and (inverse.diagonal() > 0).all()):
        reason = "the second derivative of the loss is not positive definite"
    else:
        covariance = inverse.cpu().numpy()

    def scores() -> np.ndarray:
        z = (terms @ coefficients(model, everything)).requires_grad_()
        (slopes,) = torch.autograd.grad((w * problem.criterion.values(z, y)).sum(), z)
        return np.asarray(slopes.cpu())

    def rows(x: Any) -> tuple[np.ndarray, np.ndarray]:
        of_x = data.design(x)
        slopes = np.zeros((len(of_x), len(params)))
        slopes[:, form.free] = of_x @ form.jacobian
        return slopes, of_x @ model.coefficients(params)

    return Likelihood(
        names, params, form.free, covariance, reason, rows,
        mean_of(problem.criterion), data.samples, len(y), -loss(everything[at]).item(), scores,
    )  # fmt: skip


def mean_of(criterion: Criterion) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of y where the model's output is z."""
    if criterion.kind is BCE:
        return lambda z: 1 / (1 + np.exp(-z))
    if criterion.kind is SOFT_MARGIN:
        return lambda z: np.tanh(z / 2)
    if criterion.kind is POISSON and dict(criterion.options)["log_input"]:
        return np.exp
    return lambda z: z
