"""scikit-learn's own checks of estimators, and its linear models on the same terms."""

import pickle

import numpy as np
import polyfuse as pf
import pytest
import torch
from numpy.exceptions import RankWarning
from polyfuse.sklearn import PolynomialClassifier, PolynomialRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from .nist import CERTIFIED, digits, read
from .tolerance import assert_relative

RNG = np.random.default_rng(2)
X = RNG.normal(size=(80, 3))
Y = 1 + X[:, 0] - X[:, 1] * X[:, 2] + RNG.normal(size=80)
W = RNG.uniform(0.5, 2, 80)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.RankWarning")  # checks with few samples
@parametrize_with_checks(
    [
        PolynomialRegressor(),
        PolynomialRegressor(1, alpha=0.5, fit_intercept=False),
        PolynomialClassifier(),
    ]
)
def test_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])
def test_regressor(alpha, constant, features, w):
    x, y = X[:, :features], np.stack([Y, X[:, 0] ** 3], 1)
    ours = PolynomialRegressor(2, alpha=alpha, fit_intercept=constant).fit(x, y, w)
    rows = PolynomialFeatures(2, include_bias=False).fit_transform(x)
    model = Ridge(alpha, solver="svd") if alpha else LinearRegression()
    theirs = model.set_params(fit_intercept=constant).fit(rows, y, w)
    assert_relative(ours.coef_, theirs.coef_, 1e-8)
    assert_relative(ours.predict(x), theirs.predict(rows), 1e-8)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-8)
    assert_relative(ours.score(x, y, w), theirs.score(rows, y, w), 1e-10)


@pytest.mark.parametrize("name", ["Filip", "Wampler5", "Pontius"])
def test_certified(name):
    x, y = read(name)
    model = PolynomialRegressor(CERTIFIED[name]["degree"]).fit(x[:, None], y)
    found = np.append(model.intercept_, model.coef_)
    assert digits(found, CERTIFIED[name]["parameters_exact"]) >= 13


@pytest.mark.parametrize("features", [1, 3])
def test_partial_fit(features):
    x = X[:, :features]
    whole, parts = PolynomialRegressor(3).fit(x, Y, W), PolynomialRegressor(3)
    for part in (slice(0, 30), slice(30, 31), slice(31, 80)):
        parts = pickle.loads(pickle.dumps(parts.partial_fit(x[part], Y[part], W[part])))
    assert_relative(parts.coef_, whole.coef_, 1e-12)
    assert_relative(parts.predict(x), whole.predict(x), 1e-12)
    again = parts.fit(x[:40], Y[:40])
    assert_relative(again.coef_, PolynomialRegressor(3).fit(x[:40], Y[:40]).coef_, 1e-15)


def test_partial_fit_with_another_number_of_outputs():
    with pytest.raises(ValueError, match="y: expected 1 outputs as before, got 2"):
        PolynomialRegressor(1).partial_fit(X, Y).partial_fit(X, np.stack([Y, Y], 1))


def test_rank_deficiency():
    with pytest.warns(RankWarning, match="determine 5 of 10"):
        model = PolynomialRegressor(2).fit(X[:5], Y[:5])
    assert_relative(model.predict(X[:5]), Y[:5], 1e-10)


def test_search_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), PolynomialRegressor())
    search = GridSearchCV(pipeline, {"polynomialregressor__degree": [1, 2, 3]}).fit(X, Y)
    assert search.best_params_ == {"polynomialregressor__degree": 2}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])
def test_classifier(constant, w):
    labels = np.where(Y > 1, "high", "low")
    ours = PolynomialClassifier(2, alpha=0.3, fit_intercept=constant).fit(X, labels, w)
    rows = PolynomialFeatures(2, include_bias=False).fit_transform(X)
    theirs = LogisticRegression(C=1 / 0.3, fit_intercept=constant, tol=1e-10, max_iter=10_000)
    theirs.fit(rows, labels, w)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(rows), atol=1e-6)
    assert (ours.predict(X) == theirs.predict(rows)).all()


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])
def test_classifier_of_several_classes(w, constant, features):
    x, labels = X[:, :features], np.array(["a", "b", "c"])[np.digitize(Y, [0.0, 1.5])]
    ours = PolynomialClassifier(2, alpha=0.3, fit_intercept=constant).fit(x, labels, w)
    rows = PolynomialFeatures(2, include_bias=False).fit_transform(x)
    theirs = LogisticRegression(C=1 / 0.3, fit_intercept=constant, tol=1e-10, max_iter=10_000)
    theirs.fit(rows, labels, w)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(rows), atol=1e-6)
    assert (ours.predict(x) == theirs.predict(rows)).all()


def test_classifier_is_where_several_outputs_have_no_gradient():
    labels = np.digitize(Y, [0.0, 1.5])
    ours = PolynomialClassifier(2, alpha=0.0).fit(X[:, :2], labels)
    model = pf.nn.Polynomial(2, variables=2, outputs=3, dtype=torch.float64)
    with torch.no_grad():
        model.coefficients.copy_(torch.from_numpy(np.vstack([ours.intercept_, ours.coef_.T])))
    logits = model(torch.from_numpy(X[:, :2]))
    torch.nn.CrossEntropyLoss(reduction="sum")(logits, torch.from_numpy(labels)).backward()
    assert model.coefficients.grad.abs().max() < 1e-6


def test_classifier_of_parts():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4000, 1))
    labels = rng.uniform(size=4000) < 1 / (1 + np.exp(1 - 2 * x[:, 0] ** 2))
    whole, parts = PolynomialClassifier(2).fit(x, labels), PolynomialClassifier(2)
    for begin in range(0, 4000, 500):
        part = slice(begin, begin + 500)
        parts.partial_fit(x[part], labels[part], classes=[False, True])
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=0.05, atol=0.05)
    three = labels.astype(int) + (rng.uniform(size=4000) < 0.3)
    whole_of_three = PolynomialClassifier(2).fit(x, three)
    parts_of_three = PolynomialClassifier(2)
    for begin in range(0, 4000, 1000):
        part = slice(begin, begin + 1000)
        parts_of_three.partial_fit(x[part], three[part], classes=[0, 1, 2])
    found, wanted = (m.predict_proba(x) for m in (parts_of_three, whole_of_three))
    np.testing.assert_allclose(found, wanted, atol=0.1)
    once = PolynomialClassifier(2).partial_fit(x, labels)
    assert_relative(once.coef_, whole.coef_, 1e-15)
    with pytest.raises(ValueError, match="y: expected labels among"):
        PolynomialClassifier().fit(X, Y > 1).partial_fit(X, np.full(80, 7))


@pytest.mark.parametrize("kind", [PolynomialRegressor, PolynomialClassifier])
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"degree": 0}, ValueError, "degree: .*0"),
        ({"degree": 1.5}, TypeError, "degree: .*1.5"),
        ({"alpha": -1}, ValueError, "alpha: .*-1"),
    ],
)
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options).fit(X, Y > 1)
