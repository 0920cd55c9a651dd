"""The definition of correct: plain PyTorch in float64, written to be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..problem import Moments, Problem, Report, Schedule, State
from ..rules import METHODS, OPTIONS_OF, Rule, SgdOptions, group_of, kept_of
from ..stacked import Stacked
from ..symbolic import MAX_PARAMS, Traced


def design(model: Traced, x: torch.Tensor) -> torch.Tensor:
    """V [N, K], V[n, k] = u_n^k with u = (x - shift) * scale, or products of such powers."""
    if model.exponents:
        shift, scale = x.new_tensor(model.variables, dtype=torch.float64).T
        u = (x.double().reshape(len(x), -1) - shift) * scale
        columns = []
        for exponents in model.exponents:
            columns.append(torch.ones_like(u[:, 0]))
            for v, power in enumerate(exponents):
                if power:
                    columns[-1] = columns[-1] * u[:, v] ** power
        return torch.stack(columns, dim=1)
    u = (x.double() - model.shift) * model.scale
    return torch.stack([u**k for k in range(model.degree + 1)], dim=1)


def coefficients(model: Traced, params: torch.Tensor) -> torch.Tensor:
    """[P] -> [K], differentiable."""
    coef = [params.new_zeros(()) for _ in range(model.n_terms)]
    for factor, k, slots in model.terms:
        product = params.new_tensor(factor)
        for s in slots:
            product = product * params[s]
        coef[k] = coef[k] + product
    return torch.stack(coef)


def finite(problem: Problem) -> torch.Tensor:
    """Whether each sample is, or is left out: [N], or [N, C] of the outputs."""
    x = problem.x.isfinite()
    good, y, w = x if x.ndim < 2 else x.all(dim=1), problem.y.isfinite(), problem.weight
    if isinstance(problem.model, Stacked) and y.ndim > 1:
        if w is None or w.ndim == 1:  # probabilities of classes
            y = y.all(dim=1)
        else:
            good = good[:, None]
    good = good & y
    return good if w is None else good | (w == 0)


def kept(
    problem: Problem, x: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, or what is given for it, y and the weights of the samples that count."""
    y = problem.y.double()
    w = torch.ones_like(y) if problem.weight is None else problem.weight.double()
    keep = w != 0
    if problem.omit:
        keep &= finite(problem)
    return (problem.x if x is None else x).double()[keep], y[keep], w[keep]


class Step:
    """torch's own optimizers, one for each scalar parameter."""

    def __init__(self, rule: Rule, state: State):
        self.optimizers: list[torch.optim.Optimizer | None] = []
        for i, options in enumerate(rule):
            self.optimizers.append(None)
            if options is None:
                continue
            p = torch.zeros((), dtype=torch.float64, requires_grad=True)
            method = METHODS[type(options)]
            new: Any = method.optimizer
            optimizer = new([p])
            optimizer.param_groups[0].update(group_of(options), foreach=False)
            started = not isinstance(options, SgdOptions) or state.has_momentum[i]
            for row, number in enumerate(kept_of(options)):
                if number is not None and started:
                    dtype = torch.float32 if number.scalar else torch.float64
                    value = torch.tensor(state.kept[row, i], dtype=dtype)
                    optimizer.state[p][number.name] = value
            self.optimizers[-1] = optimizer

    def __call__(self, params: torch.Tensor, grad: torch.Tensor) -> None:
        with torch.no_grad():
            for i, optimizer in enumerate(self.optimizers):
                if optimizer is not None:
                    p = optimizer.param_groups[0]["params"][0]
                    p.copy_(params[i])
                    p.grad = grad[i].clone()
                    optimizer.step()
                    params[i] = p

    def read_into(self, state: State) -> None:
        for i, optimizer in enumerate(self.optimizers):
            if optimizer is None or not optimizer.state:
                continue
            (kept,) = optimizer.state.values()
            method = METHODS[OPTIONS_OF[type(optimizer)]]
            for row, number in enumerate(method.kept):
                if kept.get(number.name) is not None:
                    state.kept[row, i] = kept[number.name].item()
            if isinstance(optimizer, torch.optim.SGD):
                state.has_momentum[i] = kept.get("momentum_buffer") is not None


