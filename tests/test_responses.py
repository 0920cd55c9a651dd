"""Several outputs of several variables, or of functions, against loops of plain PyTorch."""

import pickle

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse import _C

from .test_classes import CRITERIA as OF_CLASSES
from .test_outputs import CRITERIA, OPTIMIZERS, iterate, loop

OUTPUTS = 4
MODELS = {
    "variables": {"degree": 2, "variables": 2, "domain": [(0, 1), (0, 2)]},
    "products": {
        "degree": (2, 1),
        "total_degree": False,
        "variables": 2,
        "basis": "chebyshev",
        "domain": [(0, 1), (-1, 1)],
    },
    "columns": {"degree": 1, "variables": 3, "intercept": False},
    "functions": {"basis": [torch.ones_like, torch.sin, torch.cos]},
    "one function": {"basis": [torch.sin]},
}


def make(kind, dtype=torch.float64):
    return nn.Polynomial(**MODELS[kind], outputs=OUTPUTS, dtype=dtype)


def data(kind, n=67, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    variables = MODELS[kind].get("variables", 1)
    x = torch.rand(n, variables, generator=generator, dtype=dtype)
    y = torch.rand(n, OUTPUTS, generator=generator, dtype=dtype)
    return (x if variables > 1 else 3 * x[:, 0]), y


def classes(y):
    return y.argmax(1)


def assert_same(models, optimizers, msg="", **close):
    close = close or {"rtol": 1e-8, "atol": 1e-10}
    (fitted, looped), (of_fitted, of_looped) = models, optimizers
    found, wanted = fitted.coefficients, looped.coefficients
    torch.testing.assert_close(found, wanted, msg=msg or None, **close)
    torch.testing.assert_close(found.grad, wanted.grad, msg=msg or None, **close)
    for key, value in of_looped.state[wanted].items():
        torch.testing.assert_close(of_fitted.state[found][key], value, msg=msg or None, **close)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("kind", MODELS)
def test_every_engine_is_the_loop(kind, name, optimizer):
    x, y = data(kind)
    engines = ["auto", "stream"]
    if name.startswith("mse"):
        engines += ["moments", "closed_form"][: 1 + (optimizer == "sgd")]
    for engine in engines:
        models = make(kind), make(kind)
        optimizers = [OPTIMIZERS[optimizer](m.parameters()) for m in models]
        result = pf.fit(
            models[0], CRITERIA[name], optimizers[0], x, y, epochs=9, engine=engine, record_every=1
        )
        losses = loop(models[1], optimizers[1], CRITERIA[name], x, y, 9)
        assert result.engine == engine or engine == "auto"
        np.testing.assert_allclose(result.history[:9], losses, rtol=1e-9)
        assert_same(models, optimizers, engine)


def test_closed_form_goes_as_far_as_all_steps():
    x, y = data("variables")
    models = make("variables"), make("variables")
    optimizers = [
        optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        for m in models
    ]
    results = [
        pf.fit(m, nn.MSELoss(), o, x, y, epochs=5000, engine=engine, record_every=700)
        for m, o, engine in zip(models, optimizers, ["auto", "moments"], strict=True)
    ]
    assert results[0].engine == "closed_form"
    np.testing.assert_allclose(results[0].history, results[1].history, rtol=1e-10)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-12)
    assert_same(models, optimizers)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", OF_CLASSES)
@pytest.mark.parametrize("kind", MODELS)
def test_cross_entropy_is_the_loop(kind, options, soft):
    x, y = data(kind)
    options = dict(OF_CLASSES[options])
    if soft:
        options.pop("ignore_index", None)
    options = {k: v.double() if k == "weight" else v for k, v in options.items()}
    criterion = nn.CrossEntropyLoss(**options)
    models = make(kind), make(kind)
    optimizers = [optim.Adam(m.parameters(), lr=0.1) for m in models]
    target = y / y.sum(1, keepdim=True) if soft else classes(y)
    result = pf.fit(models[0], criterion, optimizers[0], x, target, epochs=9, record_every=1)
    losses = loop(models[1], optimizers[1], criterion, x, target, 9)
    np.testing.assert_allclose(result.history[:9], losses, rtol=1e-9)
    assert_same(models, optimizers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 129, 70_001])
