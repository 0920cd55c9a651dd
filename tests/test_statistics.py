"""Statistics of a fit against statsmodels."""

import json
import math
import sys

import numpy as np
import polyfuse as pf
import pytest
import statsmodels.api as sm
import torch
from polyfuse.regression import regress
from statsmodels.stats.outliers_influence import OLSInfluence
from statsmodels.stats.stattools import durbin_watson
from statsmodels.tools.eval_measures import aicc

from .tolerance import assert_relative

N = 57


@pytest.fixture
def samples():
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 2, N)
    return x, 1 - 2 * x + 0.5 * x**2 + rng.normal(size=N), rng.uniform(0.3, 3, N)


class NoConstant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.c = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.c[0] * x + self.c[1] * x**2


@pytest.fixture(params=["OLS", "WLS", "no constant", "columns", "fit"])
def pair(request, samples):
    """Ours, statsmodels', and what both call a design."""
    x, y, w = samples
    design = np.vander(x, 3, increasing=True)
    tensors = torch.tensor(x), torch.tensor(y)
    if request.param == "columns":
        ours = regress(design[:, 1:], y, weight=w)
        return ours.statistics, sm.WLS(y, design, weights=w).fit(), lambda v: design_of(v)[:, 1:]
    if request.param == "no constant":
        ours = pf.solve(NoConstant(), *tensors)
        return ours.statistics, sm.OLS(y, design[:, 1:]).fit(), lambda v: v
    model = pf.nn.Polynomial(2, dtype=torch.float64)
    if request.param == "fit":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ours = pf.fit(model, torch.nn.MSELoss(), optimizer, *tensors, epochs=100_000)
    elif request.param == "WLS":
        ours = pf.solve(model, *tensors, weight=torch.tensor(w))
        return ours.statistics, sm.WLS(y, design, weights=w).fit(), lambda v: v
    else:
        ours = pf.solve(model, *tensors)
    return ours.statistics, sm.OLS(y, design).fit(), lambda v: v


def design_of(v):
    return np.vander(v, 3, increasing=True)


def test_parameters(pair):
    ours, theirs, _ = pair
    for found, truth in (
        (ours.params, theirs.params),
        (ours.covariance, theirs.cov_params()),
        (ours.unscaled_covariance, theirs.normalized_cov_params),
        (ours.standard_errors, theirs.bse),
        (ours.t_values, theirs.tvalues),
        (ours.p_values, theirs.pvalues),
        (ours.confidence_intervals(0.9), theirs.conf_int(0.1)),
    ):
        assert_relative(found, truth, 1e-10)


def test_numbers_of_the_fit(pair):
    ours, theirs, _ = pair
    for found, truth in (
        (ours.n, theirs.nobs),
        (ours.df, theirs.df_resid),
        (ours.sum_of_squares, theirs.ssr),
        (ours.chi_squared, theirs.ssr),
        (ours.residual_deviation, np.sqrt(theirs.scale)),
        (ours.reduced_chi_squared, theirs.scale),
        (ours.r_squared, theirs.rsquared),
        (ours.adjusted_r_squared, theirs.rsquared_adj),
        (ours.f_value, theirs.fvalue),
        (ours.f_p_value, theirs.f_pvalue),
        (ours.log_likelihood, theirs.llf),
        (ours.aic, theirs.aic),
        (ours.bic, theirs.bic),
        (ours.aicc, aicc(theirs.llf, N, len(theirs.params))),
        (ours.condition_number, theirs.condition_number),
        (ours.durbin_watson, durbin_watson(theirs.wresid)),
    ):
        assert_relative(found, truth, 1e-10)


