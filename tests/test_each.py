"""Statistics of several outputs and of batches: of each what statsmodels, or a fit alone, gives."""

import copy
import json
import pickle

import numpy as np
import polyfuse as pf
import pytest
import statsmodels.api as sm
import torch
from polyfuse.regression import regress
from polyfuse.report import TRAVELS

from .tolerance import assert_relative

N = 41


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    x = 2 * torch.rand(N, generator=generator, dtype=torch.float64) - 1
    noise = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    y = torch.stack([1 - x, x**2, 2 + x**3], 1) + 0.2 * noise
    w = 0.2 + torch.rand(N, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype), w.to(dtype)


def polynomial(degree=2, kind="outputs", basis="monomial", domain=None):
    shape = {"outputs": 3} if kind == "outputs" else {"batch_shape": (3,)}
    return pf.nn.Polynomial(degree, basis=basis, domain=domain, dtype=torch.float64, **shape)


def fitted(model, x, y, criterion=None, engine="auto", **weights):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return pf.fit(
        model, criterion or torch.nn.MSELoss(), optimizer, x, y, epochs=20_000, engine=engine,
        **weights,
    )  # fmt: skip


def weighted(y, w, case):
    """Arguments of `fit` and `solve` each, and the weights [N, 3] that they come to."""
    if case == "none":
        return {}, {}, torch.ones_like(y)
    if case == "weights":
        return {"sample_weight": w}, {"weight": w}, w
    if case == "shared":
        return {"sample_weight": w[:, 0]}, {"weight": w[:, 0]}, w[:, :1].expand_as(y)
    if case == "sigma":
        return {"sigma": w**-0.5}, {"sigma": w**-0.5}, w
    if case == "mask":
        return {"mask": w > 0.5}, {"weight": (w > 0.5).to(y)}, (w > 0.5).to(y)
    y[3, 0] = y[5, 2] = y[8, 2] = torch.nan
    return ({"nan_policy": "omit"},) * 2 + (y.isfinite().to(y),)


@pytest.mark.parametrize("case", ["none", "weights", "shared", "sigma", "mask", "omitted"])
@pytest.mark.parametrize("kind", ["outputs", "batch"])
@pytest.mark.parametrize(
    "verb, basis, degree",
    [
        ("fit", "monomial", 2), ("fit", "chebyshev", 2),
        ("solve", "monomial", 2), ("solve", "chebyshev", 2), ("solve", "legendre", 9),
    ],
)  # fmt: skip
def test_each_is_what_statsmodels_gives(verb, kind, basis, degree, case):
    x, y, w = data()
    of_fit, of_solve, weights = weighted(y, w, case)
    model = polynomial(degree, kind, basis)
    result = fitted(model, x, y, **of_fit) if verb == "fit" else pf.solve(model, x, y, **of_solve)
    design = {
        "monomial": np.polynomial.polynomial.polyvander,
        "chebyshev": np.polynomial.chebyshev.chebvander,
        "legendre": np.polynomial.legendre.legvander,
    }[basis]
    grid = np.linspace(-1, 1, 5)
    assert len(result.statistics) == 3 and result.statistics.shape == (3,)
    for c, ours in enumerate(result.statistics):
        keep = weights[:, c].numpy() > 0
        theirs = sm.WLS(
            y[keep, c].numpy(), design(x[keep].numpy(), degree), weights=weights[keep, c].numpy()
        ).fit()
        frame = theirs.get_prediction(design(grid, degree)).summary_frame(alpha=0.05)
        found = ours.predict(grid)
        for mine, truth in (
            (ours.params, theirs.params),
            (ours.covariance, theirs.cov_params()),
            (ours.p_values, theirs.pvalues),
            (ours.n, theirs.nobs),
            (ours.r_squared, theirs.rsquared),
            (ours.log_likelihood, theirs.llf),
            (ours.bic, theirs.bic),
            (ours.robust_standard_errors("HC3"), theirs.HC3_se),
            (ours.residuals, theirs.resid),
            (found.mean, frame["mean"]),
            (found.prediction[0], frame["obs_ci_lower"]),
            (found.confidence[1], frame["mean_ci_upper"]),
        ):
            np.testing.assert_allclose(mine, truth, rtol=1e-8, atol=1e-10)
        assert result.statistics[c] is ours and ours.names[1] == "coefficients[1]"


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize("kind", ["outputs", "batch"])
def test_far_from_the_optimum(kind, engine):
    x, y, _ = data()
    result = pf.fit(
        model := polynomial(kind=kind), torch.nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1), x, y, epochs=3, engine=engine,
    )  # fmt: skip
    for c, ours in enumerate(result.statistics):
        r = y[:, c] - model(x)[:, c]
        assert_relative(ours.sum_of_squares, r.square().sum().item(), 1e-12)
        assert_relative(ours.params, model.coefficients[:, c].detach().numpy(), 1e-14)


