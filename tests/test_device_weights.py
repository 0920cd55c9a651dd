"""Weighted samples on devices, emulated or interpreted, against the reference."""

from dataclasses import replace

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse.backends import REGISTRY
from polyfuse.problem import Schedule

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, data
from .test_criteria import problem_of
from .test_fit import ENGINES
from .test_kernels import make, state_of
from .test_weights import model_of, samples
from .tolerance import assert_relative

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)
REFERENCE = REGISTRY["reference"]


@pytest.fixture
def backend(on_device):
    return on_device


def weighted(degree, n, dtype, reduction="mean"):
    """A problem, some of whose samples have no weight, and hold anything."""
    model, problem = make(degree, n, dtype)
    w = samples(n, dtype)[2]
    lr = 1e-3 if reduction == "mean" else 1e-3 / n
    problem.x[w == 0], problem.y[w == 0] = float("nan"), float("inf")
    rule = tuple(o._replace(lr=lr, momentum=0.5) for o in problem.rule)
    return model, problem._replace(weight=w, rule=rule, reduction=reduction)


def assert_same_run(backend, problem, engine, start, schedule=Schedule(2, 6, 2), rtol=1e-9):  # noqa: B008
    found, truth = start(), start()
    assert backend.refuse(problem) is None
    mine = backend.descend(problem, engine, None, schedule, found)
    exact = REFERENCE.descend(problem, engine, None, schedule, truth)
    for name in ("params", "grad", "momentum"):
        scale = np.abs(getattr(truth, name)).max()
        difference = getattr(found, name) - getattr(truth, name)
        assert np.abs(difference).max() <= rtol * scale, name
    assert_relative(mine.recorded, exact.recorded, rtol)
    np.testing.assert_allclose(mine.loss, exact.loss, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 9, 129, 1003, 5003])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("engine", ENGINES)
def test_squared_error(engine, reduction, n, dtype, backend):
    model, problem = weighted(2, n, dtype, reduction)
    assert_same_run(backend, problem, engine, lambda: state_of(model))


@pytest.mark.parametrize("degree", [0, 1, 5, 9])
@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_degrees(engine, degree, backend):
    model, problem = weighted(degree, 1003, torch.float64)
    assert_same_run(backend, problem, engine, lambda: state_of(model))


@pytest.mark.parametrize("layout", ["sliced", "unaligned"])
@pytest.mark.parametrize("omit", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_layouts(engine, omit, layout, dtype, backend):
    model, problem = weighted(2, 1003, dtype)
    w = problem.weight
    w = torch.stack([w, -w], dim=1)[:, 0] if layout == "sliced" else torch.cat([w[:1], w])[1:]
    if omit:
        problem.x[0] = float("inf")  # of weight 1
    problem = problem._replace(weight=w, omit=omit)
    assert backend.nonfinite(problem) == omit
    assert_same_run(backend, problem, engine, lambda: state_of(model))


@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_criteria(name, reduction, dtype, backend):
    case = CASES[name]
    x, y = data(case, 203, dtype)
    x = x.abs() if case.positive else x
    w = samples(203, dtype)[2]
    x[w == 0] = y[w == 0] = float("nan")
    coef = torch.linspace(0.5, 1.5, 3, dtype=dtype)
    problem = problem_of(case, reduction, coef, x, y)
    rule = tuple(o and o._replace(lr=1e-5 if reduction == "sum" else 1e-3) for o in problem.rule)
    model = model_of(dtype)
    assert_same_run(
        backend, problem._replace(weight=w, rule=rule), "stream", lambda: state_of(model)
    )


@pytest.mark.parametrize("engine", ["moments", "closed_form"])
def test_a_pilot_whose_samples_have_no_weight(engine, backend):
    model, problem = make(2, 5003, torch.float64, low=1e6, high=1e6 + 1)
    w = (torch.arange(5003) % 4 == 1).double()
    problem = problem._replace(weight=w, model=replace(problem.model, shift=1e6))
    assert_same_run(backend, problem, engine, lambda: state_of(model))


@pytest.mark.parametrize("name", ["cpu", "device"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradient(reduction, name, dtype, backend):
    model, problem = weighted(3, 1003, dtype, reduction)
    params = model.coefficients.detach().clone()
    on = backend if name == "device" else REGISTRY["cpu"]
    loss, grad = on.loss_and_gradient(problem, params)
    exact, truth = REFERENCE.loss_and_gradient(problem, params)
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    assert_relative(loss, exact, rtol)
    np.testing.assert_allclose(grad, truth, atol=rtol * np.abs(truth).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_fit(engine, backend):
    x, y, w = samples(301)
    found = []
    for on in (backend.name, "cpu"):
        model = model_of(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        result = pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=30, engine=engine,
                        backend=on, sample_weight=w, mask=w != 0, sigma=w + 1)  # fmt: skip
        assert result.backend == on
        found.append([*model.coefficients.tolist(), result.loss])
    assert_relative(*found, 1e-9)