class Reference:
    name = "reference"
    max_params = MAX_PARAMS
    max_surface_terms = 0

    def __init__(self) -> None:
        self._launches = 0

    def missing(self) -> str | None:
        return None

    def refuse(self, problem: Problem) -> str | None:
        if problem.x.device.type != "cpu":
            return f"the data is on {problem.x.device}"
        if problem.model.exponents:
            return "the model has several variables"
        if isinstance(problem.model, Stacked):
            return self.refuse_outputs(problem.model)
        return None

    def refuse_outputs(self, model: Any) -> str | None:
        return "the model has several outputs"

    def refuse_engine(self, problem: Problem, engine: str) -> str | None:
        return None

    def evaluate(self, model: Traced, coef: np.ndarray, x: torch.Tensor) -> torch.Tensor:
        return (design(model, x) @ torch.as_tensor(coef, device=x.device)).to(x.dtype)

    def project(self, model: Traced, x: torch.Tensor, g: torch.Tensor) -> np.ndarray:
        return (design(model, x).T @ g.double()).cpu().numpy()

    def loss_and_gradient(self, problem: Problem, params: Any) -> tuple[float, np.ndarray]:
        at = torch.as_tensor(params).double().detach().requires_grad_()
        loss = self.objective(problem, "stream", None)(at)
        return loss.item(), torch.autograd.grad(loss, at)[0].numpy()

    def accumulate(self, problem: Problem) -> Moments:
        x, y, w = kept(problem)
        low, high = float(x.min()), float(x.max())
        shift, scale = (low + high) / 2, 2 / (high - low) if high > low else 1.0
        u = (x - shift) * scale
        terms = problem.model.degree + 1
        v = torch.stack([u**k for k in range(terms)], dim=1)
        reference = torch.linalg.lstsq(v, y[:, None], driver="gelsd").solution[:, 0]
        r = v @ reference - y
        power = torch.stack([(w * u**k).sum() for k in range(2 * terms - 1)])
        cross, square = v.T @ (w * r), (w * r) @ r
        return Moments(shift, scale, reference.numpy(), power.numpy(), cross.numpy(), float(square))

    def objective(
        self, problem: Problem, engine: str, moments: Moments | None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """params [P] -> loss, differentiable; from the data or from its moments."""
        model = problem.model
        if engine == "stream":
            x, y, w = kept(problem)
            criterion, v = problem.criterion, design(model, x)
            w *= criterion.factor / (w.sum() if problem.reduction == "mean" else 1)
            return lambda params: (criterion.values(v @ coefficients(model, params), y) * w).sum()
        assert moments is not None
        terms = model.degree + 1
        a = model.scale / moments.scale
        b = (moments.shift - model.shift) * model.scale
        change = torch.zeros(terms, terms, dtype=torch.float64)
        for k in range(terms):
            column = np.polynomial.polynomial.polypow([b, a], k)
            change[: len(column), k] = torch.as_tensor(column)
        index = torch.arange(terms)
        gram = torch.as_tensor(moments.power)[index[:, None] + index]
        cross, reference = torch.as_tensor(moments.cross), torch.as_tensor(moments.reference)
        weight = 1 / moments.power[0] if problem.reduction == "mean" else 1.0

        def loss(params: torch.Tensor) -> torch.Tensor:
            delta = change @ coefficients(model, params) - reference
            return (moments.square + 2 * cross @ delta + delta @ gram @ delta) * weight

        return loss

    def descend(
        self, problem: Problem, engine: str, moments: Moments | None, schedule: Schedule,
        state: State,
    ) -> Report:  # fmt: skip
        self._launches += 1
        if engine != "stream" and moments is None:
            moments = self.accumulate(problem)
        objective = self.objective(problem, engine, moments)
        params = torch.tensor(state.params, requires_grad=True)
        step = Step(problem.rule, state)
        start, previous, recorded, done, converged = (
            time.monotonic(), schedule.previous, [], 0, False
        )  # fmt: skip
        while done < schedule.epochs and not converged:
            loss = objective(params)
            (grad,) = torch.autograd.grad(loss, params)
            if schedule.record_every and (schedule.first_epoch + done) % schedule.record_every == 0:
                recorded.append(loss.item())
            change = abs(previous - loss.item())
            converged = np.isfinite(loss.item()) and change <= schedule.tol * abs(loss.item())
            if converged:
                break
            previous = loss.item()
            state.grad[:] = grad.numpy()
            step(params, grad)
            if problem.bounds is not None:
                with torch.no_grad():
                    params.clamp_(*(torch.as_tensor(end) for end in problem.bounds))
            done += 1
            if schedule.seconds and time.monotonic() - start > schedule.seconds:
                break
        state.params[:] = params.detach().numpy()
        step.read_into(state)
        return Report(
            done, converged, objective(params).item(), np.array(recorded), moments, previous
        )

    def nonfinite(self, problem: Problem) -> int:
        return int((~finite(problem)).sum())

    def launches(self) -> int:
        return self._launches