@pytest.mark.parametrize("name", ["mse", "huber", "classes"])
def test_sizes_and_strides(name, n, dtype):
    x, y = data("variables", 2 * n, dtype)
    x, y = x[::2], y.T.contiguous().T[::2]
    criterion = nn.CrossEntropyLoss() if name == "classes" else CRITERIA[name]
    target = classes(y) if name == "classes" else y
    models = make("variables", dtype), make("variables").double()
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    pf.fit(models[0], criterion, optimizers[0], x, target, epochs=3)
    target = target if name == "classes" else target.double()
    loop(models[1], optimizers[1], criterion, x.double(), target, 3)
    close = {"check_dtype": False, "rtol": 1e-6 if dtype is torch.float32 else 1e-10, "atol": 1e-7}
    assert_same(models, optimizers, **close)


@pytest.mark.parametrize("name", ["mse", "poisson", "classes"])
@pytest.mark.parametrize("kind", ["variables", "functions"])
@pytest.mark.parametrize("how", ["loop", "static loop", "fuse"])
def test_loop_and_fuse_are_one_launch_an_iteration(how, kind, name):
    x, y = data(kind)
    criterion = nn.CrossEntropyLoss() if name == "classes" else CRITERIA[name]
    target = classes(y) if name == "classes" else y
    models = make(kind), make(kind)
    optimizers = [optim.Adam(m.parameters(), lr=0.1) for m in models]
    losses = loop(models[1], optimizers[1], criterion, x, target, 9)
    if how == "static loop":
        pf.static(x, target) if target.is_floating_point() else pf.static(x, y)
    if how == "fuse":
        step = pf.fuse(models[0], criterion, optimizers[0])
        found = [step(x, target).item() for _ in range(9)]
    else:
        found, before = [], _C.launches()
        for _ in range(9):
            loss = iterate(models[0], optimizers[0], criterion, x, target)
            found.append(loss.item())
        fused = kind == "variables" or how == "static loop"
        settled = how == "static loop" and name == "mse"  # one more that reads the data
        assert _C.launches() - before == fused * (9 + settled)
    np.testing.assert_allclose(found, losses, rtol=1e-9)
    assert_same(models, optimizers)


def test_what_the_loop_shows_is_torchs():
    x, _ = data("variables")
    model = make("variables")
    with torch.no_grad():
        model.coefficients.uniform_(generator=torch.Generator().manual_seed(1))
    predicted = model(x)
    torch.testing.assert_close(predicted.detach(), model.forward(x).detach())
    predicted.pow(3).sum().backward()
    found, model.coefficients.grad = model.coefficients.grad, None
    model.forward(x).pow(3).sum().backward()
    torch.testing.assert_close(found, model.coefficients.grad)
    assert model(x.view(1, *x.shape)).shape == (1, len(x), OUTPUTS)
    assert "4 outputs side by side, products of 2 variables" in pf.explain(model)


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
@pytest.mark.parametrize("kind", ["variables", "functions"])
def test_weights_and_gaps(kind, engine, per_output):
    x, y = data(kind)
    y[4, 1] = y[7, 0] = torch.nan
    x[9] = torch.nan
    w = torch.linspace(0, 2, y.numel(), dtype=torch.float64).view(y.shape)
    w = w if per_output else w[:, 0]
    models = make(kind), make(kind)
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    result = pf.fit(models[0], nn.MSELoss(), optimizers[0], x, y, epochs=9, engine=engine,
                    sample_weight=w, nan_policy="omit")  # fmt: skip
    finite = y.isfinite() & x.isfinite().view(len(x), -1).all(1, keepdim=True)
    counted = torch.where(finite, w.view(len(x), -1).expand_as(y), 0.0)
    for _ in range(9):
        optimizers[1].zero_grad()
        square = (models[1].forward(x.nan_to_num()) - y.nan_to_num()) ** 2
        ((counted * square).sum() / counted.sum()).backward()
        optimizers[1].step()
    assert_same(models, optimizers)
    assert result.statistics[1].n == int((counted[:, 1] > 0).sum())


