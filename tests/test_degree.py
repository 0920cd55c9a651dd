"""`select_degree` against fits of every degree, one by one."""

import numpy as np
import polyfuse as pf
import pytest
import statsmodels.api as sm
import torch
from statsmodels.tools.eval_measures import aicc

from .tolerance import assert_relative

RNG = np.random.default_rng(11)
X = RNG.uniform(0, 4, 60)
Y = 1 - X + 0.4 * X**3 + RNG.normal(size=60)
W = RNG.uniform(0.5, 2, 60)
DEGREES = range(7)


@pytest.fixture(params=[None, W], ids=["plain", "weighted"])
def w(request):
    return request.param


def select(criterion, w=None, x=X, y=Y, most=6):
    weight = None if w is None else torch.tensor(w)
    return pf.select_degree(
        torch.tensor(x), torch.tensor(y), most, criterion=criterion, weight=weight
    )


def one_by_one(w):
    weights = np.ones(60) if w is None else w
    designs = [np.vander(X, k + 1, increasing=True) for k in DEGREES]
    return [sm.WLS(Y, rows, weights=weights).fit() for rows in designs]


@pytest.mark.parametrize("criterion", ["aicc", "bic"])
def test_likelihood(criterion, w):
    found, fits = select(criterion, w), one_by_one(w)
    truth = [f.bic if criterion == "bic" else aicc(f.llf, 60, k + 1) for k, f in enumerate(fits)]
    assert_relative(np.diff(found.scores), np.diff(truth), 1e-8)
    assert_relative(found.sums_of_squares, [f.ssr for f in fits], 1e-10)
    for ours, theirs in zip(found.coefficients, fits, strict=True):
        np.testing.assert_allclose(ours, theirs.params, rtol=1e-7)
    assert found.degree == np.argmin(truth)


def test_leave_one_out(w):
    weights = np.ones(60) if w is None else w
    truth = []
    for k in DEGREES:
        errors = []
        for i in range(60):
            keep = np.arange(60) != i
            coef = np.polyfit(X[keep], Y[keep], k, w=np.sqrt(weights[keep]))
            errors.append(weights[i] * (Y[i] - np.polyval(coef, X[i])) ** 2)
        truth.append(sum(errors) / weights.sum())
    found = select("loocv", w)
    assert_relative(found.scores, truth, 1e-8)
    assert found.degree == np.argmin(truth)


@pytest.mark.parametrize("criterion", ["aicc", "bic", "loocv"])
def test_a_polynomial_without_noise(criterion):
    x = np.linspace(-1, 1, 200)
    assert select(criterion, None, x, 2 + x - 3 * x**4, 12).degree == 4


def test_more_degrees_than_the_data_determine():
    found = select("bic", None, np.array([0.0, 1, 2, 0, 1, 2]), np.array([0.0, 1, 4, 1, 2, 5]), 5)
    assert found.degree <= 2 and np.isinf(found.scores[3:]).all()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"max_degree": 33}, ValueError, "max_degree: .*33"),
        ({"max_degree": 2.0}, TypeError, "max_degree: .*2.0"),
        ({"criterion": "aic"}, ValueError, "criterion: .*aic"),
        ({"x": torch.full((60,), torch.nan)}, ValueError, "60 samples hold nan"),
        ({"weight": torch.ones(3)}, ValueError, "weight: "),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"x": torch.rand(60), "y": torch.rand(60), "max_degree": 2}
    with pytest.raises(error, match=message):
        pf.select_degree(**arguments | change)
