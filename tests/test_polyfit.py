"""`polyfit` and `Polynomial.fit`: numpy's own tests, and numpy's results."""

import numpy as np
import polyfuse as pf
import pytest
from numpy.exceptions import RankWarning
from numpy.lib.tests.test_polynomial import TestPolynomial
from numpy.polynomial.tests import test_classes

from .nist import CERTIFIED, digits, read

RNG = np.random.default_rng(5)
X = RNG.uniform(-1, 3, 41)
Y = 1 + X - 2 * X**3 + RNG.normal(size=41)
W = RNG.uniform(0.2, 2, 41)


def test_numpys_test_of_polyfit(monkeypatch):
    monkeypatch.setattr(np, "polyfit", pf.polyfit)
    TestPolynomial().test_polyfit()


def test_numpys_test_of_fit():
    test_classes.test_fit(pf.Polynomial)


def same(found, truth):
    if isinstance(truth, (tuple, list)):
        assert type(found) is type(truth) and len(found) == len(truth)
        for a, b in zip(found, truth, strict=True):
            same(a, b)
    elif isinstance(truth, np.polynomial.Polynomial):
        assert isinstance(found, pf.Polynomial)
        same(found.coef, truth.coef)
        same(found.domain, truth.domain)
        same(found.window, truth.window)
    else:
        assert np.shape(found) == np.shape(truth)
        assert np.asarray(found).dtype.kind == np.asarray(truth).dtype.kind
        np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-12)


YS = {"y": Y, "columns": np.stack([Y, Y**2, X], 1), "complex": Y + 1j * X**2}


@pytest.mark.parametrize("y", YS.values(), ids=YS)
@pytest.mark.parametrize("w", [None, W, W * 0 + np.arange(41) % 2], ids=["plain", "w", "zeros"])
@pytest.mark.parametrize("options", [{}, {"full": True}, {"cov": True}, {"cov": "unscaled"}])
@pytest.mark.parametrize("degree", [0, 1, 4])
def test_polyfit(y, w, options, degree):
    same(pf.polyfit(X, y, degree, w=w, **options), np.polyfit(X, y, degree, w=w, **options))


@pytest.mark.parametrize("y", YS.values(), ids=YS)
@pytest.mark.parametrize("degree", [0, 3, [1, 3], [0, 4]], ids=str)
@pytest.mark.parametrize("options", [{}, {"domain": []}, {"domain": [0, 5], "window": [2, 3]}])
def test_fit(y, degree, options):
    if y.ndim == 2:
        pytest.skip("numpy's series have one dimension")
    ours, theirs = (c.fit(X, y, degree, w=W, **options) for c in (pf.Polynomial, _numpys))
    same(ours, theirs)


_numpys = np.polynomial.Polynomial


def test_full_fit():
    same(pf.Polynomial.fit(X, Y, 3, full=True), _numpys.fit(X, Y, 3, full=True))
    same(pf.Polynomial.fit(X, Y, [0, 2], full=True), _numpys.fit(X, Y, [0, 2], full=True))


@pytest.mark.parametrize("kind", [np.int64, np.float32, list])
def test_other_types(kind):
    x, y = ([1, 2, 3, 5, 9], [2, 1, 4, 4, 0])
    if kind is not list:
        x, y = np.array(x, kind), np.array(y, kind)
    found, truth = pf.polyfit(x, y, 2), np.polyfit(x, y, 2)
    assert found.dtype == truth.dtype
    np.testing.assert_allclose(found, truth, rtol=1e-4 if kind is np.float32 else 1e-12)


def test_strides_and_input_stay():
    x, y = np.arange(20.0)[::-2], (np.arange(20.0) ** 2)[::2]
    before = x.copy(), y.copy()
    same(pf.polyfit(x, y, 2), np.polyfit(x, y, 2))
    assert (x == before[0]).all() and (y == before[1]).all()


def test_rank_deficiency():
    x, y = [1.0, 2.0, 1.0], [1.0, 3.0, 2.0]
    with pytest.warns(RankWarning, match="poorly conditioned"):
        found = pf.polyfit(x, y, 3)
    with pytest.warns(RankWarning):
        truth = np.polyfit(x, y, 3)
    same(found, truth)
    same(pf.polyfit(x, y, 3, full=True)[1:3], np.polyfit(x, y, 3, full=True)[1:3])
    with pytest.warns(RankWarning):
        assert np.isnan(pf.polyfit(x, y, 2, cov="unscaled")[1]).all()
    with pytest.warns(RankWarning, match="poorly conditioned"):
        found = pf.Polynomial.fit(x, y, 3)
    with pytest.warns(RankWarning):
        same(found, _numpys.fit(x, y, 3))


def test_given_rcond_is_numpys():
    with pytest.warns(RankWarning):
        truth = np.polyfit(X, Y, 9, rcond=1e-3)
    with pytest.warns(RankWarning):
        same(pf.polyfit(X, Y, 9, rcond=1e-3), truth)
    same(pf.Polynomial.fit(X, Y, 3, rcond=1e-20), _numpys.fit(X, Y, 3, rcond=1e-20))


@pytest.mark.filterwarnings("ignore:Polyfit may be", "ignore:The fit may be")
@pytest.mark.parametrize(("x", "degree"), [(X + 1j, 2), (X, 33)])
def test_what_is_left_to_numpy(x, degree):
    same(pf.polyfit(x, Y, degree), np.polyfit(x, Y, degree))
    same(pf.Polynomial.fit(x, Y, degree), _numpys.fit(x, Y, degree))


def test_no_fits():
    assert pf.polyfit(X, np.zeros((len(X), 0)), 2).shape == (3, 0)


@pytest.mark.parametrize("name", [n for n, c in CERTIFIED.items() if c["with_intercept"]])
def test_certified(name):
    if CERTIFIED[name]["degree"] is None:
        pytest.skip("several variables")
    x, y = read(name)
    degree, truth = CERTIFIED[name]["degree"], CERTIFIED[name]["parameters_exact"]
    coef, covariance = pf.polyfit(x, y, degree, cov=True)
    assert digits(coef[::-1], truth) >= 13
    errors = np.sqrt(np.diag(covariance))[::-1]
    assert digits(errors, CERTIFIED[name]["std_errors_exact"]) >= 12


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((X, Y, -1), ValueError, "deg >= 0, got -1"),
        ((X[:, None], Y, 1), TypeError, "1D vector for x"),
        (([], [], 1), TypeError, "non-empty"),
        ((X, Y[:-1], 1), TypeError, "same length, got 41 and 40"),
        ((X, Y[:, None, None], 1), TypeError, "1D or 2D"),
        ((X, Y * np.nan, 1), np.linalg.LinAlgError, "finite"),
        (([1], [1], 0, None, False, None, True), ValueError, "samples to scale"),
        ((X, Y, 1, None, False, W[:3]), TypeError, "same length, got 3 and 41"),
        ((X, Y, 1, None, False, W[:, None]), TypeError, "1-d array for weights"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        pf.polyfit(*arguments)


@pytest.mark.parametrize("degree", [1.5, [], [[1]]])
def test_bad_degrees(degree):
    with pytest.raises(TypeError, match="deg must be"):
        pf.Polynomial.fit(X, Y, degree)