CRITERIA = {
    "huber": torch.nn.HuberLoss(delta=0.3),
    "poisson": torch.nn.PoissonNLLLoss(reduction="sum"),
    "bce": torch.nn.BCEWithLogitsLoss(),
    "l1": torch.nn.L1Loss(),
    "kl": torch.nn.KLDivLoss(reduction="batchmean"),
}


@pytest.mark.parametrize(
    "kind, name",
    [
        *(("outputs", name) for name in CRITERIA),
        *(("batch", name) for name in CRITERIA if name != "kl"),
    ],
)
def test_other_criteria(kind, name):
    """The same numbers, or the same reason why there are none, as a fit alone has."""
    x, y, w = data()
    y, criterion = y.abs().clamp(max=1), CRITERIA[name]
    model, alone = polynomial(kind=kind), pf.nn.Polynomial(2, dtype=torch.float64)
    result = pf.fit(
        model, criterion, torch.optim.SGD(model.parameters(), lr=0.01), x, y, epochs=300,
        sample_weight=w,
    )  # fmt: skip
    for c, ours in enumerate(result.statistics):
        with torch.no_grad():
            alone.coefficients.copy_(model.coefficients[:, c])
        theirs = pf.fit(
            alone, criterion, torch.optim.SGD(alone.parameters(), lr=0.0), x, y[:, c], epochs=1,
            sample_weight=w[:, c],
        ).statistics  # fmt: skip
        assert ours.reason == theirs.reason
        for quantity in ("params", "covariance", "log_likelihood", "aicc", "n"):
            mine, truth = (np.asarray(getattr(s, quantity)) for s in (ours, theirs))
            np.testing.assert_allclose(mine, truth, rtol=1e-9)
        robust = [s.robust_standard_errors() for s in (ours, theirs)]
        np.testing.assert_allclose(*robust, rtol=1e-9)
        np.testing.assert_allclose(*(s.predict([0.3])[2] for s in (ours, theirs)), rtol=1e-9)
    with pytest.raises(ValueError, match="HC3"):
        result.statistics[0].robust_covariance("HC3")


def test_a_batch_of_its_own_x_and_degrees():
    x, y, _ = data()
    xs = torch.stack([x, 2 * x, x - 1], 1).view(N, 1, 3)
    model = pf.nn.Polynomial(4, batch_shape=(1, 3), dtype=torch.float64)
    result = pf.solve(model, xs, y.view(N, 1, 3), degree_by="bic")
    for c in range(3):
        ours, degree = result.statistics[0, c], int(result.degree[0, c])
        theirs = sm.OLS(y[:, c].numpy(), np.vander(xs[:, 0, c], degree + 1, increasing=True)).fit()
        assert_relative(ours.params, theirs.params, 1e-10)
        assert_relative(ours.standard_errors, theirs.bse, 1e-10)
    assert result.statistics[-1, -3] is result.statistics[0, 0]
    for wrong in (0, (0, 3), (1, 0), (0, 0, 0)):
        with pytest.raises(IndexError, match="expected an index"):
            result.statistics[wrong]
    with pytest.raises(TypeError):
        result.statistics["0"]


