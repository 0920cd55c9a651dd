"""Several outputs of several variables, or of functions, on devices, emulated or interpreted,
against the kernels of CPUs."""

from functools import partial

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
import torch.nn.functional as F
from polyfuse import fused
from polyfuse.criteria import MSE, criterion_of
from polyfuse.problem import Problem

from .fake_device import take_for_a_device
from .interpreted_surface import both, poison  # noqa: F401
from .test_classes import CRITERIA as OF_CLASSES
from .test_outputs import CRITERIA, OPTIMIZERS, iterate, loop
from .test_responses import MODELS, OUTPUTS, assert_same, classes, data, make

ENGINES = ["closed_form", "moments", "stream"]


@pytest.fixture
def alike(on_device):
    return partial(both, backend=on_device.name)


def start(kind, dtype=torch.float64):
    model = make(kind, dtype)
    with torch.no_grad():
        model.coefficients.copy_(torch.sin(torch.arange(model.coefficients.numel())).view_as(
            model.coefficients))  # fmt: skip
    return model


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize("n", [1, 129, 1300])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", MODELS)
def test_every_engine(alike, kind, engine, n, weighted):
    x, y = data(kind, n)
    w = None
    if weighted:
        w = torch.linspace(0, 2, n, dtype=torch.float64) + (n == 1)
        w[1::3], x[1::3] = 0.0, torch.nan
    alike(
        start(kind), nn.MSELoss(), OPTIMIZERS["sgd"], x, y, engine=engine, sample_weight=w,
        record_every=2,
    )  # fmt: skip


@pytest.mark.parametrize("name", CRITERIA)
def test_weights_of_every_output(alike, name):
    x, y = data("products", 129)
    w = torch.linspace(0, 2, y.numel(), dtype=torch.float64).view_as(y).clone()
    w[3], w[5:90, 2] = 0.0, 0.0
    y[5, 2] = y[6, 0] = torch.nan
    x[3], x[10] = torch.inf, torch.nan
    alike(
        start("products"), CRITERIA[name], OPTIMIZERS["adam"], x, y, sample_weight=w,
        engine="stream", nan_policy="omit", record_every=2, bounds=(-0.9, 0.9),
    )  # fmt: skip


@pytest.mark.parametrize("targets", ["classes", "probabilities", "alike"])
@pytest.mark.parametrize("options", OF_CLASSES)
@pytest.mark.parametrize("kind", ["variables", "one function"])
def test_cross_entropy(alike, kind, options, targets):
    x, y = data(kind, 700)
    options = dict(OF_CLASSES[options])
    if targets != "classes":
        options.pop("ignore_index", None)
    target = classes(y) if targets == "classes" else y / y.sum(1, keepdim=True)
    if targets == "alike":
        target = torch.full_like(y[:1, :1], 1 / OUTPUTS).expand_as(y)
    w = torch.linspace(0, 2, 700, dtype=torch.float64)
    for weight in (None, w):
        alike(
            start(kind), nn.CrossEntropyLoss(**options), OPTIMIZERS["adam"], x, target,
            sample_weight=weight, record_every=2,
        )  # fmt: skip


def test_no_class_that_counts(on_device):
    x, _ = data("variables", 9)
    for weight in (None, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)):
        criterion = nn.CrossEntropyLoss(weight=weight, ignore_index=2)
        y = torch.full((9,), 2 if weight is None else 1)
        models = start("variables"), start("variables")
        optimizers = [OPTIMIZERS["sgd"](m.parameters()) for m in models]
        for m, o, on in zip(models, optimizers, (on_device.name, "cpu"), strict=True):
            with pytest.warns(RuntimeWarning, match="diverged"):
                pf.fit(m, criterion, o, x, y, epochs=1, backend=on)
        assert_same(models, optimizers, rtol=0, atol=0, equal_nan=True)
        assert models[0].coefficients.isnan().any() == (weight is not None)


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_in_any_layout(alike, engine):
    x, y = data("variables", 2 * 603, torch.float32)
    for xs in (x[::2], x.T.contiguous().T[::2]):
        for ys in (y[::2], y.T.contiguous().T[1::2]):
            alike(
                start("variables", torch.float32), nn.MSELoss(), OPTIMIZERS["sgd"], xs, ys,
                engine=engine,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "outputs"), [(1, 62), (2, 16), (7, 8), (15, 4), (20, 3), (31, 2)]
)
def test_every_width(alike, terms, outputs):
    generator = torch.Generator().manual_seed(terms)
    x = torch.rand(300, terms, generator=generator, dtype=torch.float64)
    y = torch.rand(300, outputs, generator=generator, dtype=torch.float64)
    if terms == 1:
        model = partial(nn.Polynomial, basis=[torch.sin], outputs=outputs)
        x = x[:, 0]
    else:
        model = partial(nn.Polynomial, 1, variables=terms, intercept=False, outputs=outputs)
    for engine in ENGINES:
        alike(
            model(dtype=torch.float64), nn.MSELoss(), lambda p: optim.SGD(p, lr=0.01), x, y,
            engine=engine,
        )  # fmt: skip


