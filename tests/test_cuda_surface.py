"""Several variables and functions by the CUDA kernels, run on the CPU, against those of CPUs."""

import copy
from functools import partial

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch

from . import test_functions
from .fake_device import take_for_a_device
from .interpreted_surface import (
    CRITERIA,
    OF_COLUMNS,
    STEPPED,
    a_loop_over_static_data,
    both,
    poison,  # noqa: F401
    steps_of_the_loop_and_of_fuse,
)
from .test_columns import POLYNOMIALS, Model
from .test_surface import MODELS, OPTIMIZERS, make

ENGINES = ["closed_form", "moments", "stream"]


@pytest.fixture(autouse=True)
def backend(emulated):
    return emulated


alike = partial(both, backend="emulated")


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize("n", [1, 129, 1300])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_every_engine(name, engine, n, weighted):
    x, y, model, _ = make(name, n)
    w = None
    if weighted:
        w = torch.linspace(0, 2, n, dtype=torch.float64) + (n == 1)
        w[1::3], x[1::3] = 0.0, torch.nan
    alike(
        model, nn.MSELoss(), OPTIMIZERS["nesterov"], x, y, engine=engine, sample_weight=w,
        record_every=2,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["moments", "stream"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name, engine):
    x, y, model, _ = make("quadric", 129)
    alike(model, nn.MSELoss(), OPTIMIZERS[name], x, y, engine=engine)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion(name):
    x, y, model, _ = make("quartic", 700)
    y = y.abs().clamp(0, 1)
    w = torch.linspace(0, 2, 700, dtype=torch.float64)
    options = {"sample_weight": w, "bounds": (-0.5, 0.9), "record_every": 2}
    alike(model, CRITERIA[name], OPTIMIZERS["adam"], x, y, engine="stream", **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_in_any_layout_with_gaps(engine):
    x, y, model, _ = make("domain", 2 * 603, torch.float32)
    x[4, 0], y[10], x[600, 1] = torch.nan, torch.inf, -torch.inf
    for data in (x[::2], x.T.contiguous().T[::2]):
        alike(
            model, nn.MSELoss(), OPTIMIZERS["sgd"], data, y[::2], engine=engine,
            nan_policy="omit",
        )  # fmt: skip


@pytest.mark.parametrize("terms", [7, 8, 15, 16, 23, 24, 31, 32, 40, 55, 56, 63, 64])
def test_every_width_of_the_matrix(terms):
    x = torch.rand(300, terms, generator=torch.Generator().manual_seed(terms)).double()
    y = torch.sin(x.sum(1))
    for engine in ENGINES:
        model = nn.Polynomial(1, variables=terms, intercept=False, dtype=torch.float64)
        alike(model, nn.MSELoss(), lambda p: optim.SGD(p, lr=1e-3), x, y, engine=engine)


def test_a_schedule_and_a_tolerance():
    x, y, model, _ = make("plane", 129)
    for engine in ("moments", "stream"):
        found = alike(
            model, nn.MSELoss(), lambda p: optim.SGD(p, lr=0.3), x, y, (60,), tol=1e-3,
            engine=engine,
        )  # fmt: skip
        assert found.converged and found.epochs < 60


def test_moments_keep_the_digits_of_a_small_residual():
    x, _, model, _ = make("quartic", 2100)
    exact = x[:, 0] ** 4 + 1e4 + 3 * x[:, 1]
    noise = 1e-6 * torch.sin(1e3 * x[:, 0])
    optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    found = pf.fit(
        model, nn.MSELoss(), optimizer, x, exact + noise, epochs=10**6, backend="emulated"
    )  # fmt: skip
    columns = model.columns(x)
    rest = torch.linalg.lstsq(columns, noise[:, None]).solution
    best = (columns @ rest - noise[:, None]).square().mean()
    assert found.engine == "closed_form"
    assert found.loss == pytest.approx(best.item(), rel=1e-6)


@pytest.mark.parametrize("name", test_functions.BASES)
def test_functions_of_x(name):
    x, y, model, _ = test_functions.make(name)
    for engine in ENGINES:
        alike(model, nn.MSELoss(), OPTIMIZERS["sgd"], x, y, engine=engine)


@pytest.mark.parametrize("name", OF_COLUMNS)
def test_traced_modules(name):
    x, function = POLYNOMIALS[name]
    model = Model(function)
    y = torch.cos(3 * model.forward(x).detach())
    for engine in ["stream", "moments", *["closed_form"] * (name != "products of parameters")]:
        models = [copy.deepcopy(model) for _ in range(2)]
        for m, on in zip(models, ("emulated", "cpu"), strict=True):
            used = optim.SGD(m.parameters(), lr=0.01, momentum=0.5)
            schedule = torch.optim.lr_scheduler.StepLR(used, 3, gamma=0.5)
            found = pf.fit(
                m, nn.MSELoss(), used, x, y, epochs=8, engine=engine, backend=on,
                scheduler=None if engine == "closed_form" else schedule,
            )  # fmt: skip
            assert (found.backend, found.launches) == (on, 1)
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("criterion", STEPPED)
@pytest.mark.parametrize("name", OF_COLUMNS)
def test_steps_of_the_loop_and_of_fuse(name, criterion, dtype, monkeypatch, backend):
    take_for_a_device(monkeypatch, backend)
    steps_of_the_loop_and_of_fuse(name, criterion, dtype, backend)


@pytest.mark.parametrize("name", OF_COLUMNS)
def test_a_loop_over_static_data(name, monkeypatch, backend):
    take_for_a_device(monkeypatch, backend)
    a_loop_over_static_data(name, backend)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_in_several_launches(engine):
    x, y, model, _ = make("quadric", 700)
    alike(
        model, nn.MSELoss(), OPTIMIZERS["nesterov"], x, y, engine=engine, record_every=2,
        launches=3, epochs=(5,), callback=lambda epoch, loss: None,
    )  # fmt: skip


def test_what_does_not_fit_is_refused():
    x = torch.rand(5, 12)
    model = Model(lambda m, x: m.a * sum(x[:, k] for k in range(12)) ** 2)
    optimizer = optim.SGD([model.a], lr=0.1)
    with pytest.raises(ValueError, match="emulated: 90 terms of several variables, above 64"):
        pf.fit(
            model.float(), nn.MSELoss(), optimizer, x, x[:, 0], epochs=1, backend="emulated"
        )  # fmt: skip


def test_the_same_bits_from_run_to_run(backend):
    x, y, model, _ = make("quartic", 1300)
    for engine in ENGINES:
        left = []
        for _ in range(2):
            m = copy.deepcopy(model)
            pf.fit(m, nn.MSELoss(), OPTIMIZERS["sgd"](m.parameters()), x, y, epochs=5,
                   engine=engine, backend="emulated")  # fmt: skip
            left.append(m.coefficients.detach())
        assert torch.equal(*left)
