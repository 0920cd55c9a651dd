"""Several outputs of several variables or functions, each by itself: optimum and statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from . import _C, _check
from .backends.batched import Fits, Outcome
from .backends.reference import finite, kept
from .batch_result import FitStatus
from .each import Each
from .evidence import Evidence
from .exponents import firsts
from .linear import Held
from .polynomials import PLAIN
from .problem import Problem
from .surface import Table, read_rows, source_of
from .symbolic import Traced, power_series


@dataclass
class EvidenceOfOutputs:
    """What their statistics are computed from."""

    whole: Evidence  # with y and weights [N, C] and parameters [K, C] of all
    optimal: list[bool]  # whether the parameters of each are those of least squares

    @classmethod
    def of(
        cls, model: Any, problem: Problem, x: torch.Tensor, params: np.ndarray
    ) -> EvidenceOfOutputs:
        """problem: of all of them; params: [K, C], as the fit left them."""
        source = source_of(model, x)
        if source.names is None:
            source = source._replace(names=[f"coefficients[{k}]" for k in range(len(params))])
        held = Held.of(problem._replace(model=_alone(model)), source)
        return cls(Evidence(held, params), [False] * params.shape[1])

    def statistics(self) -> Each:
        shape = self.whole.params.shape[1:]
        return Each(shape, "output", lambda c: self.output(c).statistics())

    def output(self, c: int) -> Evidence:
        held = self.whole.as_fitted()
        y, w = held.problem.y, held.problem.weight
        w = w if w is None else w[:, c % w.shape[1]]
        return replace(
            self.whole,
            data=held._replace(problem=held.problem._replace(y=y[:, c], weight=w)),
            params=self.whole.params[:, c],
            optimum=self.optimal[c],
        )

    def travelling(self) -> EvidenceOfOutputs | str:
        """The same on its own, to be pickled; or why it is not."""
        whole = self.whole.travelling()
        return whole if isinstance(whole, str) else replace(self, whole=whole)


def _alone(model: Any) -> Traced:
    """One of the outputs, whose parameters are its coefficients."""
    p, exponents, variables = model.coefficients, model.exponents, model.variable
    if model.by_columns:
        exponents, variables = firsts(len(p)), (PLAIN,) * len(p)
    return replace(
        power_series(len(p), *PLAIN), tensors=(p,), degree=max(map(sum, exponents)),
        exponents=exponents, variables=variables,
    )  # fmt: skip


class Responses:
    """Solves for them as a backend of batches does."""

    def __init__(self, model: Any, x: torch.Tensor, fits: Fits, backend: str):
        _check.one_of("backend", backend, ("auto", "cpu", "reference"))
        xs = fits.x if model.variables > 1 else fits.x[:, 0]
        _, rows = read_rows(model, x, xs)
        problem = Problem(_alone(model), "sum", (), rows, fits.y, fits.omit, weight=fits.w)
        params = fits.params.detach().cpu().double().numpy().copy()
        self.evidence = EvidenceOfOutputs.of(model, problem, x, params)
        self.name = backend
        if backend == "auto":
            self.name = "cpu" if xs.device.type == "cpu" else "reference"

    def launches(self) -> int:
        return _C.launches()

    def solve(self, fits: Fits, covariance: bool, degree_by: str | None) -> Outcome:
        """Each in double-double arithmetic; where coefficients are not determined, those of minimum
        norm."""
        if degree_by is not None:
            raise ValueError(f"degree_by: expected None for terms of any kind, got {degree_by!r}")
        params, optimal = self.evidence.whole.params, self.evidence.optimal
        n_terms, n_outputs = params.shape
        loss, r_squared, counted, weight = np.full((4, n_outputs), np.nan)
        status, rank = np.zeros((2, n_outputs), np.int32)
        spread = np.full((n_terms, n_terms, n_outputs), np.nan)
        for c in range(n_outputs):
            one = self.evidence.output(c)
            problem = one.data.problem
            w = kept(problem)[2]
            counted[c], weight[c] = len(w), float(w.sum())
            sound = problem.omit or bool(finite(problem).all())
            if not len(w) or not sound:
                status[c] = FitStatus.RANK_DEFICIENT if sound else FitStatus.NON_FINITE
                params[:, c] = np.nan
                continue
            table = Table.of(one.data, params[:, c], one.names(), backend=self.name)
            found = table.solution
            total = found.total_centred if table.constant else found.total
            params[table.order, c], rank[c] = found.params, found.rank
            loss[c] = found.sum_of_squares / weight[c]
            r_squared[c] = 1 - found.sum_of_squares / total if total else np.nan
            optimal[c] = found.rank == n_terms
            if optimal[c]:
                spread[:, :, c][np.ix_(table.order, table.order)] = found.covariance
            else:
                status[c] = FitStatus.RANK_DEFICIENT

        def t(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(fits.x.device)

        return Outcome(
            t(params), t(loss), t(status), t(rank), counted=t(counted), weight_sum=t(weight),
            r_squared=t(r_squared), covariance=t(spread) if covariance else None,
        )  # fmt: skip
