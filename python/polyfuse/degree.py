"""The degree of a polynomial, chosen from one read of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from . import _C, _check
from .backends.native import make_data
from .polynomials import MAX_DEGREE
from .symbolic import power_series

CRITERIA = ("aicc", "bic", "loocv")
# Of sum w y^2: what rounding y to float64 leaves of a polynomial, squared.
ROUNDING = (np.finfo(np.float64).eps / 8) ** 2
CHUNK = 65_536  # samples


@dataclass
class DegreeSelection:
    """The outcome of `select_degree`.

    Attributes:
        degree: the one with the smallest score; where scores are equal, the lowest.
        criterion: what the scores are.
        scores [D]: of the degrees 0, 1, ..., max_degree; inf where the data do not determine one.
        sums_of_squares [D]: sum w r^2 of each degree.
        coefficients: for each degree, float64 ascending powers of x.
    """

    degree: int
    criterion: str
    scores: np.ndarray
    sums_of_squares: np.ndarray
    coefficients: list[np.ndarray] = field(repr=False)

    def __str__(self) -> str:
        return f"degree {self.degree} of 0 to {len(self.scores) - 1} by {self.criterion}"


def select_degree(
    x: torch.Tensor,
    y: torch.Tensor,
    max_degree: int,
    *,
    criterion: str = "aicc",
    weight: torch.Tensor | None = None,
) -> DegreeSelection:
    """The degree of the polynomial that predicts best, with the fits of all degrees.

    Args:
        x, y: data of one shape, float32 or float64, on a CPU.
        max_degree: 0 to 32.
        criterion: ``aicc`` or ``bic``, from one read of the data; ``loocv``, the mean squared error
            of predictions that leave the sample out, from two.
        weight: weights >= 0 in the shape of x; a sample of weight 0 is left out.

    Returns:
        DegreeSelection: the degree, the scores of all and their coefficients.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Sources: Hurvich and Tsai, Biometrika 76 (1989); Schwarz, Annals of Statistics 6 (1978); Allen,
    Technometrics 16 (1974).

    Example:
        >>> import torch, polyfuse as pf
        >>> x = torch.linspace(-1, 1, 100, dtype=torch.float64)
        >>> pf.select_degree(x, 1 - x + 2 * x**3, 8).degree
        3
    """
    _check.one_of("criterion", criterion, CRITERIA)
    if isinstance(max_degree, bool) or not isinstance(max_degree, int):
        raise TypeError(f"max_degree: expected an int, got {max_degree!r}")
    if not 0 <= max_degree <= MAX_DEGREE:
        raise ValueError(f"max_degree: expected 0 to {MAX_DEGREE}, got {max_degree}")
    xs, ys = _check.data(x, y)
    if xs.device.type != "cpu":
        raise ValueError(f"x: expected data on a CPU, got {xs.device}")
    w = _check.weight(x, weight, None, None, name="weight")
    terms, threads = max_degree + 1, torch.get_num_threads()
    data = make_data(power_series(terms, 0.0, 1.0), xs, ys, w=w)
    variable = _C.Variable(0.0, 1.0, 0.0)
    equations = _C.NormalEquations.of_data(data, terms, True, variable, None, threads)
    fits = [equations.leading(k + 1).solve(None, None, [], True) for k in range(terms)]
    if not math.isfinite(fits[0].total):
        _check.finite(_C.count_nonfinite(data, threads))
        raise ValueError("x, y: sums over this data overflow float64")
    n = xs.numel() if w is None else int(torch.count_nonzero(w))
    squares = np.array([f.sum_of_squares for f in fits])
    if criterion == "loocv":
        scores = _left_out(equations, fits, xs, ys, w) / equations.weight
    else:
        floor = max(ROUNDING * fits[0].total, np.finfo(np.float64).tiny)
        scores = np.array(
            [_score(criterion, n, k + 1, max(s, floor)) for k, s in enumerate(squares)]
        )
    scores[[f.rank <= k for k, f in enumerate(fits)]] = math.inf
    degree = int(np.argmin(scores))
    return DegreeSelection(degree, criterion, scores, squares, [f.params for f in fits])


def _score(criterion: str, n: int, k: int, squares: float) -> float:
    """Up to what is the same for every degree; with normal errors of unknown variance."""
    fit = n * math.log(squares / n)
    if criterion == "bic":
        return fit + k * math.log(n)
    return fit + 2 * k * n / (n - k - 1) if n > k + 1 else math.inf


def _left_out(
    equations: _C.NormalEquations, fits: list[_C.Solution], x: Any, y: Any, w: Any
) -> np.ndarray:
    """For each degree, the sum of w (y - prediction)^2 by a fit without the sample itself."""
    scores = np.zeros(len(fits))
    for begin in range(0, len(x), CHUNK):
        part = slice(begin, begin + CHUNK)
        xs, ys = (t[part].double().numpy() for t in (x, y))
        ws = np.ones(len(xs)) if w is None else w[part].double().numpy()
        xs, ys, ws = xs[ws > 0], ys[ws > 0], ws[ws > 0]
        u = (xs - equations.shift) * equations.scale
        rows = np.vander(u, len(fits), increasing=True)
        for k, f in enumerate(fits):
            own = rows[:, : k + 1]
            leverage = ws * np.einsum("nk,nk->n", own @ f.influence, own)
            left = np.where(leverage < 1, 1 - leverage, np.nan)
            scores[k] += (ws * ((ys - own @ f.coefficients) / left) ** 2).sum()
    return np.where(np.isnan(scores), math.inf, scores)