@pytest.mark.parametrize("name", ["mse", "classes"])
@pytest.mark.parametrize("kind", ["variables", "functions"])
def test_weights_of_steps_and_of_classes(kind, name):
    x, y = data(kind)
    w = torch.linspace(0, 2, len(x), dtype=torch.float64)
    criterion = nn.CrossEntropyLoss() if name == "classes" else nn.MSELoss()
    target = classes(y) if name == "classes" else y
    models = make(kind), make(kind)
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    step = pf.fuse(models[1], criterion, optimizers[1])
    for _ in range(5):
        step(x, target, sample_weight=w)
    pf.fit(models[0], criterion, optimizers[0], x, target, epochs=5, sample_weight=w)
    assert_same(models, optimizers)
    each = type(criterion)(reduction="none")(models[0].forward(x), target)
    loss = (w * each.view(len(x), -1).mean(1)).sum() / w.sum()
    grad = torch.autograd.grad(loss, models[0].coefficients)[0]
    pf.fit(models[0], criterion, optimizers[0], x, target, epochs=1, sample_weight=w)
    torch.testing.assert_close(models[0].coefficients.grad, grad)


def test_weights_of_0_leave_out_whatever_is_there():
    x, y = data("variables")
    x[3], y[4] = torch.inf, torch.nan
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[3:5] = False
    for name in ("mse", "huber", "classes"):
        criterion = nn.CrossEntropyLoss() if name == "classes" else CRITERIA[name]
        target = classes(y) if name == "classes" else y
        models = make("variables"), make("variables")
        optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
        pf.fit(models[0], criterion, optimizers[0], x, target, epochs=5, mask=keep)
        loop(models[1], optimizers[1], criterion, x[keep], target[keep], 5)
        assert_same(models, optimizers, name)


@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_tol_schedulers_callbacks_and_bounds(engine):
    x, y = data("variables")
    models = make("variables"), make("variables")
    optimizers = [optim.SGD(m.parameters(), lr=0.3) for m in models]
    steps = [torch.optim.lr_scheduler.StepLR(o, 5, 0.5) for o in optimizers]
    seen = []
    result = pf.fit(
        models[0], nn.MSELoss(), optimizers[0], x, y, epochs=40, engine=engine, bounds=(-0.1, 0.3),
        scheduler=steps[0], callback=lambda e, loss: seen.append((e, loss)), record_every=20,
    )  # fmt: skip
    for _ in range(40):
        loop(models[1], optimizers[1], nn.MSELoss(), x, y, 1)
        steps[1].step()
        with torch.no_grad():
            models[1].coefficients.clamp_(-0.1, 0.3)
    assert_same(models, optimizers)
    assert [e for e, _ in seen] == [20, 40]
    assert models[0].coefficients.max() == 0.3

    models = make("variables"), make("variables")
    optimizers = [optim.SGD(m.parameters(), lr=0.3) for m in models]
    result = pf.fit(
        models[0], nn.MSELoss(), optimizers[0], x, y, epochs=10_000, tol=1e-5, engine=engine
    )
    losses = loop(models[1], optimizers[1], nn.MSELoss(), x, y, result.epochs)
    losses.append(nn.MSELoss()(models[1].forward(x), y).item())
    settled = np.abs(np.diff(losses)) <= 1e-5 * np.abs(losses[1:])
    assert result.converged and settled.argmax() + 1 == result.epochs


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", MODELS)
def test_solve_finds_every_optimum(kind, backend):
    x, y = data(kind)
    model = make(kind)
    result = pf.solve(model, x, y, covariance=True, backend=backend)
    assert result.backend == ("cpu" if backend == "auto" else backend)
    v = model.columns(x)
    torch.testing.assert_close(model.coefficients.detach(), torch.linalg.lstsq(v, y).solution)
    r = y - v @ model.coefficients.detach()
    torch.testing.assert_close(result.loss, r.square().mean(0))
    freedom = len(x) - v.shape[1]
    spread = torch.linalg.inv(v.T @ v)[..., None] * r.square().sum(0) / freedom
    torch.testing.assert_close(result.covariance, spread)
    assert (result.converged, result.rank.tolist()) == (True, [v.shape[1]] * OUTPUTS)
    for c, found in enumerate(result.statistics):
        alone = nn.Polynomial(**MODELS[kind], dtype=torch.float64)
        wanted = pf.solve(alone, x, y[:, c]).statistics
        order = [wanted.names.index(name) for name in found.names]
        np.testing.assert_allclose(found.params, wanted.params[order], rtol=1e-9)
        of_wanted = wanted.covariance[np.ix_(order, order)]
        np.testing.assert_allclose(found.covariance, of_wanted, rtol=1e-9)
        assert (found.r_squared, found.aic) == pytest.approx((wanted.r_squared, wanted.aic))
        assert result.r_squared[c].item() == pytest.approx(wanted.r_squared)
        np.testing.assert_allclose(found.predict(x[:3]).mean, wanted.predict(x[:3]).mean)


