"""Polynomials of several variables, against loops of plain PyTorch."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
import torch.nn.functional as F

MODELS = {
    "plane": (1, 2, {}),
    "quadric": (2, 2, {}),
    "quartic": (4, 2, {}),
    "cubic of three": (3, 3, {}),
    "per variable": ((2, 1), 2, {"total_degree": False}),
    "linear, no constant": (1, 7, {"intercept": False}),
    "domain": (2, 2, {"domain": ((-1, 2), (0, 3))}),
}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.02),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.01),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
}


def make(name, n, dtype=torch.float64):
    degree, variables, options = MODELS[name]
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.rand(n, variables, generator=generator, dtype=dtype) - 1
    y = torch.randn(n, generator=generator, dtype=dtype)
    models = []
    for _ in range(2):
        model = nn.Polynomial(degree, variables=variables, dtype=dtype, **options)
        with torch.no_grad():
            model.coefficients.copy_(torch.sin(torch.arange(model.coefficients.numel()) + 1.0))
        models.append(model)
    return x, y, *models


def loop(model, optimizer, values, x, y, w, epochs, mean=True):
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        weight = torch.ones_like(y) if w is None else w
        total = torch.where(weight > 0, weight * values(model(x), y), 0.0).sum()
        loss = total / weight.sum() if mean else total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize("n", [1, 5, 129, 20_001])
@pytest.mark.parametrize("name", MODELS)
def test_every_engine_is_the_loop(name, n, weighted):
    for engine in ("auto", "closed_form", "moments", "stream"):
        x, y, fitted, looped = make(name, n)
        w = None
        if weighted:
            w = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            w[1::3] = 0.0
        optimizers = [OPTIMIZERS["nesterov"](m.parameters()) for m in (fitted, looped)]
        history = []
        for epochs in (9, 3):
            result = pf.fit(
                fitted, nn.MSELoss(), optimizers[0], x, y, epochs=epochs, engine=engine,
                record_every=1, sample_weight=w,
            )  # fmt: skip
            history += result.history[:epochs].tolist()
        wanted = loop(looped, optimizers[1], lambda a, b: (a - b) ** 2, x, y, w, 12)
        np.testing.assert_allclose(history, wanted, rtol=1e-9)
        close = {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(fitted.coefficients, looped.coefficients, **close)
        torch.testing.assert_close(fitted.coefficients.grad, looped.coefficients.grad, **close)
        for key, value in optimizers[1].state[looped.coefficients].items():
            found = optimizers[0].state[fitted.coefficients][key]
            torch.testing.assert_close(found, value, **close)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_torchs(name):
    x, y, fitted, looped = make("quadric", 129)
    optimizers = [OPTIMIZERS[name](m.parameters()) for m in (fitted, looped)]
    pf.fit(fitted, nn.MSELoss(), optimizers[0], x, y, epochs=7)
    pf.fit(fitted, nn.MSELoss(), optimizers[0], x, y, epochs=5)
    loop(looped, optimizers[1], lambda a, b: (a - b) ** 2, x, y, None, 12)
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("criterion", "values"),
    [
        (nn.HuberLoss(delta=0.5), lambda a, b: F.huber_loss(a, b, reduction="none", delta=0.5)),
        (nn.L1Loss(), lambda a, b: (a - b).abs()),
        (
            nn.BCEWithLogitsLoss(),
            lambda a, b: F.binary_cross_entropy_with_logits(a, b, reduction="none"),
        ),
    ],
    ids=["huber", "l1", "bce"],
)
def test_other_criteria(criterion, values):
    x, y, fitted, looped = make("quartic", 1003)
    y = (y > 0).double()
    optimizers = [OPTIMIZERS["adam"](m.parameters()) for m in (fitted, looped)]
    result = pf.fit(fitted, criterion, optimizers[0], x, y, epochs=12)
    loop(looped, optimizers[1], values, x, y, None, 12)
    assert (result.engine, result.launches) == ("stream", 1)
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-9, atol=1e-11)


def test_float32_data_and_layouts():
    x, y, fitted, other = make("quadric", 1003, torch.float32)
    wide = x.T.contiguous().T
    results = []
    for model, data in ((fitted, x), (other, wide)):
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        results.append(pf.fit(model, nn.MSELoss(), optimizer, data, y, epochs=50_000))
    assert torch.equal(fitted.coefficients, other.coefficients)
    powers = np.stack([x[:, 0] ** p * x[:, 1] ** q for p, q in fitted.exponents], 1)
    wanted = np.linalg.lstsq(powers.astype(float), y.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(fitted.coefficients.detach(), wanted, rtol=1e-5, atol=1e-7)
    assert results[0].engine == "closed_form"
    grid, flat = x.view(17, 59, 2), y.view(17, 59)
    assert fitted(grid).shape == flat.shape
    pf.fit(fitted, nn.MSELoss(), optim.SGD(fitted.parameters(), lr=0.1), grid, flat, epochs=1)


def test_gaps_are_left_out():
    x, y, fitted, other = make("plane", 40)
    keep = torch.arange(40) % 4 != 1
    x[~keep, 1] = torch.nan
    for model, data, target, policy in (
        (fitted, x, y, "omit"), (other, x[keep], y[keep], "raise"),
    ):  # fmt: skip
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        pf.fit(model, nn.MSELoss(), optimizer, data, target, epochs=30, nan_policy=policy)
    torch.testing.assert_close(fitted.coefficients, other.coefficients, rtol=1e-12, atol=1e-14)


def test_the_same_bits_for_any_number_of_threads():
    x, y, one, two = make("quartic", 100_003, torch.float32)
    before = torch.get_num_threads()
    try:
        for model, threads in ((one, 1), (two, 2)):
            torch.set_num_threads(threads)
            optimizer = optim.SGD(model.parameters(), lr=0.1)
            pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=100)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.coefficients, two.coefficients)


def test_tol_stops():
    x, y, model, _ = make("quadric", 129)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=100_000, tol=1e-12)
    assert result.converged
    assert 10 < result.epochs < 100_000


def test_exponents_are_scikit_learns():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    for degree, variables, intercept in ((3, 2, True), (2, 4, True), (4, 3, False)):
        model = nn.Polynomial(degree, variables=variables, intercept=intercept)
        features = preprocessing.PolynomialFeatures(degree, include_bias=intercept)
        features.fit(np.zeros((1, variables)))
        assert np.array_equal(model.exponents, features.powers_)


def test_bad_input_changes_nothing():
    x, y, model, _ = make("plane", 12)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    before = model.coefficients.detach().clone()
    bad = x.clone()
    bad[2, 1] = torch.inf
    cases = [
        ({"x": x[:, :1]}, r"x: expected shape \(\.\.\., 2\), got \(12, 1\)"),
        ({"y": y[:5]}, r"y: expected shape \(12,\), got \(5,\)"),
        ({"x": bad}, "x, y: 1 sample holds nan or inf"),
        ({"x": x[:0], "y": y[:0]}, "y: expected at least one sample"),
        ({"engine": "closed_form", "tol": 0.1}, "engine: closed_form cannot serve this case: tol"),
        ({"backend": "nonsense"}, "backend: expected one of auto, cpu"),
    ]
    for change, message in cases:
        arguments = {"x": x, "y": y, "epochs": 5} | change
        xs, ys = arguments.pop("x"), arguments.pop("y")
        with pytest.raises(ValueError, match=message):
            pf.fit(model, nn.MSELoss(), optimizer, xs, ys, **arguments)
    with pytest.raises(ValueError, match="no sample is left"):
        pf.fit(model, nn.MSELoss(), optimizer, x * torch.nan, y, epochs=5, nan_policy="omit")
    with pytest.raises(ValueError, match="backend: expected one of auto, cpu"):
        pf.solve(model, x, y, backend="nonsense")
    with pytest.raises(TypeError, match=r"x: expected torch\.float64 on cpu"):
        pf.fit(model, nn.MSELoss(), optimizer, x.float(), y.float(), epochs=5)
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 2\), got \(12,\)"):
        model(x[:, 0])
    assert torch.equal(model.coefficients, before)


@pytest.mark.parametrize(
    ("degree", "options", "message"),
    [
        (2, {"variables": 0}, "variables: expected an int >= 1, got 0"),
        ((1, 2), {"variables": 2}, "degree: expected an int >= 0, or one for each .*, got"),
        ((1, 2, 3), {"variables": 2, "total_degree": False}, "degree: expected an int >= 0 or 2"),
        (2, {"variables": 2, "batch_shape": (3,)}, r"batch_shape: expected \(\) for 2 variables"),
        (2, {"variables": 2, "domain": (0, 1, 2)}, "domain: expected 2 pairs"),
        (0, {"variables": 2, "intercept": False}, "degree: expected a term at least"),
        (2, {"intercept": False}, "intercept: expected True for one variable"),
    ],
)
def test_bad_models(degree, options, message):
    with pytest.raises(ValueError, match=message):
        nn.Polynomial(degree, **options)


def test_its_repr_makes_it_again():
    for model in (
        nn.Polynomial(2, variables=3),
        nn.Polynomial(2, variables=2, intercept=False, domain=[(0, 1), (2, 3)]),
        nn.Polynomial((2, 1), variables=2, total_degree=False),
        nn.Polynomial((2, 0), variables=2, total_degree=False, intercept=False),
    ):
        again = eval(repr(model), {"Polynomial": nn.Polynomial})
        assert again.exponents == model.exponents and again.domain == model.domain


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_is_fused_too(name):
    x, y, fused, looped = make(name, 129)
    optimizers = [OPTIMIZERS["adam"](m.parameters()) for m in (fused, looped)]
    launches = pf._C.launches()
    for call, optimizer in zip((fused, looped.forward), optimizers, strict=True):
        for _ in range(12):
            loss = nn.MSELoss()(call(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert pf._C.launches() - launches == 12
    torch.testing.assert_close(fused.coefficients, looped.coefficients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
def test_a_fit_has_the_statistics_of_its_solution(weighted):
    x, y, fitted, solved = make("quadric", 60)
    w = torch.linspace(0.5, 2.0, 60, dtype=torch.float64) if weighted else None
    wanted = pf.solve(solved, x, y, weight=w)
    with torch.no_grad():
        fitted.coefficients.copy_(solved.coefficients)
    optimizer = optim.SGD(fitted.parameters(), lr=0.0)
    result = pf.fit(fitted, nn.MSELoss(), optimizer, x, y, epochs=2, sample_weight=w)
    a, b = result.statistics, wanted.statistics
    assert a.names == b.names and a.names[:3] == ["constant", "x1", "x2"]
    for name in ("params", "covariance", "r_squared", "aicc", "fitted", "leverage", "f_value"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-8)
    np.testing.assert_allclose(a.robust_covariance(), b.robust_covariance(), rtol=1e-8)
    for found, truth in zip(a.predict(x[:5]), b.predict(x[:5]), strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-8)
    assert "x1 x2" in result.summary()


def test_statistics_of_a_run_are_those_where_it_ended():
    x, y, model, _ = make("plane", 40)
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    s = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=3).statistics
    residual = y - model(x).detach()
    assert s.sum_of_squares == pytest.approx(float(residual.square().sum()), rel=1e-9)
    v = np.hstack([np.ones((40, 1)), x.numpy()])
    wanted = np.linalg.inv(v.T @ v) * s.sum_of_squares / (40 - v.shape[1])
    np.testing.assert_allclose(s.covariance, wanted, rtol=1e-9)


def test_a_likelihood_of_several_variables():
    x, y, model, _ = make("plane", 200)
    labels = (y > 0).double()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    s = pf.fit(model, nn.BCEWithLogitsLoss(), optimizer, x, labels, epochs=4000).statistics
    v = torch.cat([torch.ones(200, 1, dtype=torch.float64), x], 1)
    p = torch.sigmoid(v @ torch.from_numpy(s.params))
    wanted = torch.linalg.inv(v.T @ (v * (p * (1 - p))[:, None]))
    np.testing.assert_allclose(s.covariance, wanted, rtol=1e-9)
    assert s.names == ["constant", "x1", "x2", "x3"][: len(s.names)]


def test_schedulers_callbacks_and_bounds():
    x, y, fitted, looped = make("quadric", 129)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (fitted, looped)]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in optimizers]
    seen = []
    pf.fit(fitted, nn.MSELoss(), optimizers[0], x, y, epochs=12, scheduler=schedulers[0],
           record_every=5, bounds=(-0.5, 0.9), callback=lambda e, loss: seen.append(e))  # fmt: skip
    with torch.no_grad():
        looped.coefficients.clamp_(-0.5, 0.9)
    for _ in range(12):
        loop(looped, optimizers[1], lambda a, b: (a - b) ** 2, x, y, None, 1)
        schedulers[1].step()
        with torch.no_grad():
            looped.coefficients.clamp_(-0.5, 0.9)
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-10, atol=1e-12)
    assert seen == [5, 10, 12]