def test_numbers_of_the_samples(pair):
    ours, theirs, _ = pair
    # statsmodels' influence is that of the weighted rows where these are the model
    rows = sm.OLS(theirs.model.wendog, theirs.model.wexog).fit()
    influence = OLSInfluence(rows)
    assert_relative(ours.fitted, theirs.fittedvalues, 1e-10)
    np.testing.assert_allclose(ours.residuals, theirs.resid, rtol=1e-10, atol=1e-12)
    assert_relative(ours.leverage, influence.hat_matrix_diag, 1e-10)
    np.testing.assert_allclose(
        ours.studentized_residuals, influence.resid_studentized_internal, rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(
        ours.cooks_distance, influence.cooks_distance[0], rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("kind", ["HC0", "HC1", "HC2", "HC3"])
def test_robust_errors(pair, kind):
    ours, theirs, _ = pair
    assert_relative(ours.robust_standard_errors(kind), getattr(theirs, f"{kind}_se"), 1e-10)


def test_prediction(pair):
    ours, theirs, as_columns = pair
    x = np.linspace(-2, 3, 13)
    design = design_of(x)[:, 3 - len(ours.params) :]
    truth = theirs.get_prediction(design).summary_frame(alpha=0.05)
    found = ours.predict(as_columns(x))
    assert_relative(found.mean, truth["mean"], 1e-9)
    assert_relative(found.standard_errors, truth["mean_se"], 1e-10)
    for band, name in ((found.confidence, "mean_ci"), (found.prediction, "obs_ci")):
        assert_relative(band[0], truth[f"{name}_lower"], 1e-9)
        assert_relative(band[1], truth[f"{name}_upper"], 1e-9)


def test_sigma(samples):
    x, y, sigma = (torch.tensor(v) for v in samples)
    s = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, y, sigma=sigma).statistics
    _, covariance = np.polyfit(x, y, 2, w=1 / sigma.numpy(), cov="unscaled")
    assert_relative(s.unscaled_covariance, covariance[::-1, ::-1], 1e-10)
    assert_relative(s.chi_squared, (((y.numpy() - s.fitted) / sigma.numpy()) ** 2).sum(), 1e-12)
    assert_relative(s.reduced_chi_squared, s.chi_squared / (N - 3), 1e-15)


def test_products_of_parameters_are_linearised(samples):
    class Vertex(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.at = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            self.slope = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return self.slope * (x - self.at)

    x, y, _ = samples
    model = Vertex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    result = pf.fit(
        model, torch.nn.MSELoss(), optimizer, torch.tensor(x), torch.tensor(y), epochs=50_000
    )
    at, slope = model.at.item(), model.slope.item()
    jacobian = np.stack([np.full(N, -slope), x - at], 1)
    r = y - slope * (x - at)
    truth = np.linalg.inv(jacobian.T @ jacobian) * (r @ r) / (N - 2)
    order = [result.statistics.names.index(name) for name in ("at", "slope")]
    assert_relative(result.statistics.covariance[np.ix_(order, order)], truth, 1e-8)


def test_logistic_regression(samples):
    x, y, _ = samples
    labels = (y > 1).astype(float)
    model = pf.nn.Polynomial(1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = pf.fit(
        model, torch.nn.BCEWithLogitsLoss(), optimizer, torch.tensor(x), torch.tensor(labels),
        epochs=5000,
    )  # fmt: skip
    ours, theirs = result.statistics, sm.Logit(labels, design_of(x)[:, :2]).fit(disp=False)
    for found, truth in (
        (ours.params, theirs.params),
        (ours.covariance, theirs.cov_params()),
        (ours.p_values, theirs.pvalues),
        (ours.log_likelihood, theirs.llf),
        (ours.aic, theirs.aic),
        (ours.bic, theirs.bic),
    ):
        assert_relative(found, truth, 1e-7)
    assert "log_likelihood" in result.summary()
    grid = np.linspace(-1, 2, 7)
    frame = theirs.get_prediction(design_of(grid)[:, :2]).summary_frame()
    assert_relative(ours.predict(grid).mean, frame["predicted"], 1e-7)
    assert_relative(ours.predict(grid).confidence, (frame["ci_lower"], frame["ci_upper"]), 1e-6)
    assert_relative(ours.residuals, theirs.resid_response, 1e-6)
    robust = sm.Logit(labels, design_of(x)[:, :2]).fit(disp=False, cov_type="HC0").bse
    assert_relative(ours.robust_standard_errors("HC0"), robust, 1e-6)
    assert_relative(ours.robust_standard_errors(), robust * math.sqrt(N / (N - 2)), 1e-6)
    with pytest.raises(ValueError, match="kind: expected one of HC0, HC1, got 'HC3'"):
        ours.robust_covariance("HC3")


def test_a_criterion_without_curvature(samples):
    x, y, _ = samples
    model = pf.nn.Polynomial(1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.tensor(x), torch.tensor(y)
    result = pf.fit(model, torch.nn.L1Loss(), optimizer, *data, epochs=10)
    assert np.isnan(result.statistics.covariance).all()
    assert "second derivative" in result.statistics.reason


def test_data_that_changed_after_a_fit(samples):
    x, y = torch.tensor(samples[0]), torch.tensor(samples[1])
    model = pf.nn.Polynomial(1, dtype=torch.float64)
    result = pf.solve(model, x, y)
    y.zero_()
    with pytest.raises(RuntimeError, match="y: changed in place"):
        result.statistics.leverage  # noqa: B018


def test_reports(samples):
    x, y = torch.tensor(samples[0]), torch.tensor(samples[1])
    model = NoConstant()
    result = pf.solve(model, x, y)
    text = result.summary()
    for part in ("c[0]", "c[1]", "r_squared", "std error", "low 95%", f"{result.params[0]:.6g}"):
        assert part in text
    assert result.to_pandas().loc["c[0]", "value"] == result.params[0]
    assert json.loads(result.to_json())["parameters"]["c[1]"] == result.params[1]
    assert "<td>" in result._repr_html_() and r"\pm" in result._repr_latex_()
    short = pf.solve(model, x[:2], y[:2])
    assert json.loads(short.to_json())["covariance"][0][0] is None
    assert "no residual" in short.summary()


@pytest.mark.parametrize(
    "name, call",
    [
        ("scipy", lambda r: r.summary()),
        ("matplotlib.colors", lambda r: r.plot()),
        ("pandas", lambda r: r.to_pandas()),
    ],
)
def test_what_is_not_installed(samples, monkeypatch, name, call):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install"):
        call(regress(samples[0][:, None], samples[1]))


@pytest.mark.parametrize("level", [0, 1, 95, "wide", True])
def test_bad_level(samples, level):
    result = regress(samples[0][:, None], samples[1])
    with pytest.raises(ValueError, match="level"):
        result.statistics.confidence_intervals(level)


def test_bad_kind(samples):
    with pytest.raises(ValueError, match="HC9"):
        regress(samples[0][:, None], samples[1]).statistics.robust_covariance("HC9")


@pytest.mark.parametrize("n", [57, 20_000])
@pytest.mark.parametrize("kind", ["solve", "fit", "logistic", "columns"])
def test_plot(n, kind, tmp_path):
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y = torch.sin(9 * x)
    model = pf.nn.Polynomial(2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if kind == "solve":
        result = pf.solve(model, x, y)
    elif kind == "columns":
        result = regress(np.stack([x, y], 1), x.numpy() ** 2)
    else:
        criterion = torch.nn.MSELoss() if kind == "fit" else torch.nn.BCEWithLogitsLoss()
        targets = y if kind == "fit" else (y > 0).double()
        result = pf.fit(model, criterion, optimizer, x, targets, epochs=20, record_every=5)
    figure = result.plot(tmp_path / "fit.png", level=0.9)
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels[:2] == ["y", "residual"] and ("loss" in labels) == (kind in ("fit", "logistic"))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert ("data" in legend) == (n < 5000)
    assert ("90% prediction" in legend) == (kind in ("solve", "fit"))
