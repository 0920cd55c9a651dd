"""What the statistics of a fit are computed from: its data, and the parameters that it left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _C
from .backends import choose
from .backends.batched import Fits
from .batch_result import FitStatus
from .criteria import Criterion
from .each import Each
from .exponents import firsts
from .linear import Held, Source, linear, names_of, normal_equations, powers, versions_of
from .polynomials import PLAIN
from .problem import Problem
from .report import refuse_travel
from .surface import Table, Terms
from .symbolic import Traced, power_series

if TYPE_CHECKING:
    from .statistics import Inference, Statistics


@dataclass
class Evidence:
    """Of one fit."""

    data: Held
    params: np.ndarray  # [P]
    module: torch.nn.Module | None = None  # that names the parameters, where the data do not
    ridge: float = 0.0
    optimum: bool = False  # whether params are those of least squares
    solved: Any = None  # that optimum, where it is known: a Table, or equations and their solution

    def __post_init__(self) -> None:
        self.trainable = [t.requires_grad for t in self.data.problem.model.tensors]

    def statistics(self) -> Inference:
        if not any(self.trainable):
            raise ValueError("statistics: there are none, no parameter was trainable")
        problem = self.as_fitted().unchanged()
        if not problem.criterion.squared:
            from .fisher import likelihood_of

            return likelihood_of(self.data, self.params, self.names())
        if problem.model.exponents or self.data.source.columns is not None:
            table = self.solved or Table.of(self.data, self.params, self.names(), self.ridge)
            return table.statistics(self.params, elsewhere=not self.optimum)
        return self._of_powers(problem)

    def as_fitted(self) -> Held:
        """The data, with parameters that are trainable as they were at the fit."""
        if self.trainable != [t.requires_grad for t in self.data.problem.model.tensors]:
            self._keep_names()
        return self.data

    def _of_powers(self, problem: Problem) -> Statistics:
        from .statistics import Statistics

        data, params, model = self.data, self.params, problem.model
        form = linear(model, params)
        equations, solution = self.solved or self._solved(problem)
        if self.optimum:
            params = params.copy()
            params[form.free] = solution.params
        rows = powers(equations.shift, equations.scale, model.degree + 1)

        def fitted(x: Any) -> np.ndarray:
            if self.optimum:
                return rows(x) @ solution.coefficients
            u = (np.asarray(x, np.float64).reshape(-1) - model.shift) * model.scale
            return np.polynomial.polynomial.polyval(u, model.coefficients(params))

        n, squares = problem.x.numel(), None
        if problem.weight is not None or problem.omit:
            n = len(data.samples().y)
        if not self.optimum:
            x, y, w = data.samples()
            squares = float((w * (y - fitted(x)) ** 2).sum())
        return Statistics(
            self.names(), params, form.free, solution, rows, fitted, data.samples, n,
            form.has_constant, squares, problem.weight is not None,
        )  # fmt: skip

    def _solved(self, problem: Problem) -> tuple[_C.NormalEquations, _C.Solution]:
        form, runner = linear(problem.model, self.params), choose("auto", problem)
        equations = normal_equations(problem, runner, runner.name == "cpu")
        penalty = [self.ridge] * len(form.free) if self.ridge else []
        return equations, equations.solve(form.jacobian, form.offset, penalty, True)

    def names(self) -> list[str]:
        return self.data.source.names or names_of(self.module, self.data.problem.model)

    def _alone(self, model: Traced) -> Traced:
        """With parameters of its own, trainable as they were at the fit."""
        tensors = zip(model.tensors, self.trainable, strict=True)
        own = tuple(torch.nn.Parameter(at_home(t), trains) for t, trains in tensors)
        return replace(model, tensors=own, buffers=())

    def _keep_names(self) -> None:
        """For parameters that have been frozen, or set free, since the fit."""
        problem, source, versions = self.data
        source = source._replace(names=self.names())
        self.data = Held(problem._replace(model=self._alone(problem.model)), source, versions)

    def travelling(self) -> Evidence | str:
        """The same on its own, to be pickled; or why it is not."""
        try:
            problem = self.data.unchanged()
        except RuntimeError as error:
            return str(error)
        model, (x, columns, _) = problem.model, self.data.source
        if reason := refuse_travel(
            size_of(x, problem.x, problem.y, problem.weight, *model.tensors)
        ):
            return reason
        if reason := self.data.source.refuse_pickle():
            return reason
        new_x = at_home(problem.x)
        alone = Problem(
            self._alone(model), problem.reduction, (), new_x,
            at_home(problem.y), problem.omit, criterion=problem.criterion,
            weight=None if problem.weight is None else at_home(problem.weight),
        )  # fmt: skip
        source = Source(new_x if x is problem.x else at_home(x), columns, self.names())
        return replace(self, data=Held.of(alone, source), module=None, solved=None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.data = Held.of(self.data.problem, self.data.source)


@dataclass
class EvidenceOfEach:
    """Of many fits."""

    fits: Fits  # with the parameters that the fit left
    criterion: Criterion
    shape: tuple[int, ...]
    kind: str
    trainable: bool
    versions: tuple[int | None, int | None]
    solved: torch.Tensor | None  # [B], the status of fits that were solved
    degree: torch.Tensor | None  # [B], where each has its own

    @classmethod
    def of(
        cls, model: Any, fits: Fits, params: torch.Tensor, criterion: Criterion,
        solved: torch.Tensor | None = None, degree: torch.Tensor | None = None,
    ) -> EvidenceOfEach:  # fmt: skip
        """params: [K, B], as the fit left them."""
        return cls(
            fits._replace(params=params), criterion, tuple(model.coefficients.shape[1:]),
            "fit" if model.outputs is None else "output", model.coefficients.requires_grad,
            versions_of(fits.x, fits.y), solved, degree,
        )  # fmt: skip

    def statistics(self) -> Each:
        return Each(self.shape, self.kind, lambda b: self._one(b).statistics())

    def _one(self, b: int) -> Evidence:
        fits, n_terms = self.fits, len(self.fits.params)
        if self.degree is not None:
            n_terms = int(self.degree[b]) + 1
        params = fits.params[:n_terms, b].detach()
        x, w = (t if t is None else t[:, b % t.shape[1]] for t in (fits.x, fits.w))
        assert x is not None
        model = replace(
            power_series(n_terms, fits.shift, fits.scale),
            tensors=(torch.nn.Parameter(params, self.trainable),),
        )
        columns, source_x = None, x
        if fits.basis != "monomial" and n_terms > 1:
            exponents = tuple((k,) for k in range(n_terms))
            columns = Terms(fits.basis, exponents, ((fits.shift, fits.scale),))
            model, x = of_columns(model), columns(x.double())
        names = [f"coefficients[{k}]" for k in range(n_terms)]
        problem = Problem(
            model, "sum", (), x, fits.y[:, b], fits.omit, criterion=self.criterion, weight=w
        )
        held = Held(problem, Source(source_x, columns, names), self.versions)
        optimum = self.solved is not None and int(self.solved[b]) == FitStatus.CONVERGED
        return Evidence(held, params.double().cpu().numpy(), optimum=optimum)

    def travelling(self) -> EvidenceOfEach | str:
        """The same on its own, to be pickled; or why it is not."""
        tensors: Any = self.fits.params, self.fits.x, self.fits.y, self.fits.w
        if versions_of(*tensors[1:3]) != self.versions:
            return "statistics: x or y was changed in place before the result was pickled"
        if reason := refuse_travel(size_of(*tensors)):
            return reason
        everything = *tensors, self.solved, self.degree
        params, x, y, w, solved, degree = (None if t is None else at_home(t) for t in everything)
        assert params is not None and x is not None and y is not None
        fits = self.fits._replace(params=params, x=x, y=y, w=w)
        return replace(self, fits=fits, solved=solved, degree=degree)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.versions = versions_of(self.fits.x, self.fits.y)


def of_columns(model: Traced) -> Traced:
    """The same of as many columns, each a variable to the first power."""
    n = model.n_terms
    return replace(model, degree=1, exponents=firsts(n), variables=(PLAIN,) * n)


def size_of(*tensors: torch.Tensor | None) -> int:
    """Of them all in bytes."""
    different = {id(t): t for t in tensors if t is not None}
    return sum(t.numel() * t.element_size() for t in different.values())


def at_home(t: torch.Tensor) -> torch.Tensor:
    """A copy that holds nothing else alive, on the host."""
    return t.detach().cpu().clone(memory_format=torch.contiguous_format)