def test_a_float32_solution_keeps_its_digits():
    x, y, _ = data(torch.float32)
    model = pf.nn.Polynomial(2, outputs=3)
    result = pf.solve(model, x, y)
    truth = np.polyfit(x.double(), y.double(), 2)[::-1]
    assert_relative(result.statistics.stack("params"), truth.T, 1e-12)


def test_fits_that_cannot_be():
    x, y, _ = data()
    y[2:, 0] = torch.nan
    y[1, 1] = torch.nan
    model = polynomial(kind="batch")
    omitted = pf.solve(model, x, y, nan_policy="omit").statistics
    assert omitted[0].reason == "the data determine 2 of 3 parameters"
    assert np.isnan(omitted[0].standard_errors).all() and omitted[1].reason is None
    y[:, 0] = torch.nan
    without = pf.solve(model, x, y, nan_policy="omit")
    assert without.statistics[0].n == 0 and np.isnan(without.statistics[0].bic)
    assert "no errors" in without.summary()
    kept = pf.solve(model, x, y, nan_policy="propagate")
    assert np.isnan(kept.statistics[1].params).all() and "nan" in kept.summary()
    assert np.isfinite(kept.statistics[2].standard_errors).all()


@pytest.mark.parametrize("kind", ["outputs", "batch"])
def test_reports(kind, tmp_path):
    x, y, _ = data()
    result = pf.solve(polynomial(kind=kind), x, y)
    name = {"outputs": "output", "batch": "fit"}[kind]
    text = result.summary()
    for part in (f"{name} 0", f"{name} 2", "r_squared", "coefficients[2]", "std error"):
        assert part in text
    second = result.statistics[1]
    assert result.to_pandas().loc[(1, "coefficients[2]"), "value"] == second.params[2]
    read = json.loads(result.to_json())[f"{name} 1"]
    assert read["parameters"]["coefficients[0]"] == second.params[0]
    assert result._repr_html_().count("<table>") == 3
    assert result._repr_latex_().count(r"\pm") == 9
    figure = result.plot(tmp_path / "fits.png")
    assert [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes[:3]] == [
        f"{name} {c}" for c in range(3)
    ]
    many = pf.solve(pf.nn.Polynomial(1, batch_shape=(5, 6)), x.float(), torch.rand(N, 5, 6))
    assert "fit 1, 1" in many.summary() and "and 22 more" in many.summary()
    assert many.to_pandas().index.names == ["fit 0", "fit 1", "parameter"]
    assert repr(many.statistics) == "statistics of 30 fits, shape (5, 6)"


def test_pictures_of_runs():
    x, y, _ = data()
    for kind, n_losses in (("outputs", 1), ("batch", 3)):
        model = polynomial(kind=kind)
        result = pf.fit(
            model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), x, y,
            epochs=20, record_every=5,
        )  # fmt: skip
        labels = [ax.get_ylabel() for ax in result.plot().axes if ax.get_visible()]
        assert sum(label.startswith("loss") for label in labels) == n_losses


def single(x, y, **how):
    return pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, y[:, 0], **how)