def test_solve_with_weights_and_outputs_that_cannot_be():
    x, y = data("variables")
    y[3:, 1] = torch.nan
    y[:, 2] = torch.nan
    w = torch.linspace(0, 2, len(x), dtype=torch.float64)
    model = make("variables")
    with pytest.raises(ValueError, match="the data of 2 of 4 fits holds nan or inf"):
        pf.solve(model, x, y)
    assert not model.coefficients.any()
    result = pf.solve(model, x, y, weight=w, nan_policy="omit", deficient="nan")
    assert result.counts() == {"converged": 2, "rank_deficient": 2}
    assert result.rank.tolist() == [6, 2, 0, 6]
    v, root = model.columns(x), w.sqrt()[:, None]
    wanted = torch.linalg.lstsq(v * root, y[:, [0, 3]] * root).solution
    torch.testing.assert_close(model.coefficients[:, [0, 3]].detach(), wanted)
    assert model.coefficients[:, 1:3].isnan().all()
    pf.solve(model, x, y, nan_policy="omit")
    torch.testing.assert_close(v[:3] @ model.coefficients[:, 1].detach(), y[:3, 1])
    assert pf.solve(model, x, y, nan_policy="propagate").counts()["non_finite"] == 2


def test_statistics_of_a_fit_are_those_of_each_output():
    x, y = data("variables")
    model = make("variables")
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    result = pf.fit(model, nn.SmoothL1Loss(beta=1.0), optimizer, x, y, epochs=3000)
    for result_of in (result, pickle.loads(pickle.dumps(result))):
        for c, found in enumerate(result_of.statistics):
            alone = nn.Polynomial(**MODELS["variables"], dtype=torch.float64)
            with torch.no_grad():
                alone.coefficients.copy_(model.coefficients[:, c])
            wanted = pf.fit(
                alone, nn.SmoothL1Loss(beta=1.0), optim.SGD(alone.parameters(), lr=0.0), x,
                y[:, c], epochs=1,
            ).statistics  # fmt: skip
            assert found.names == wanted.names
            np.testing.assert_allclose(found.standard_errors, wanted.standard_errors, rtol=1e-9)
    model.coefficients.requires_grad_(False)
    assert result.statistics[0].names[1] == "x1"


