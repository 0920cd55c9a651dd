"""How sure a fit is: covariance, tests, bands and what else is read off a regression.

Definitions and conventions are those of statsmodels. Sources: Seber and Lee, Linear Regression
Analysis (2003); Burnham and Anderson, Model Selection and Multimodel Inference (2002), for AICc;
Cook, Technometrics 19 (1977); MacKinnon and White, Journal of Econometrics 29 (1985), for HC0 to
HC3; Durbin and Watson, Biometrika 37 (1950).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from . import _C
from .report import lines_of


def distributions() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "p values, intervals and bands need scipy; pip install 'polyfuse[statistics]'"
        ) from error
    return stats


def fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return float(value)


class Samples(NamedTuple):
    """Those that count, float64."""

    x: np.ndarray  # [N], or [N, D] of several variables
    y: np.ndarray  # [N]
    w: np.ndarray  # [N] > 0


class Prediction(NamedTuple):
    """Of the model at new x, each [N]; the bands are pairs, lower and upper.

    Attributes:
        mean: of y.
        standard_errors: of the mean.
        confidence: band that holds the model.
        prediction: band that holds a new y; None for another criterion than the squared error.
    """

    mean: np.ndarray
    standard_errors: np.ndarray
    confidence: tuple[np.ndarray, np.ndarray]
    prediction: tuple[np.ndarray, np.ndarray] | None


class Inference:
    """What follows from parameters and their covariance.

    Attributes:
        n: samples that count.
        names, params [P]: of the scalar parameters.
        free: the numbers of those that were fitted; the others have no error.
        covariance [P, P]: nan or inf where it cannot be estimated, and `reason` says why.
        df: degrees of freedom of Student's t; inf: the normal distribution.
    """

    ROBUST: tuple[str, ...]  # the kinds of robust covariance that there are

    n: int
    log_likelihood: Any
    _fitted: Callable[[Any], np.ndarray]
    _samples: Callable[[], Samples]

    def __init__(
        self, names: list[str], params: np.ndarray, free: list[int], covariance: np.ndarray,
        df: float, reason: str | None,
    ):  # fmt: skip
        self.names, self.params, self.free = names, params, free
        self.covariance = self._of_all(covariance)
        self.df, self.reason = df, reason

    def _of_all(self, covariance: np.ndarray) -> np.ndarray:
        """[F, F] of the free parameters -> [P, P]"""
        everything = np.zeros((len(self.params), len(self.params)))
        everything[np.ix_(self.free, self.free)] = covariance
        return everything

    def __repr__(self) -> str:
        values = zip(self.names, self.params, self.standard_errors, strict=True)
        fitted = ", ".join(f"{name} = {value:.6g} ± {error:.2g}" for name, value, error in values)
        return f"{type(self).__name__}({fitted})"

    def summary(self, level: float = 0.95) -> str:
        """What the result's summary says of it. Needs scipy."""
        return "\n".join(lines_of(self, level))

    @cached_property
    def data(self) -> Samples:
        """The samples that count."""
        return self._samples()

    @cached_property
    def fitted(self) -> np.ndarray:
        """[N] the model at the data."""
        return self._fitted(self.data.x)

    @cached_property
    def residuals(self) -> np.ndarray:
        """[N] y less the model."""
        return self.data.y - self.fitted

    def predict(self, x: Any, level: float = 0.95) -> Prediction:
        """The model at x [N] with its bands. Needs scipy."""
        raise NotImplementedError

    def robust_covariance(self, kind: str | None = None) -> np.ndarray:
        """[P, P], right as well where the errors of the samples are not what the fit takes them
        for, such as of one variance; nan where there is no covariance.

        Args:
            kind: HC0, HC1, HC2 or HC3 (the default); for another criterion than the squared error
                HC0 or HC1 (the default), which is HC0 times n / (n - P).
        """
        kind = self.ROBUST[-1] if kind is None else kind
        if kind not in self.ROBUST:
            raise ValueError(f"kind: expected one of {', '.join(self.ROBUST)}, got {kind!r}")
        if self.reason:
            return np.full_like(self.covariance, np.nan)
        return self._of_all(self._robust(kind))

    def _robust(self, kind: str) -> np.ndarray:
        """[F, F]"""
        raise NotImplementedError

    def robust_standard_errors(self, kind: str | None = None) -> np.ndarray:
        """[P]; see `robust_covariance`."""
        return np.sqrt(np.diag(self.robust_covariance(kind)))

    @property
    def standard_errors(self) -> np.ndarray:
        """[P]"""
        return np.sqrt(np.diag(self.covariance))

    @property
    def correlation(self) -> np.ndarray:
        """[P, P]; nan for a parameter without an error."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.covariance / np.outer(self.standard_errors, self.standard_errors)

    @property
    def t_values(self) -> np.ndarray:
        """[P], of the hypothesis that a parameter is 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            values = self.params / self.standard_errors
        return np.where(np.isin(np.arange(len(values)), self.free), values, np.nan)

    @property
    def p_values(self) -> np.ndarray:
        """[P], two-sided. Needs scipy."""
        return 2 * self._distribution.sf(np.abs(self.t_values))

    def confidence_intervals(self, level: float = 0.95) -> np.ndarray:
        """[P, 2], lower and upper end. Needs scipy."""
        half = self._quantile(level) * self.standard_errors
        return np.stack([self.params - half, self.params + half], axis=1)

    @property
    def _distribution(self) -> Any:
        stats = distributions()
        return stats.t(self.df) if 0 < self.df < math.inf else stats.norm()

    def _quantile(self, level: float) -> float:
        return float(self._distribution.ppf(0.5 + 0.5 * fraction("level", level)))


