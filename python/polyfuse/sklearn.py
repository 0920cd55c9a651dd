"""scikit-learn's estimators: polynomials of any number of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import _C, _check
from .linear import powers
from .polynomials import MAX_DEGREE
from .regression import equations_of

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.preprocessing import PolynomialFeatures
    from sklearn.utils import check_array
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "polyfuse.sklearn needs scikit-learn; pip install 'polyfuse[sklearn]'"
    ) from error

MAX_ITERATIONS = 100
TOLERANCE = 1e-12  # of the objective, relative


class _Polynomial(BaseEstimator):
    """Terms are all products of features up to a total degree, as `PolynomialFeatures` has them."""

    degree: int
    alpha: float
    fit_intercept: bool

    def _check_options(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, (int, np.integer)):
            raise TypeError(f"degree: expected an int, got {self.degree!r}")
        if not 1 <= self.degree <= MAX_DEGREE:
            raise ValueError(f"degree: expected 1 to {MAX_DEGREE}, got {self.degree}")
        if not (np.isreal(self.alpha) and 0 <= self.alpha < np.inf):
            raise ValueError(f"alpha: expected a finite number >= 0, got {self.alpha!r}")

    def _weights(self, sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
        if sample_weight is None:
            return None
        weights = check_array(
            sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
        )
        if weights.shape != (len(X),):
            raise ValueError(f"sample_weight: expected shape ({len(X)},), got {weights.shape}")
        if not (weights >= 0).all():
            raise ValueError(f"sample_weight: expected numbers >= 0, got {weights.min()}")
        if not weights.any():
            raise ValueError("sample_weight: expected a weight that is not zero, got zeros")
        return weights

    def _columns(self, X: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, F], without the constant."""
        return PolynomialFeatures(self.degree, include_bias=False).fit_transform(X)

    def _rows(self, X: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, P], with the constant."""
        columns = self._columns(X)
        return np.hstack([np.ones((len(X), 1)), columns]) if self.fit_intercept else columns

    def _ridge(self, n_params: int) -> list[float]:
        """The constant has no penalty."""
        if not self.alpha:
            return []
        constant = [0.0] * self.fit_intercept
        return constant + [float(self.alpha)] * (n_params - len(constant))


class PolynomialRegressor(RegressorMixin, _Polynomial):
    """Least-squares polynomial of one or several features.

    Minimises sum w (y - f(X))^2 + alpha sum coef^2; sums over the data and the equations are in
    double-double arithmetic. Where the data do not determine all coefficients, numpy's
    ``RankWarning`` says so and those of minimum norm are taken.

    Args:
        degree: total degree, 1 to 32.
        alpha: penalty >= 0 of the coefficients, not of the constant.
        fit_intercept: whether there is a constant.

    Attributes:
        coef_: [F] or [M, F] of M outputs, of the terms that
            ``PolynomialFeatures(degree, include_bias=False)`` gives, in its order.
        intercept_: float or [M].
        rank_: coefficients that the data determine, the constant included.

    Example:
        >>> import numpy as np
        >>> from polyfuse.sklearn import PolynomialRegressor
        >>> X = np.arange(6.0)[:, None]
        >>> model = PolynomialRegressor(2).fit(X, 1 + X[:, 0] - 2 * X[:, 0] ** 2)
        >>> model.intercept_, model.coef_
        (1.0, array([ 1., -2.]))
    """

    def __init__(self, degree: int = 2, *, alpha: float = 0.0, fit_intercept: bool = True):
        self.degree, self.alpha, self.fit_intercept = degree, alpha, fit_intercept

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> PolynomialRegressor:
        """X [N, D], y [N] or [N, M], sample_weight [N] >= 0."""
        self._take(X, y, sample_weight, None)
        del self._equations
        _check.warn_of_rank(self.rank_, self._n_params)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> PolynomialRegressor:
        """The fit of these samples and those of every call since the last `fit`."""
        self._take(X, y, sample_weight, getattr(self, "_equations", None))
        return self

    _shift: np.ndarray  # of the columns of several features

    def _take(self, X: Any, y: Any, sample_weight: Any, known: Any) -> None:
        self._check_options()
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=known is None
        )
        rows = np.ascontiguousarray(y.reshape(len(y), -1).T, np.float64)
        if known is not None and len(known) != len(rows):
            raise ValueError(f"y: expected {len(known)} outputs as before, got {len(rows)}")
        weights = self._weights(sample_weight, X)
        sums = []
        for output, values in enumerate(rows):
            before = None if known is None else known[output]
            equations = self._sums(X, values, weights, before)
            if before is not None:
                before.add(equations)
            sums.append(before or equations)
        self._equations = sums
        self._solve(sums, y.ndim > 1)

    def _sums(self, X: Any, y: Any, w: Any, known: _C.NormalEquations | None) -> Any:
        if X.shape[1] > 1:
            columns = self._columns(X)
            before = None if known is None else (known, self._shift)
            equations, self._shift = equations_of(columns, y, w, self.fit_intercept, before)
            return equations
        x = np.ascontiguousarray(X[:, 0])
        data = _C.Data(
            x.ctypes.data, y.ctypes.data, 0 if w is None else w.ctypes.data, len(x), 1, 1, 1, True,
            False, 0.0, 1.0, 1,
        )  # fmt: skip
        return _C.NormalEquations.of_data(
            data, self.degree + 1, True, _C.Variable(0.0, 1.0, 0.0), known, torch.get_num_threads()
        )

    def _solve(self, sums: list[_C.NormalEquations], several: bool) -> None:
        jacobian = None
        if self.n_features_in_ == 1 and not self.fit_intercept:
            jacobian = np.eye(self.degree + 1)[:, 1:].copy()
        elif self.n_features_in_ == 1:
            jacobian = np.eye(self.degree + 1)
        n_params = len(self._shift) if jacobian is None else jacobian.shape[1]
        found = [s.solve(jacobian, None, self._ridge(n_params), False) for s in sums]
        params = np.array([f.params for f in found])
        self._n_params, self.rank_ = n_params, found[0].rank
        self._coefficients = np.array([f.coefficients for f in found])
        self._variable = sums[0].shift, sums[0].scale
        constant, self.coef_ = np.zeros(len(found)), params
        if self.fit_intercept:
            constant, self.coef_ = params[:, 0], params[:, 1:]
        self.intercept_ = constant if several else float(constant[0])
        if not several:
            self.coef_ = self.coef_[0]

    def predict(self, X: Any) -> np.ndarray:
        """X [N, D] -> [N] or [N, M]"""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        if self.n_features_in_ == 1:
            rows = powers(*self._variable, self.degree + 1)(X[:, 0])
        else:
            rows = self._rows(X) - self._shift
        y = rows @ self._coefficients.T
        return y if np.ndim(self.intercept_) else y[:, 0]


class PolynomialClassifier(ClassifierMixin, _Polynomial):
    """Logistic regression whose logits are polynomials of one or several features.

    Minimises the sum of log losses + alpha / 2 sum coef^2 by Newton's method. Several classes have
    a logit each, and the cross entropy of all of them is one loss: what `polyfuse.fit` descends for
    ``nn.Polynomial(degree, variables=D, outputs=C)``.

    Args:
        degree: total degree, 1 to 32.
        alpha: penalty >= 0 of the coefficients, not of the constant; the 1 / C of
            `sklearn.linear_model.LogisticRegression`.
        fit_intercept: whether there is a constant.

    Attributes:
        classes_: [C].
        coef_: [1 or C, F], of the terms that ``PolynomialFeatures(degree, include_bias=False)``
            gives.
        intercept_: [1 or C].
        n_iter_: steps of Newton's method.

    Source: McCullagh and Nelder, Generalized Linear Models (1989), section 2.5.

    Example:
        >>> import numpy as np
        >>> from polyfuse.sklearn import PolynomialClassifier
        >>> X = np.linspace(-2, 2, 21)[:, None]
        >>> model = PolynomialClassifier(2).fit(X, np.abs(X[:, 0]) < 1)
        >>> model.predict([[0.0], [1.9]])
        array([ True, False])
    """

    def __init__(self, degree: int = 2, *, alpha: float = 1.0, fit_intercept: bool = True):
        self.degree, self.alpha, self.fit_intercept = degree, alpha, fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> PolynomialClassifier:
        """X [N, D], y [N] labels, sample_weight [N] >= 0."""
        return self._take(X, y, None, sample_weight, first=True)

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> PolynomialClassifier:
        """The fit of these samples, with what calls before found, as a normal distribution of the
        coefficients, in place of the penalty.

        Args:
            classes: all labels there are, at the first call; else those of its y.

        Source: Spiegelhalter and Lauritzen, Networks 20 (1990).
        """
        return self._take(X, y, classes, sample_weight, first=not hasattr(self, "_known"))

    def _take(self, X: Any, y: Any, classes: Any, sample_weight: Any, first: bool) -> Any:
        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float64, reset=first)
        check_classification_targets(y)
        weights = self._weights(sample_weight, X)
        weights = np.ones(len(X)) if weights is None else weights
        rows = self._rows(X)
        if first:
            self.classes_ = np.unique(y if classes is None else classes)
            if len(self.classes_) < 2:
                raise ValueError(f"y: expected two classes or more, got 1 class: {self.classes_}")
            count = 1 if len(self.classes_) == 2 else len(self.classes_)
            ridge = self._ridge(rows.shape[1]) or [0.0] * rows.shape[1]
            self._known = np.zeros((count, rows.shape[1])), np.diag(np.tile(ridge, count))
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y: expected labels among {self.classes_}, got {unknown}")
        labels = (y[:, None] == self.classes_).astype(float)
        found, curvature, self.n_iter_ = _newton(rows, labels, weights, *self._known)
        self._known = found, curvature
        self.coef_ = found[:, int(self.fit_intercept) :]
        self.intercept_ = found[:, 0] if self.fit_intercept else np.zeros(len(found))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """X [N, D] -> logits [N], or [N, C] of several classes"""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        logits = self._columns(X) @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """X [N, D] -> [N, C]"""
        logits = self.decision_function(X)
        return _chances(_of_classes(logits if logits.ndim > 1 else logits[:, None]))

    def predict(self, X: Any) -> np.ndarray:
        """X [N, D] -> labels [N]"""
        logits = self.decision_function(X)
        best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
        return self.classes_[best]


def _of_classes(logits: np.ndarray) -> np.ndarray:
    """[N, C]; a single one, [N, 1], is that of the second of two classes, against 0."""
    if logits.shape[1] > 1:
        return logits
    return np.hstack([np.zeros_like(logits), logits])


def _chances(logits: np.ndarray) -> np.ndarray:
    """Softmax, [N, C] -> [N, C]"""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _newton(
    rows: np.ndarray, y: np.ndarray, w: np.ndarray, centre: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Minimises sum of w log losses + away^T prior away / 2, away = params - centre.

    rows [N, P], y [N, C] (1 of the class), centre [L, P] of L logits, prior [L P, L P]. Returns
    params [L, P], the second derivative there [L P, L P], and the steps it took.
    """
    n_logits, shape = len(centre), centre.shape

    def objective(params: np.ndarray) -> float:
        logits, away = _of_classes(rows @ params.T), (params - centre).reshape(-1)
        largest = logits.max(axis=1)
        losses = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        return float(w @ (losses - (y * logits).sum(axis=1)) + 0.5 * away @ prior @ away)

    params, value = centre, objective(centre)
    for rounds in range(1, MAX_ITERATIONS + 1):  # noqa: B007
        chance = _chances(_of_classes(rows @ params.T))[:, -n_logits:]
        wrong = (y[:, -n_logits:] - chance).T * w
        slope = (wrong @ rows).reshape(-1) - prior @ (params - centre).reshape(-1)
        blocks = [
            [rows.T @ (rows * (w * of_a * (float(a == b) - of_b))[:, None])
             for b, of_b in enumerate(chance.T)]
            for a, of_a in enumerate(chance.T)
        ]  # fmt: skip
        curvature = np.block(blocks) + prior
        step = _least_norm(curvature, slope).reshape(shape)
        while (ahead := objective(params + step)) > value and np.abs(step).max() > 0:
            step = step / 2
        params, before, value = params + step, value, ahead
        if before - value <= TOLERANCE * before:
            break
    return params, curvature, rounds


def _least_norm(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solves symmetric equations; what all logits share is not determined, and stays."""
    sizes, axes = np.linalg.eigh(matrix)
    used = sizes > sizes[-1] * len(sizes) * np.finfo(float).eps
    axes = axes[:, used]
    return axes @ ((axes.T @ right) / sizes[used])