@pytest.mark.parametrize("kind", ["variables", "functions"])
def test_multinomial_regression_is_that_of_statsmodels(kind):
    statsmodels = pytest.importorskip("statsmodels.api")
    x, y = data(kind, 400)
    target = classes(y + 0.3 * x.view(len(x), -1)[:, :1] / x.max() * torch.arange(OUTPUTS))
    model = make(kind)
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    result = pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, target, epochs=60_000)
    found = pickle.loads(pickle.dumps(result)).statistics if kind == "variables" else (
        result.statistics
    )  # fmt: skip
    v = model.columns(x).numpy()
    wanted = statsmodels.MNLogit(target.numpy(), v).fit(disp=0, maxiter=100)
    np.testing.assert_allclose(found.params, wanted.params.T.reshape(-1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.standard_errors, wanted.bse.T.reshape(-1), rtol=1e-3)
    assert found.log_likelihood == pytest.approx(wanted.llf, rel=1e-6)
    np.testing.assert_allclose(found.predict(x[:5]).mean, wanted.predict(v[:5]), rtol=1e-3)
    names = ["constant", "x1"] if kind == "variables" else ["ones_like", "sin"]
    assert found.names[:2] == [f"class 1: {name}" for name in names]


def test_bad_input_changes_nothing():
    x, y = data("variables")
    model, functions = make("variables"), make("functions")
    before = model.coefficients.detach().clone()
    cases = [
        ({"y": y[:, :2]}, r"y: expected shape \(n, 4\), got \(67, 2\)"),
        ({"x": x[:, 0]}, r"x: expected shape \(67, 2\) for several outputs, got \(67,\)"),
        ({"x": x[:, :1]}, r"x: expected shape \(67, 2\) for several outputs, got \(67, 1\)"),
        ({"y": y / 0}, "nan"),
        ({"x": x.float(), "y": y.float()}, "x: expected torch.float64"),
        ({"engine": "closed_form", "tol": 1e-3}, "engine: closed_form cannot .* tol needs"),
        ({"sample_weight": x}, r"sample_weight: expected the shape of x, \(67, 4\)"),
        ({"model": functions, "x": x}, r"x: expected shape \(67,\) for several outputs"),
        (
            {"criterion": nn.CrossEntropyLoss(), "y": classes(y) + 1},
            "y: expected classes from 0 to 3, got 4",
        ),
        (
            {"criterion": nn.CrossEntropyLoss(), "x": x[:, 0], "y": classes(y)},
            r"x: expected shape \(n, 2\) with n >= 1, got \(67,\)",
        ),
    ]
    for given, message in cases:
        objects = {"model": model, "criterion": nn.MSELoss(), "x": x, "y": y} | given
        chosen = objects.pop("model")
        optimizer = optim.SGD(chosen.parameters(), lr=0.1)
        with pytest.raises((ValueError, TypeError), match=message):
            pf.fit(chosen, objects.pop("criterion"), optimizer, objects.pop("x"),
                   objects.pop("y"), epochs=3, **objects)  # fmt: skip
    with pytest.raises(ValueError, match="degree_by: expected None for terms of any kind"):
        pf.solve(model, x, y, degree_by="bic")
    with pytest.raises(ValueError, match="backend: expected one of auto, cpu, reference"):
        pf.solve(model, x, y, backend="triton")
    with pytest.raises(ValueError, match="outputs: expected None for a batch"):
        nn.Polynomial(1, outputs=2, batch_shape=(3,))
    assert (model.coefficients == before).all() and model.coefficients.grad is None


def test_plot_of_classes_of_several_variables(tmp_path):
    x = torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] + x[:, 0] > 1).long()
    model = nn.Polynomial(2, variables=2, outputs=3, dtype=torch.float64)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    result = pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, y, epochs=50, record_every=10)
    figure = result.plot(tmp_path / "classes.png")
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["share of the samples", "class", "loss"]
    for line, c in zip(figure.axes[0].lines[1:], range(3), strict=True):
        assert abs(line.get_ydata().mean() - (y == c).double().mean()) < 1e-12
