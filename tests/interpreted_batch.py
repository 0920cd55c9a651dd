"""Batches of fits by interpreted Triton kernels; tests/test_triton.py has this file run."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import pytest
import torch
from polyfuse.backends import geometry
from torch.optim.lr_scheduler import StepLR

from .test_batch import DATA, OPTIMIZERS, assert_same_run, make, model_of

BACKENDS = ("triton", "reference")
ENGINES = ("moments", "stream")


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("degree_by", [None, "aicc", "bic"])
@pytest.mark.parametrize("basis", ["monomial", "laguerre"])
def test_solutions(basis, degree_by, kind):
    x, y, more = make(kind)
    weight, policy = more.get("sample_weight"), more.get("nan_policy", "raise")
    models = [model_of(degree=3, basis=basis) for _ in range(2)]
    found, wanted = (
        pf.solve(model, x, y, weight=weight, nan_policy=policy, covariance=True,
                 degree_by=degree_by, backend=backend)
        for model, backend in zip(models, ("triton", "cpu"), strict=True)
    )  # fmt: skip
    assert found.launches == 1
    close = {"rtol": 1e-8, "atol": 1e-11}
    torch.testing.assert_close(models[0].coefficients, models[1].coefficients, **close)
    for name in ("loss", "r_squared", "covariance", "rank", "status", "degree"):
        value, truth = getattr(found, name), getattr(wanted, name)
        if truth is not None:
            torch.testing.assert_close(value, truth, **close)


def test_fits_that_cannot_be_leave_the_others_alone():
    x, y, _ = make("own", n=6, dtype=torch.float32)
    w = torch.ones_like(y)
    x[:, 1], y[2, 2], w[:, 3], w[2:, 4], y[0, 5] = 0.3, torch.nan, 0.0, 0.0, torch.inf
    models = [model_of(dtype=torch.float32) for _ in range(2)]
    found, wanted = (
        pf.solve(model, x, y, weight=w, nan_policy="propagate", deficient="nan", backend=backend)
        for model, backend in zip(models, ("triton", "cpu"), strict=True)
    )
    assert set(found.counts()) == {"converged", "rank_deficient", "non_finite"}
    for name in ("status", "rank", "loss"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), equal_nan=True)
    a, b = (model.coefficients for model in models)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_torchs(name, kind, engine):
    x, y, more = make(kind)
    assert_same_run(
        BACKENDS, OPTIMIZERS[name], nn.MSELoss(), x, y, parts=(4, 3), engine=engine,
        record_every=2, **more,
    )  # fmt: skip


@pytest.mark.parametrize("basis", ["monomial", "chebyshev", "hermite_e", "laguerre"])
@pytest.mark.parametrize("degree", [0, 1, 4, 6])
def test_moments_in_every_basis(degree, basis):
    x, y, _ = make("own", n=20)
    left = []
    for backend in ("triton", "cpu"):
        model = model_of(degree=degree, basis=basis, domain=(-2, 3))
        optimizer = OPTIMIZERS["adam"](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=5, backend=backend)
        assert result.engine == "moments"
        left.append(torch.cat([model.coefficients.detach(), result.loss[None]]))
    torch.testing.assert_close(*left, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["shared", "weights"])
@pytest.mark.parametrize(
    "criterion",
    [nn.MSELoss(reduction="sum"), nn.HuberLoss(delta=0.5), nn.PoissonNLLLoss(full=True)],
    ids=lambda c: type(c).__name__,
)
def test_criteria(criterion, kind):
    x, y, more = make(kind)
    y = y.abs() if isinstance(criterion, nn.PoissonNLLLoss) else y
    assert_same_run(BACKENDS, OPTIMIZERS["sgd"], criterion, x, y, parts=(4, 3), **more)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_fit_stops_on_its_own(engine):
    x, y, _ = make("own")
    result = assert_same_run(
        BACKENDS, OPTIMIZERS["sgd"], nn.MSELoss(), x, y, parts=(40,), engine=engine, tol=1e-2,
        record_every=3,
    )  # fmt: skip
    assert len(set(result.fit_epochs.tolist())) > 3 and result.launches == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_bounds(engine):
    x, y, _ = make("own")
    high = torch.linspace(0.1, 0.5, 13, dtype=torch.float64)
    assert_same_run(
        BACKENDS, OPTIMIZERS["adam"], nn.MSELoss(), x, y, parts=(5, 4), engine=engine,
        bounds=(-0.2, high),
    )  # fmt: skip


def test_what_the_backend_refuses():
    x, y, _ = make("shared")
    with pytest.raises(ValueError, match="17 coefficients, more than 16"):
        pf.solve(model_of(degree=16), x, y, backend="triton")


@pytest.mark.parametrize(
    ("engine", "name", "tol"),
    [
        ("moments", "adam", None),
        ("stream", "nesterov", None),
        ("stream", "adam", 1e-2),
        ("closed_form", "nesterov", None),
    ],
)
def test_few_long_fits_between_epochs(engine, name, tol, monkeypatch):
    """One launch for each fit, whatever is asked for between epochs."""
    monkeypatch.setattr(geometry, "LAUNCH_SECONDS", 0.0)  # a launch for every epoch
    x, y, _ = make("shared", n=230, fits=2)
    y[:, 1] += 3 * x
    outcomes = []
    for backend in ("triton", "cpu"):
        model, looks = model_of(2), []
        optimizer = OPTIMIZERS[name](model.parameters())
        more = {"bounds": (-0.5, 1.5), "scheduler": StepLR(optimizer, 3, gamma=0.5)}
        result = pf.fit(
            model, nn.MSELoss(), optimizer, x, y, epochs=11, engine=engine, record_every=2,
            tol=tol, backend=backend, callback=lambda e, loss, looks=looks: looks.append(loss),
            **(more if engine != "closed_form" else {}),
        )  # fmt: skip
        outcomes.append((model.coefficients, result, torch.stack(looks)))
    (p, found, seen), (q, wanted, shown) = outcomes
    assert found.launches >= found.epochs if engine != "closed_form" else found.launches == 12
    for a, b in ((p, q), (p.grad, q.grad), (seen, shown)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert torch.equal(found.fit_epochs, wanted.fit_epochs)
    assert torch.equal(found.status, wanted.status)
    np.testing.assert_allclose(found.history, wanted.history, rtol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_rank_of_few_long_fits(engine):
    """Of three points, two and one, the third among many that are alike; and of none that count."""
    y = torch.linspace(-1, 1, 4 * 1501, dtype=torch.float64).view(1501, 4)
    x, w = torch.zeros_like(y), torch.ones_like(y)
    x[1, :2], x[1234, 0], w[:, 3] = 0.5, -0.5, 0.0
    ranks = []
    for backend in ("triton", "cpu"):
        model = model_of(4, degree=3)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=2, engine=engine,
                        sample_weight=w, backend=backend)  # fmt: skip
        ranks.append(torch.stack([result.rank, result.status, result.loss.isnan()]))
    assert ranks[0][0].tolist() == [3, 2, 1, 0] and torch.equal(*ranks)


def test_many_terms_take_a_launch_each():
    x, y, _ = make("own", n=25, fits=3)
    left = []
    for backend in ("triton", "cpu"):
        model = model_of(3, degree=17, basis="chebyshev")
        optimizer = OPTIMIZERS["adam"](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=5, backend=backend)
        left.append(torch.cat([model.coefficients.detach(), result.loss[None]]))
    torch.testing.assert_close(*left, rtol=1e-8, atol=1e-10)