RESULTS = {
    "solve": single,
    "ridge, weights": lambda x, y: single(x, y, ridge=0.5, weight=1 + y[:, 1] ** 2),
    "fit": lambda x, y: fitted(pf.nn.Polynomial(2, dtype=torch.float64), x, y[:, 0]),
    "huber": lambda x, y: fitted(
        pf.nn.Polynomial(2, dtype=torch.float64), x, y[:, 0], torch.nn.HuberLoss()
    ),
    "surface": lambda x, y: pf.solve(
        pf.nn.Polynomial(2, variables=2, dtype=torch.float64), y[:, :2], y[:, 2]
    ),
    "functions": lambda x, y: pf.solve(
        pf.nn.Polynomial(basis=[torch.sin, torch.ones_like], dtype=torch.float64), x, y[:, 0]
    ),
    "series": lambda x, y: pf.solve(
        pf.nn.Polynomial(9, basis="chebyshev", dtype=torch.float64), x, y[:, 0]
    ),
    "regress": lambda x, y: regress(y[:, :2].numpy(), y[:, 2].numpy()),
    "outputs": lambda x, y: fitted(polynomial(basis="legendre"), x, y),
    "batch": lambda x, y: pf.solve(polynomial(kind="batch"), x, y),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_travel_with_their_data(name):
    x, y, _ = data()
    result = RESULTS[name](x, y)
    summary = result.summary()
    pickled = pickle.dumps(result)
    copies = [copy.deepcopy(result), copy.copy(result)]
    assert all(twin.summary() == summary for twin in copies)
    assert pickle.loads(pickled).summary() == summary
    again = pickle.loads(pickle.dumps(pickle.loads(pickled)))
    assert again.summary() == summary
    y.zero_(), x.zero_()
    assert pickle.loads(pickled).to_dict() == result.to_dict()


@pytest.mark.parametrize("kind", ["solve", "batch", "regress"])
def test_large_data_stay_where_they_are(kind):
    x = torch.linspace(-1, 1, TRAVELS // 16, dtype=torch.float64)
    y = torch.stack([x.sin(), x**2, x**3 - x], 1)
    result = RESULTS[kind](x, y)
    data = pickle.dumps(result)
    assert len(data) < 10_000
    with pytest.raises(RuntimeError, match=r"without its data, .* MB; 1 MiB at most"):
        pickle.loads(data).statistics  # noqa: B018
    assert copy.deepcopy(result).statistics.__class__ is result.statistics.__class__


def test_a_result_is_pickled_alone():
    x, y, _ = data()
    wide = torch.zeros(N, 10_000, dtype=torch.float64)
    wide[:, 7] = y[:, 0]
    result = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, wide[:, 7])
    assert len(pickle.dumps(result)) < 10_000
    f = pf.nn.Polynomial(basis=[lambda x: x**2, torch.ones_like], dtype=torch.float64)
    left = pickle.loads(pickle.dumps(pf.solve(f, x, y[:, 0])))
    with pytest.raises(RuntimeError, match="functions of the model's basis cannot be pickled"):
        left.statistics  # noqa: B018


@pytest.mark.parametrize("kind", ["solve", "batch"])
def test_data_that_changed(kind):
    x, y, _ = data()
    result = RESULTS[kind](x, y)
    y.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        result.summary()
    with pytest.raises(RuntimeError, match="changed in place"):
        pickle.loads(pickle.dumps(result)).statistics  # noqa: B018


def classes(x, kind="classes", **how):
    generator = torch.Generator().manual_seed(2)
    logits = torch.stack([torch.zeros_like(x), 1 + x, x - x**2], 1)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    if kind == "probabilities":
        y = logits.softmax(1)
    if kind == "ignored":
        y[::5] = -100
    model = pf.nn.Polynomial(1, outputs=3, dtype=torch.float64, **how)
    return model, y


def trained(model, x, y, criterion=None, **how):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    criterion = criterion or torch.nn.CrossEntropyLoss()
    return pf.fit(model, criterion, optimizer, x, y, epochs=3000, **how)


@pytest.mark.parametrize("kind", ["classes", "ignored"])
def test_cross_entropy_is_statsmodels_mnlogit(kind):
    x = torch.linspace(-2, 2, 300, dtype=torch.float64)
    model, y = classes(x, kind)
    ours = trained(model, x, y).statistics
    keep = (y >= 0).numpy()
    design = sm.add_constant(x.numpy())
    truth = sm.MNLogit(y.numpy()[keep], design[keep]).fit(disp=False, tol=1e-12)
    robust = sm.MNLogit(y.numpy()[keep], design[keep]).fit(disp=False, tol=1e-12, cov_type="HC0")
    assert ours.names[:3] == [
        "class 1: coefficients[0]", "class 1: coefficients[1]", "class 2: coefficients[0]"
    ]  # fmt: skip
    for found, expected in (
        (ours.params, truth.params.T.reshape(-1)),
        (ours.covariance, truth.cov_params()),
        (ours.p_values, truth.pvalues.T.reshape(-1)),
        (ours.log_likelihood, truth.llf),
        (ours.aic, truth.aic),
        (ours.bic, truth.bic),
        (ours.robust_standard_errors("HC0"), robust.bse.T.reshape(-1)),
        (ours.fitted, truth.predict()),
        (ours.residuals.sum(0), np.zeros(3)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    grid = np.linspace(-2, 2, 7)
    found = ours.predict(grid, 0.9)
    np.testing.assert_allclose(found.mean, truth.predict(sm.add_constant(grid)), rtol=1e-8)
    step = 1e-6 * np.eye(4)  # the delta method, by differences
    slopes = [
        (truth.model.predict((truth.params.T.reshape(-1) + s).reshape(2, 2).T,
                             sm.add_constant(grid)) - found.mean) / 1e-6
        for s in step
    ]  # fmt: skip
    errors = np.sqrt(np.einsum("pnc,pq,qnc->nc", slopes, truth.cov_params(), slopes))
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-4)


def test_classes_in_a_basis_with_weights_and_probabilities():
    x = torch.linspace(0, 4, 200, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    criterion = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    model, y = classes(x - 2, "probabilities", basis="legendre", domain=(0, 4))
    result = trained(model, x, y, criterion)
    v = torch.stack([torch.ones_like(x), x / 2 - 1], 1)

    def loss(contrast):  # [2 * 2], class by class
        logits = v @ torch.cat([torch.zeros(2, 1), contrast.view(2, 2).T.double()], 1)
        return torch.nn.functional.cross_entropy(
            logits, y, weight, label_smoothing=0.1, reduction="sum"
        )

    at = torch.tensor(result.statistics.params)
    information = torch.autograd.functional.hessian(loss, at)
    assert_relative(result.statistics.covariance, torch.linalg.inv(information).numpy(), 1e-9)
    assert_relative(result.statistics.log_likelihood, -loss(at).item(), 1e-12)


def test_reports_of_classes(tmp_path):
    x = torch.linspace(-2, 2, 100, dtype=torch.float64)
    model, y = classes(x)
    result = trained(model, x, y, record_every=100)
    summary = result.summary()
    assert "class 2: coefficients[1]" in summary and "log_likelihood" in summary
    figure = result.plot(tmp_path / "classes.png")
    assert [ax.get_ylabel() for ax in figure.axes] == ["probability", "class", "loss"]
    again = pickle.loads(pickle.dumps(result))
    assert again.summary() == summary == copy.deepcopy(result).summary()
    constant = trained(classes(x)[0], torch.zeros_like(x), y)
    assert "not positive definite" in constant.statistics.reason
    assert np.isnan(constant.statistics.robust_covariance()).all()
    fresh = trained(model, x, y)
    y.zero_()
    for late in (fresh, pickle.loads(pickle.dumps(fresh))):
        with pytest.raises(RuntimeError, match="changed in place"):
            late.statistics  # noqa: B018


def test_what_was_frozen_at_the_fit_counts():
    x, y, _ = data()
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    result = pf.fit(model, torch.nn.MSELoss(), optimizer, x[:, None], y[:, :1], epochs=500)
    pickled = pickle.dumps(result)
    model.weight.requires_grad_(False), model.bias.requires_grad_(True)
    residual = y[:, 0] - model.bias.item()
    truth = sm.OLS(residual.numpy(), x.numpy()).fit()
    for s in (result.statistics, pickle.loads(pickled).statistics):
        errors = dict(zip(s.names, s.standard_errors, strict=True))
        assert_relative(errors["weight"], truth.bse[0], 1e-9)
        assert errors["bias"] == 0.0 and "weight = " in repr(s)
        assert s.summary() in result.summary()
    model.requires_grad_(False)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    alone = pf.fit(model, torch.nn.MSELoss(), other, x[:, None], y[:, :1], epochs=1)
    with pytest.raises(ValueError, match="statistics: there are none, no parameter was trainable"):
        alone.statistics  # noqa: B018
