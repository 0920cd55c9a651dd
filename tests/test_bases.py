"""Series in other bases than powers, against numpy.polynomial and plain PyTorch."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import statsmodels.api as sm
import torch
from polyfuse.bases import BASES

from .test_batch import assert_same_run

DOMAIN = (1000.0, 1020.0)


def points(n=50):
    generator = torch.Generator().manual_seed(5)
    x = DOMAIN[0] + 20 * torch.rand(n, generator=generator, dtype=torch.float64)
    return x, torch.sin(x / 3) + 0.1 * torch.rand(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 9, 20])
@pytest.mark.parametrize("basis", BASES)
def test_values_are_numpys(basis, degree):
    model = nn.Polynomial(degree, basis=basis, domain=DOMAIN, dtype=torch.float64)
    with torch.no_grad():
        model.coefficients.copy_(torch.cos(torch.arange(degree + 1.0)))
    x, _ = points()
    wanted = model.to_numpy()(x.numpy())
    size = BASES[basis].series(
        np.abs(model.to_numpy().coef), domain=DOMAIN, window=BASES[basis].window
    )
    scale = np.abs(size(np.array(DOMAIN))).max() + np.abs(wanted).max()
    with torch.no_grad():
        np.testing.assert_allclose(model(x), wanted, rtol=1e-12, atol=1e-13 * scale)
        torch.testing.assert_close(torch.nn.Module.__call__(model, x), model(x), rtol=1e-11,
                                   atol=1e-13 * scale)  # fmt: skip


@pytest.mark.parametrize("degree", [0, 2, 5, 12, 25])
@pytest.mark.parametrize("basis", BASES)
def test_solutions_are_numpys(basis, degree):
    if basis not in ("chebyshev", "legendre") and degree > 5:
        pytest.skip("numpy's own design matrix has no digits left")
    x, y = points(80)
    both = torch.stack([y, y**2], 1)
    model = nn.Polynomial(degree, batch_shape=(2,), basis=basis, domain=DOMAIN, dtype=torch.float64)
    result = pf.solve(model, x, both)
    assert result.counts() == {"converged": 2}
    for b in range(2):
        wanted = BASES[basis].series.fit(
            x.numpy(), both[:, b].numpy(), degree, domain=DOMAIN, window=BASES[basis].window
        )
        found = wanted.copy()
        found.coef = model.coefficients[:, b].detach().numpy()
        np.testing.assert_allclose(found(x.numpy()), wanted(x.numpy()), rtol=1e-7, atol=1e-9)
        if degree <= 5:
            np.testing.assert_allclose(found.coef, wanted.coef, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("basis", BASES)
def test_training_is_torchs(basis, monkeypatch):
    x, y = torch.linspace(-1, 1, 12, dtype=torch.float64), points(12)[1]
    ys = torch.stack([y + 0.1 * b for b in range(13)], 1)
    from . import test_batch

    plain = test_batch.model_of
    monkeypatch.setattr(test_batch, "model_of", lambda *a, **k: plain(*a, **k, basis=basis))
    for criterion in (nn.MSELoss(), nn.HuberLoss(delta=0.5)):
        for engine in ("auto", "stream"):
            assert_same_run(
                ("cpu", "reference"), lambda p: optim.SGD(p, lr=0.01, momentum=0.5), criterion,
                x, ys, engine=engine,
            )  # fmt: skip


@pytest.mark.parametrize("basis", BASES)
def test_a_single_series_is_fused(basis):
    x, y = points()
    fused = nn.Polynomial(3, basis=basis, domain=DOMAIN, dtype=torch.float64)
    looped = nn.Polynomial(3, basis=basis, domain=DOMAIN, dtype=torch.float64)
    result = pf.fit(fused, nn.MSELoss(), optim.SGD(fused.parameters(), lr=1e-3), x, y, epochs=40)
    assert result.engine in ("moments", "closed_form")
    optimizer = torch.optim.SGD(looped.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        ((torch.nn.Module.__call__(looped, x) - y) ** 2).mean().backward()
        optimizer.step()
    torch.testing.assert_close(fused.coefficients, looped.coefficients, rtol=1e-9, atol=1e-12)


def test_a_long_series_keeps_its_digits():
    x, y = points(200)
    fitted, looped = (
        nn.Polynomial(20, basis="chebyshev", domain=DOMAIN, dtype=torch.float64) for _ in range(2)
    )
    optimizer = optim.SGD(fitted.parameters(), lr=0.4)
    result = pf.fit(fitted, nn.MSELoss(), optimizer, x, y, epochs=300)
    plain = torch.optim.SGD(looped.parameters(), lr=0.4)
    for _ in range(300):
        plain.zero_grad()
        ((looped(x) - y) ** 2).mean().backward()
        plain.step()
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert result.loss == pytest.approx(((looped(x) - y) ** 2).mean().item(), rel=1e-10)
    assert result.engine == "moments"
    assert "series of degree 20" in str(pf.explain(fitted))


SERIES = [("chebyshev", 20), ("legendre", 12)]


@pytest.mark.parametrize(("basis", "degree"), SERIES)
def test_a_long_series_has_what_a_short_one_has(basis, degree):
    """Its solution and its run have the statistics of a regression on the terms, at x itself."""
    x, y = points(80)
    w = torch.linspace(0.0, 2.0, 80, dtype=torch.float64)
    model, trained = (
        nn.Polynomial(degree, basis=basis, domain=DOMAIN, dtype=torch.float64) for _ in range(2)
    )
    found = pf.solve(model, x, y, weight=w)
    wanted = BASES[basis].series.fit(
        x, y, degree, domain=DOMAIN, window=BASES[basis].window, w=w.sqrt()
    )
    terms = model.columns(x).numpy()
    truth = sm.WLS(y.numpy()[1:], terms[1:], weights=w.numpy()[1:]).fit()
    np.testing.assert_allclose(model.to_numpy()(x.numpy()), wanted(x.numpy()), rtol=1e-7)
    np.testing.assert_allclose(found.coefficients, truth.params, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        trained.coefficients.copy_(model.coefficients)
    optimizer = optim.SGD(trained.parameters(), lr=0.0)
    result = pf.fit(trained, nn.MSELoss(), optimizer, x, y, epochs=3, sample_weight=w)
    at = np.linspace(*DOMAIN, 7)
    rows = model.columns(torch.from_numpy(at)).numpy()
    band = truth.get_prediction(rows).conf_int()
    for one in (found, result):
        assert isinstance(one, (pf.Solution, pf.FitResult))
        s = one.statistics
        assert s.names[1] == "coefficients[1]" and s.n == 79
        np.testing.assert_allclose(s.standard_errors, truth.bse, rtol=1e-5)
        assert s.r_squared == pytest.approx(truth.rsquared, rel=1e-9)
        predicted = s.predict(at)
        np.testing.assert_allclose(predicted.mean, rows @ truth.params, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(np.stack(predicted.confidence, 1), band, rtol=1e-5, atol=1e-7)
        assert "coefficients[0]" in one.summary()
        np.testing.assert_array_equal(s.data.x, x[1:])


def test_a_long_series_takes_all_that_fit_and_solve_take():
    x, y = points(60)
    y[5] = torch.nan
    keep = torch.arange(60) != 5
    fitted, looped = (
        nn.Polynomial(12, basis="chebyshev", domain=DOMAIN, dtype=torch.float64) for _ in range(2)
    )
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (fitted, looped)]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3) for o in optimizers]
    seen = []
    result = pf.fit(fitted, nn.HuberLoss(), optimizers[0], x, y, epochs=9, nan_policy="omit",
                    scheduler=schedulers[0], record_every=4, bounds=(-0.2, 0.2),
                    callback=lambda epoch, loss: seen.append(epoch))  # fmt: skip
    for _ in range(9):
        optimizers[1].zero_grad()
        nn.HuberLoss()(looped(x[keep]), y[keep]).backward()
        optimizers[1].step()
        schedulers[1].step()
        with torch.no_grad():
            looped.coefficients.clamp_(-0.2, 0.2)
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-10, atol=1e-12)
    assert seen == [4, 8, 9] and result.statistics.n == 59
    solution = pf.solve(fitted, x, y, nan_policy="omit", ridge=0.3)
    terms = fitted.columns(x[keep])
    gram = terms.T @ terms + 0.3 * torch.eye(13, dtype=torch.float64)
    wanted = torch.linalg.solve(gram, terms.T @ y[keep])
    np.testing.assert_allclose(solution.coefficients, wanted, rtol=1e-10)
    with pytest.raises(ValueError, match="x, y: 1 sample holds nan or inf"):
        pf.solve(fitted, x, y)


def test_a_long_series_of_float32_data_is_computed_in_float64():
    x, y = (t.float() for t in points(200))
    model = nn.Polynomial(20, basis="chebyshev", domain=DOMAIN)
    pf.solve(model, x, y)
    wanted = np.polynomial.Chebyshev.fit(x.double(), y.double(), 20, domain=DOMAIN)
    np.testing.assert_allclose(model.coefficients.detach(), wanted.coef, rtol=2e-5, atol=1e-7)


def test_numpys_objects_go_both_ways():
    series = np.polynomial.Legendre([1.0, -2.0, 0.5], domain=[3.0, 7.0])
    model = nn.Polynomial.from_numpy(series, dtype=torch.float64)
    back = model.to_numpy()
    assert back == series
    x = np.linspace(3, 7, 9)
    at = torch.from_numpy(x)
    np.testing.assert_allclose(model.deriv()(at).detach(), series.deriv()(x), atol=1e-14)
    np.testing.assert_allclose(model.integ(2)(at).detach(), series.integ(2)(x), atol=1e-13)
    np.testing.assert_allclose(model.roots(), series.roots())
    with pytest.raises(TypeError, match=r"series: expected one of numpy\.polynomial's classes"):
        nn.Polynomial.from_numpy([1.0, 2.0])
    with pytest.raises(ValueError, match="series: expected the window"):
        nn.Polynomial.from_numpy(np.polynomial.Polynomial([1.0], window=[0, 1]))
    with pytest.raises(ValueError, match="to_numpy: expected a single polynomial"):
        nn.Polynomial(1, batch_shape=(3,)).to_numpy()
    with pytest.raises(ValueError, match="basis: expected one of monomial, chebyshev"):
        nn.Polynomial(2, basis="fourier")


@pytest.mark.parametrize("engine", ["moments", "closed_form"])
@pytest.mark.parametrize("basis", ["laguerre", "hermite"])
def test_columns_that_are_nearly_collinear_keep_their_digits(basis, engine):
    x = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    histories = []
    for used in (engine, "stream"):
        model = nn.Polynomial(10, basis=basis, dtype=torch.float64)
        with torch.no_grad():
            model.coefficients.fill_(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4 if basis == "laguerre" else 1e-14)
        result = pf.fit(model, nn.MSELoss(), optimizer, x, torch.sin(3 * x), epochs=50,
                        engine=used, record_every=20)  # fmt: skip
        histories.append(result.history)
    np.testing.assert_allclose(*histories, rtol=1e-11)


@pytest.mark.parametrize("how", [{}, {"outputs": 2}, {"batch_shape": (2,)}])
@pytest.mark.parametrize("degree", [3, 11])
def test_data_outside_the_domain_of_a_bounded_basis(how, degree):
    x = torch.linspace(0.1, 1.3, 40)  # both ends of which float32 rounds
    y = torch.stack([x, x**2], 1) if how else x
    model = pf.nn.Polynomial(degree, basis="chebyshev", domain=(0.1, 1.3), **how)
    pf.solve(model, x, y)
    before, x[7] = model.coefficients.detach().clone(), 1.4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call in (
        lambda **w: pf.solve(model, x, y, **w),
        lambda **w: pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=1, **w),
    ):
        with pytest.raises(
            ValueError, match=r"x: .* the domain of the model, \(0.1, 1.3\), got 1.4"
        ):
            call()
        assert torch.equal(model.coefficients, before)
    pf.solve(model, x, y, weight=(x < 1.35).float())  # a sample of weight 0 may be anywhere
    mask = (x < 1.35)[:, None].expand_as(y) if how else x < 1.35
    pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=1, mask=mask)
    assert model(torch.tensor([5.0])).isfinite().all()
    powers = pf.nn.Polynomial(degree, domain=(0.1, 1.3), **how)
    pf.solve(powers, x, y)


VALUES = {
    "chebyshev": np.polynomial.chebyshev.chebval2d,
    "legendre": np.polynomial.legendre.legval2d,
    "hermite": np.polynomial.hermite.hermval2d,
    "hermite_e": np.polynomial.hermite_e.hermeval2d,
    "laguerre": np.polynomial.laguerre.lagval2d,
}


@pytest.mark.parametrize("basis", VALUES)
def test_products_of_two_variables_are_numpys(basis):
    generator = torch.Generator().manual_seed(3)
    model = nn.Polynomial(
        (3, 2), variables=2, total_degree=False, basis=basis, dtype=torch.float64
    )  # fmt: skip
    c = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model.coefficients.copy_(torch.stack([c[powers] for powers in model.exponents]))
    x = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    wanted = torch.from_numpy(VALUES[basis](*x.T.numpy(), c.numpy()))
    torch.testing.assert_close(model(x).detach(), wanted)
    torch.testing.assert_close(model.forward(x).detach(), wanted)
    assert torch.equal(nn.Polynomial(3, variables=2, basis=basis).columns(x)[:, 0], x[:, 0] ** 0)


@pytest.mark.parametrize("degree", [3, 9])
def test_products_are_fitted_as_torch_fits_them(degree):
    generator = torch.Generator().manual_seed(4)
    domain = [(1000, 1001), (-5, 5)]
    low, high = torch.tensor(domain, dtype=torch.float64).T
    x = low + (high - low) * torch.rand(200, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(200, generator=generator, dtype=torch.float64)
    models = [
        nn.Polynomial(degree, variables=2, basis="legendre", domain=domain, dtype=torch.float64)
        for _ in range(3)
    ]
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    result = pf.fit(models[0], nn.MSELoss(), optimizers[0], x, y, epochs=20, record_every=1)
    step = pf.fuse(models[1], nn.MSELoss(), optimizers[1])
    stepped = [step(x, y).item() for _ in range(20)]
    losses = []
    for _ in range(20):
        loss = nn.MSELoss()(models[2].forward(x), y)
        optimizers[2].zero_grad()
        loss.backward()
        optimizers[2].step()
        losses.append(loss.item())
    np.testing.assert_allclose(result.history[:20], losses, rtol=1e-9)
    np.testing.assert_allclose(stepped, losses, rtol=1e-9)
    for fitted in models[:2]:
        torch.testing.assert_close(fitted.coefficients, models[2].coefficients)
    solution = pf.solve(models[0], x, y)
    v = models[0].columns(x)
    torch.testing.assert_close(models[0].coefficients.detach(), torch.linalg.lstsq(v, y).solution)
    predicted = solution.statistics.predict(x.numpy()).mean
    np.testing.assert_allclose(predicted, (v @ models[0].coefficients.detach()).numpy())
    outside = x.clone()
    outside[3, 1] = 7.0
    with pytest.raises(ValueError, match=r"x: expected values within .*\(-5, 5\), got 7"):
        pf.solve(models[0], outside, y)
    pf.solve(models[0], outside, y, weight=(outside[:, 1] < 6).double())