class Likelihood(Inference):
    """Of a criterion that is not the squared error: from the observed Fisher information, the
    second derivative of the summed loss, taken for a negative log likelihood.

    Attributes:
        log_likelihood: minus the summed loss.
    """

    ROBUST = ("HC0", "HC1")

    def __init__(
        self, names: list[str], params: np.ndarray, free: list[int], covariance: np.ndarray,
        reason: str | None, rows: Callable[[Any], tuple[np.ndarray, np.ndarray]],
        mean: Callable[[Any], Any], samples: Callable[[], Samples], n: int, log_likelihood: float,
        scores: Callable[[], np.ndarray],
    ):  # fmt: skip
        """rows: of x [N], d output / d params [N, P] and the output; mean: of y, by the output;
        scores: d loss / d output [N] of every sample."""
        super().__init__(names, params, free, covariance, math.inf, reason)
        self.n, self.log_likelihood = n, log_likelihood
        self._rows, self._mean, self._samples, self._scores = rows, mean, samples, scores
        self._fitted = lambda x: mean(rows(x)[1])

    def predict(self, x: Any, level: float = 0.95) -> Prediction:
        """The mean of y at x [N] with its band; `standard_errors` are of the model's output, before
        it is made a mean. Needs scipy."""
        rows, output = self._rows(x)
        errors = np.sqrt(np.einsum("np,np->n", rows @ self.covariance, rows))
        half = self._quantile(level) * errors
        band = self._mean(output - half), self._mean(output + half)
        return Prediction(self._mean(output), errors, band, None)

    def _robust(self, kind: str) -> np.ndarray:
        own = np.ix_(self.free, self.free)
        rows = self._rows(self.data.x)[0][:, self.free] * self._scores()[:, None]
        factor = self.n / (self.n - len(self.free)) if kind == "HC1" else 1.0
        return factor * self.covariance[own] @ (rows.T @ rows) @ self.covariance[own]

    @property
    def aic(self) -> float:
        return 2 * len(self.free) - 2 * self.log_likelihood

    @property
    def aicc(self) -> float:
        return _aicc(self.log_likelihood, self.n, len(self.free))

    @property
    def bic(self) -> float:
        return math.log(self.n) * len(self.free) - 2 * self.log_likelihood


