"""Linear regression on columns of any kind, in double-double arithmetic."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from . import _C, _check
from .report import Reported, refuse_travel
from .statistics import Samples, Statistics


@dataclass
class Regression(Reported):
    """The outcome of `regress`.

    Attributes:
        params: float64 [P], the constant first where there is one.
        loss: sum w (y - X params)^2.
        rank: parameters that the data determine.
        seconds: wall time.
        statistics: a `polyfuse.statistics.Statistics`.
    """

    params: np.ndarray
    loss: float
    rank: int
    seconds: float
    _evidence: Any = field(repr=False)

    def __str__(self) -> str:
        return (
            f"sum of squares {self.loss:.7g}, rank {self.rank} of {len(self.params)} parameters; "
            f"{self.seconds * 1e3:.3g} ms"
        )


@dataclass
class Fitted:
    """What the statistics of a regression are computed from."""

    samples: Samples
    constant: bool
    names: list[str]
    shift: np.ndarray  # [P], what was subtracted from the columns
    solution: Any  # a _C.Solution

    def statistics(self) -> Statistics:
        def rows(x: Any) -> np.ndarray:
            table = np.asarray(x, np.float64)
            if self.constant:
                table = np.hstack([np.ones((len(table), 1)), table])
            return table - self.shift

        def fitted(x: Any) -> np.ndarray:
            return rows(x) @ self.solution.coefficients

        return Statistics(
            self.names, self.solution.params, list(range(len(self.shift))), self.solution, rows,
            fitted, lambda: self.samples, len(self.samples.y), self.constant,
        )  # fmt: skip

    def travelling(self) -> Fitted | str:
        """The same, to be pickled; or why it is not."""
        if reason := refuse_travel(sum(column.nbytes for column in self.samples)):
            return reason
        known = {k: getattr(self.solution, k) for k in dir(_C.Solution) if k[0] != "_"}
        return replace(self, solution=SimpleNamespace(**known))


def equations_of(
    x: np.ndarray, y: np.ndarray, w: np.ndarray | None, constant: bool,
    known: tuple[_C.NormalEquations, np.ndarray] | None = None,
) -> tuple[_C.NormalEquations, np.ndarray]:  # fmt: skip
    """Of columns x [N, D], y [N], w [N]; and what was subtracted from the columns, [K].

    known: equations of other samples, in the terms of which these are to be.
    """
    columns, shift = x.T, np.zeros(x.shape[1])
    if constant:
        columns = np.vstack([np.ones(len(y)), columns])
        shift = np.append(0.0, x.mean(axis=0))
    like, shift = known or (None, shift)
    equations = _C.NormalEquations.of_columns(
        np.ascontiguousarray(columns), y, w, shift, constant, like, torch.get_num_threads()
    )
    return equations, shift


def regress(
    x: Any, y: Any, *, weight: Any = None, ridge: float = 0.0, constant: bool = True,
    names: list[str] | None = None,
) -> Regression:  # fmt: skip
    """The parameters that minimise sum w (y - X params)^2 + ridge sum params^2.

    Args:
        x: columns [N, D]; y: [N]; weight: [N] >= 0, a sample of weight 0 is left out.
        ridge: penalty >= 0 of every parameter.
        constant: whether a column of ones comes first.
        names: of the D columns.

    Returns:
        Regression: parameters and `statistics`.

    Raises:
        ValueError: for shapes that do not agree, and for data that are not finite.

    Warns:
        RankWarning: where the data do not determine all parameters; takes those of minimum norm.

    Source: normal equations of centred columns in double-double arithmetic; see
    csrc/cpu/least_squares.cpp.

    Example:
        >>> from polyfuse.regression import regress
        >>> regress([[0.0, 1.0], [1.0, 1.0], [2.0, 3.0], [4.0, 2.0]], [1, 3, 7, 10]).params.round(6)
        array([0., 2., 1.])
    """
    start = time.perf_counter()
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"x: expected shape [N, D] and at least one number, got {x.shape}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y: expected shape {x.shape[:1]}, got {y.shape}")
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    if w.shape != y.shape:
        raise ValueError(f"weight: expected the shape of y, {y.shape}, got {w.shape}")
    if not ((w >= 0) & np.isfinite(w)).all() or not w.any():
        raise ValueError("weight: expected finite numbers >= 0, and one that is not 0")
    if not w.all():
        x, y, w = x[w > 0], y[w > 0], w[w > 0]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x, y: expected finite data, got nan or inf")
    names = names or [f"x{k + 1}" for k in range(x.shape[1])]
    names = ["constant", *names] if constant else names
    equations, shift = equations_of(x, y, None if weight is None else w, constant)
    solution = equations.solve(None, None, [float(ridge)] * len(shift) if ridge else [], True)
    _check.warn_of_rank(solution.rank, len(names))
    return Regression(
        solution.params, solution.sum_of_squares, solution.rank, time.perf_counter() - start,
        Fitted(Samples(x, y, w), constant, names, shift, solution),
    )  # fmt: skip
