"""numpy's polynomial fits, solved in double-double arithmetic."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.polynomial import polyutils

from . import _C, _check
from .polynomials import MAX_DEGREE

FLOAT64 = np.dtype(np.float64)


def polyfit(
    x: Any, y: Any, deg: int, rcond: Any = None, full: Any = False, w: Any = None, cov: Any = False,
) -> Any:  # fmt: skip
    """`numpy.polyfit`, with all the digits that float64 data allow.

    Arguments, results, their shapes and the order of coefficients (falling degree) are numpy's.
    With a given ``rcond`` the singular values below it are to be left out, and numpy itself is
    called, as for a complex x and degrees above 32; without one a term counts as dependent where
    the others leave 1e-14 of it.

    Args:
        x: [N]; y: [N], or [N, M] for M fits, which may be complex; deg: 0 and up.
        w: [N], weights of the residuals, not of their squares.
        full: also return residuals, rank, singular values and rcond.
        cov: also return the covariance, scaled by the residual variance, or as it is where
            "unscaled".

    Raises:
        TypeError, ValueError: as numpy. LinAlgError: for data that are not finite.

    Warns:
        RankWarning: where the data do not determine all coefficients.

    Example:
        >>> import numpy as np, polyfuse as pf
        >>> pf.polyfit(np.arange(5.0), [1, 3, 7, 13, 21], 2)
        array([1., 1., 1.])
    """
    order = int(deg) + 1
    if deg < 0:
        raise ValueError(f"expected deg >= 0, got {deg}")
    if rcond is not None or deg > MAX_DEGREE or np.iscomplexobj(x):
        return np.polyfit(x, y, deg, rcond, full, w, cov)
    xs, rows, weights = _arguments(x, y, w)
    wanted = bool(cov) and not full
    try:
        coef, rank, squares, covariance = _C.polyfit(
            xs, rows, weights, order, None, 1.0, 0.0, True, wanted, torch.get_num_threads()
        )
    except ValueError as error:
        raise np.linalg.LinAlgError(str(error)) from None
    coef = _shaped(coef, y)
    if rank != order and not full and coef.size:
        warnings.warn("Polyfit may be poorly conditioned", _check.RankWarning, stacklevel=2)
    if full:
        singular, limit = _singular_values(np.vander(xs, order), weights)
        return coef, _residuals(squares, y, rank, order), rank, singular, limit
    if not cov:
        return coef
    if rank != order:
        covariance.fill(np.nan)
    if cov == "unscaled":
        factor = np.ones(1)
    elif len(xs) <= order:
        raise ValueError(
            f"expected more than {order} samples to scale the covariance of degree {deg}, "
            f"got {len(xs)}"
        )
    else:
        factor = _joined(squares, y) / (len(xs) - order)
    if np.ndim(y) == 1:
        return coef, covariance * factor
    return coef, covariance[:, :, None] * factor


class Polynomial(np.polynomial.Polynomial):
    """`numpy.polynomial.Polynomial` whose `fit` keeps all the digits that float64 data allow.

    Example:
        >>> import numpy as np, polyfuse as pf
        >>> pf.Polynomial.fit(np.arange(5.0), [1, 3, 7, 13, 21], 2).convert().coef
        array([1., 1., 1.])
    """

    @classmethod
    def fit(
        cls, x: Any, y: Any, deg: Any, domain: Any = None, rcond: Any = None,
        full: Any = False, w: Any = None, window: Any = None, symbol: str = "x",
    ) -> Any:  # fmt: skip
        """As numpy's, whose arguments and results it has.

        The data are mapped from the domain to the window without rounding. With a given ``rcond``,
        a complex x or degrees above 32 numpy itself is called.
        """
        degrees = np.asarray(deg)
        if degrees.ndim > 1 or degrees.dtype.kind not in "iu" or degrees.size == 0:
            raise TypeError("deg must be an int or non-empty 1-D array of int")
        if degrees.min() < 0:
            raise ValueError(f"expected deg >= 0, got {deg}")
        highest = int(degrees.max())
        if rcond is not None or highest > MAX_DEGREE or np.iscomplexobj(x):
            return super().fit(x, y, deg, domain, rcond, full, w, window, symbol)
        xs, rows, weights = _arguments(x, y, w)
        if domain is None:
            domain = polyutils.getdomain(xs)
            if domain[0] == domain[1]:
                domain = np.add(domain, [-1, 1])
        elif isinstance(domain, list) and not domain:
            domain = cls.domain
        window = cls.window if window is None else window
        offset, scale = polyutils.mapparms(domain, window)
        chosen = None
        if degrees.ndim:
            chosen = np.ascontiguousarray(np.eye(highest + 1)[:, np.sort(degrees)])
        try:
            coef, rank, squares, _ = _C.polyfit(
                xs, rows, weights, highest + 1, chosen, float(scale), float(offset), False, False,
                torch.get_num_threads(),
            )  # fmt: skip
        except ValueError as error:
            raise np.linalg.LinAlgError(str(error)) from None
        order = len(coef)
        coef = _shaped(coef if chosen is None else chosen @ coef, y)
        series = cls(coef, domain=domain, window=window, symbol=symbol)
        if full:
            design = np.vander(offset + scale * xs, highest + 1, increasing=True)
            design = design if chosen is None else design @ chosen
            singular, limit = _singular_values(design, weights)
            return series, [_residuals(squares, y, rank, order), rank, singular, limit]
        if rank != order:
            warnings.warn("The fit may be poorly conditioned", _check.RankWarning, stacklevel=2)
        return series


def _arguments(x: Any, y: Any, w: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x [N], y [N] or as rows [M, N], and squared weights [N] or None."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 1:
        raise TypeError(f"expected 1D vector for x, got {x.ndim} dimensions")
    if x.size == 0:
        raise TypeError("expected non-empty vector for x")
    if not 1 <= y.ndim <= 2:
        raise TypeError(f"expected 1D or 2D array for y, got {y.ndim} dimensions")
    if len(x) != len(y):
        raise TypeError(f"expected x and y to have same length, got {len(x)} and {len(y)}")
    if x.dtype is not FLOAT64 or y.dtype is not FLOAT64:
        y = np.stack([y.real, y.imag], -1) if np.iscomplexobj(y) else y
        x, y = x.astype(np.float64), y.astype(np.float64)
    if y.ndim > 1:
        y = np.ascontiguousarray(y.reshape(len(y), -1).T)
    if w is not None:
        w = np.asarray(w, np.float64)
        if w.ndim != 1:
            raise TypeError(f"expected a 1-d array for weights, got {w.ndim} dimensions")
        if len(w) != len(x):
            raise TypeError(f"expected w and y to have the same length, got {len(w)} and {len(x)}")
        w = w * w
    return x, y, w


def _shaped(coef: np.ndarray, y: Any) -> np.ndarray:
    """[K, M] -> [K], or [K, M] where y has two dimensions."""
    if np.iscomplexobj(y):
        coef = coef[:, ::2] + 1j * coef[:, 1::2]
    return coef[:, 0] if np.ndim(y) == 1 else coef


def _joined(squares: np.ndarray, y: Any) -> np.ndarray:
    """Of a complex y, the squares of both parts."""
    return squares[::2] + squares[1::2] if np.iscomplexobj(y) else squares


def _residuals(squares: np.ndarray, y: Any, rank: int, order: int) -> np.ndarray:
    """As `numpy.linalg.lstsq` gives them: none where the rank or the samples are too few."""
    return _joined(squares, y) if rank == order < len(y) else np.array([])


def _singular_values(design: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Of the weighted design [N, K] with columns of length 1, and the rcond that numpy takes."""
    if w is not None:
        design = design * np.sqrt(w)[:, None]
    length = np.sqrt((design * design).sum(axis=0))
    length[length == 0] = 1
    limit = len(design) * float(np.finfo(np.float64).eps)
    return np.linalg.svd(design / length, compute_uv=False), limit