def _aicc(log_likelihood: float, n: int, k: float) -> float:
    return 2 * k * n / (n - k - 1) - 2 * log_likelihood if n > k + 1 else math.inf


class Statistics(Inference):
    """Of a least-squares fit, at the parameters that it has.

    The covariance is scaled by the residual variance; with weights 1 / sigma^2 of known sigma,
    `unscaled_covariance` is the covariance. P parameters, K terms, N samples that count (weight 0
    leaves one out).

    Attributes:
        n: samples; rank: parameters that the data determine; df: n less the degrees of freedom
            that the fit takes.
        sum_of_squares: sum w r^2, which is chi squared with weights 1 / sigma^2.
        r_squared, adjusted_r_squared: about the mean where the model has a free constant, else
            about 0.
        reason: why the covariance is nan or inf; None where it is neither.

    Example:
        >>> import torch, polyfuse as pf
        >>> x = torch.arange(1.0, 7, dtype=torch.float64)
        >>> y = torch.tensor([1.1, 1.9, 3.2, 3.9, 5.1, 6.0], dtype=torch.float64)
        >>> model = pf.nn.Polynomial(1, dtype=torch.float64)
        >>> statistics = pf.solve(model, x, y).statistics
        >>> statistics.standard_errors.round(3).tolist(), round(statistics.r_squared, 4)
        ([0.126, 0.032], 0.9958)
    """

    ROBUST = ("HC0", "HC1", "HC2", "HC3")

    def __init__(
        self, names: list[str], params: np.ndarray, free: list[int], solution: _C.Solution,
        rows: Callable[[Any], np.ndarray], fitted: Callable[[Any], np.ndarray],
        samples: Callable[[], Samples], n: int, has_constant: bool,
        sum_of_squares: float | None = None, weighted: bool = True,
    ):  # fmt: skip
        self._solution, self._rows, self._fitted, self._samples = solution, rows, fitted, samples
        self.n, self.rank, self.has_constant = n, solution.rank, has_constant
        self._weighted = weighted
        self.sum_of_squares = (
            solution.sum_of_squares if sum_of_squares is None else sum_of_squares
        )  # fmt: skip
        df, reason = n - solution.degrees, None
        self.residual_variance = self.sum_of_squares / df if df > 0 else math.inf
        unscaled = solution.covariance
        if solution.rank < len(free):
            reason = f"the data determine {solution.rank} of {len(free)} parameters"
            unscaled = covariance = np.full_like(unscaled, np.nan)
        elif df <= 0:
            reason = f"n = {n}, parameters = {len(free)}: no residual degrees of freedom"
            covariance = np.full_like(unscaled, np.inf)
        else:
            covariance = unscaled * self.residual_variance
        super().__init__(names, params, free, covariance, df, reason)
        self.unscaled_covariance = self._of_all(unscaled)

    # -- one number for the fit -------------------------------------------------------------------

    @property
    def residual_deviation(self) -> float:
        """Standard deviation of the residuals, of weight 1."""
        return math.sqrt(self.residual_variance)

    chi_squared = property(lambda self: self.sum_of_squares)
    reduced_chi_squared = property(lambda self: self.residual_variance)

    @property
    def total_sum_of_squares(self) -> float:
        """Sum w (y - mean)^2, or sum w y^2 where the model has no free constant."""
        return self._solution.total_centred if self.has_constant else self._solution.total

    @property
    def r_squared(self) -> float:
        total = self.total_sum_of_squares
        return 1 - self.sum_of_squares / total if total > 0 else math.nan

    @property
    def adjusted_r_squared(self) -> float:
        if self.df <= 0:
            return math.nan
        return 1 - (self.n - self.has_constant) / self.df * (1 - self.r_squared)

    @property
    def f_value(self) -> float:
        """Of the hypothesis that all parameters but a constant are 0."""
        between = self.n - self.has_constant - self.df
        explained = self.total_sum_of_squares - self.sum_of_squares
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.float64(explained) / between / self.residual_variance)

    @property
    def f_p_value(self) -> float:
        """Needs scipy."""
        between = self.n - self.has_constant - self.df
        return float(distributions().f.sf(self.f_value, between, self.df))

    @property
    def log_likelihood(self) -> float:
        """Of normal errors with variance sum_of_squares / n / w."""
        if self.sum_of_squares == 0:
            return math.inf if self.n else math.nan
        weights = float(np.log(self.data.w).sum()) if self._weighted else 0.0
        variance = self.sum_of_squares / self.n
        return 0.5 * (weights - self.n * (math.log(2 * math.pi * variance) + 1))

    @property
    def aic(self) -> float:
        return 2 * self._solution.degrees - 2 * self.log_likelihood

    @property
    def aicc(self) -> float:
        return _aicc(self.log_likelihood, self.n, self._solution.degrees)

    @property
    def bic(self) -> float:
        return math.log(self.n or math.nan) * self._solution.degrees - 2 * self.log_likelihood

    @cached_property
    def condition_number(self) -> float:
        """Ratio of the largest to the smallest singular value of the weighted design, in the
        model's own terms."""
        if self.rank < len(self.free):
            return math.inf
        inverse = self._solution.covariance
        largest = [float(np.linalg.eigvalsh(m)[-1]) for m in (self._solution.gram, inverse)]
        return math.sqrt(largest[0] * largest[1])

    @cached_property
    def durbin_watson(self) -> float:
        """Of the weighted residuals, in the order of the samples."""
        r = self._weighted_residuals
        with np.errstate(invalid="ignore"):
            return float((np.diff(r) ** 2).sum() / (r**2).sum())

    # -- a number for every sample ----------------------------------------------------------------

    @property
    def _weighted_residuals(self) -> np.ndarray:
        return np.sqrt(self.data.w) * self.residuals

    @cached_property
    def leverage(self) -> np.ndarray:
        """[N] how much of a fitted value its own y makes, the diagonal of the hat matrix."""
        return self.data.w * self._spread(self.data.x, self._solution.influence)

    @property
    def studentized_residuals(self) -> np.ndarray:
        """[N] residuals over their standard deviation."""
        with np.errstate(invalid="ignore", divide="ignore"):
            left = self.residual_deviation * np.sqrt(1 - self.leverage)
            return self._weighted_residuals / left

    @property
    def cooks_distance(self) -> np.ndarray:
        """[N] how far the fit moves without a sample."""
        h = self.leverage
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.studentized_residuals**2 * h / (1 - h) / self._solution.degrees

    def _spread(self, x: Any, matrix: np.ndarray) -> np.ndarray:
        """[N] phi(x)^T matrix phi(x)"""
        rows = self._rows(x)
        return np.einsum("nk,nk->n", rows @ matrix, rows)

    # -- robust errors, prediction ----------------------------------------------------------------

    def _robust(self, kind: str) -> np.ndarray:
        squares = self.data.w * self.residuals**2
        if kind == "HC1":
            squares = squares * (self.n / self.df)
        elif kind != "HC0":
            squares = squares / (1 - self.leverage) ** (1 if kind == "HC2" else 2)
        rows = self._rows(self.data.x)
        middle = rows.T @ (rows * (self.data.w * squares)[:, None])
        return self._solution.estimator @ middle @ self._solution.estimator.T

    def predict(self, x: Any, level: float = 0.95) -> Prediction:
        """The model at x [N] with its bands; those of new samples of weight 1. Needs scipy."""
        mean = self._fitted(x)
        spread = self.residual_variance * self._spread(x, self._solution.coefficient_covariance)
        if self.rank < len(self.free):
            spread = np.full_like(spread, np.nan)
        quantile = self._quantile(level)
        inner = quantile * np.sqrt(spread)
        outer = quantile * np.sqrt(spread + self.residual_variance)
        return Prediction(
            mean, np.sqrt(spread), (mean - inner, mean + inner), (mean - outer, mean + outer)
        )