def test_an_output_a_million_times_the_others(alike):
    x, y = data("variables", 1003)
    y[:, 1] *= 1e6
    for engine in ENGINES:
        alike(start("variables"), nn.MSELoss(), OPTIMIZERS["sgd"], x, y, engine=engine)


@pytest.mark.parametrize("engine", ["moments", "stream"])
def test_a_tolerance_and_a_run_in_several_launches(alike, engine):
    x, y = data("variables", 129)
    options = {"engine": engine, "record_every": 2}
    sgd = partial(optim.SGD, lr=0.3)
    found = alike(start("variables"), nn.MSELoss(), sgd, x, y, (90,), tol=1e-2, **options)
    assert found.converged and found.epochs < 90
    alike(
        start("variables"), nn.MSELoss(), sgd, x, y, (5,), launches=3,
        callback=lambda epoch, loss: None, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mse", "kl, per row", "classes"])
@pytest.mark.parametrize("kind", ["variables", "functions"])
@pytest.mark.parametrize("how", ["loop", "static loop", "fuse"])
def test_one_launch_an_iteration(on_device, monkeypatch, how, kind, name):
    take_for_a_device(monkeypatch, on_device)
    monkeypatch.setattr(fused, "backend_of_outputs", lambda *_: on_device)
    x, y = data(kind)
    if how == "static loop":
        x, y = pf.static(x, y)
    criterion = nn.CrossEntropyLoss() if name == "classes" else CRITERIA[name]
    target = classes(y) if name == "classes" else y
    models = start(kind), start(kind)
    optimizers = [optim.Adam(m.parameters(), lr=0.1) for m in models]
    losses = loop(models[1], optimizers[1], criterion, x, target, 9)
    before = on_device.launches()
    step = partial(iterate, models[0], optimizers[0], criterion)
    if how == "fuse":
        step = pf.fuse(models[0], criterion, optimizers[0])
    for wanted in losses:
        assert step(x, target).item() == pytest.approx(wanted, rel=1e-9)
    by_torch = how == "loop" and kind == "functions"  # whose columns are computed once if promised
    of_moments = how == "static loop" and name == "mse"
    assert on_device.launches() - before == (0 if by_torch else 9 + of_moments)
    assert_same(models, optimizers)


@pytest.mark.parametrize("left_out", [0.0, -1.0, torch.nan], ids=["0", "-1", "nan"])
@pytest.mark.parametrize("of", [F.mse_loss, F.huber_loss], ids=["mse", "huber"])
def test_weights_of_torch(on_device, monkeypatch, of, left_out):
    take_for_a_device(monkeypatch, on_device)
    monkeypatch.setattr(fused, "backend_of_outputs", lambda *_: on_device)
    x, y = data("variables")
    w = torch.linspace(0, 2, y.numel(), dtype=torch.float64).view_as(y).clone()
    w[3], w[4, 0] = 0.0, left_out
    w[4, 1:] = 0.0
    models = start("variables"), start("variables")
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    criterion = partial(of, weight=w)
    losses = loop(models[1], optimizers[1], criterion, x, y, 5)
    before = on_device.launches()
    for wanted in losses:
        loss = iterate(models[0], optimizers[0], criterion, x, y)
        assert loss.item() == pytest.approx(wanted, rel=1e-9, nan_ok=True)
    assert on_device.launches() - before == 5
    assert_same(models, optimizers, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_outputs_of_one_variable_are_no_run_of_one_loss(on_device):
    model = nn.Polynomial(2, outputs=3)
    x = torch.linspace(-1, 1, 9)
    problem = Problem(
        model.trace_stacked(), "mean", (), x, torch.zeros(9, 3), criterion=criterion_of(MSE)
    )
    assert "CrossEntropyLoss alone" in on_device.refuse(problem)


def test_what_does_not_fit_is_refused(on_device):
    x, y = data("variables")
    w = torch.rand_like(y)
    model = start("variables")
    fit = partial(
        pf.fit, criterion=nn.MSELoss(), optimizer=optim.SGD(model.parameters(), lr=0.1), epochs=1,
        backend=on_device.name,
    )  # fmt: skip
    with pytest.raises(ValueError, match="outputs with weights of their own have no moments in"):
        fit(model, x=x, y=y, sample_weight=w, engine="moments")
    assert fit(model, x=x, y=y, sample_weight=w).engine == "stream"
    wide = nn.Polynomial(3, variables=3, outputs=OUTPUTS, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"{on_device.name}: 80 coefficients, "):
        fit(wide, x=torch.rand(67, 3).double(), y=y, optimizer=optim.SGD(wide.parameters(), lr=0.1))


def test_the_same_bits_from_run_to_run(on_device):
    x, y = data("variables", 1300)
    for engine in ENGINES:
        models = start("variables"), start("variables")
        for m in models:
            optimizer = OPTIMIZERS["sgd"](m.parameters())
            pf.fit(
                m, nn.MSELoss(), optimizer, x, y, epochs=5, engine=engine, backend=on_device.name
            )
        assert torch.equal(*(m.coefficients for m in models))
