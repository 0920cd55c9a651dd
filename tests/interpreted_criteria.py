"""Every criterion of the Triton backend on its interpreter; tests/test_triton.py has this run."""

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import criteria
from polyfuse.backends import REGISTRY, launch
from polyfuse.backends.device import DeviceMap, device_rule
from polyfuse.backends.tables import nothing, tables
from polyfuse.problem import Schedule, State
from polyfuse.rules import SgdOptions

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, Quadratic, data
from .each_sample import each_sample
from .test_criteria import EXTREMES, by_sample, problem_of, value_and_gradient
from .tolerance import assert_like_torch, assert_relative

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)
TRITON, CPU = REGISTRY["triton"], REGISTRY["cpu"]
MOMENTUM = SgdOptions(1e-3, 0.9, 0.0, 0.1, True, False)
LARGEST = [1e300, -1e300, float("inf"), -float("inf")]


def start_of(case, degree, dtype):
    coef = torch.randn(degree + 1, generator=torch.Generator().manual_seed(1)).to(dtype)
    if case.positive:
        coef[0] = coef.abs().sum() + 0.1
    return coef


def assert_same(found, truth):
    """Of the same formulas, whose sums are added in another order."""
    truth = np.asarray(truth)
    np.testing.assert_allclose(found, truth, rtol=1e-12, atol=1e-12 * np.abs(truth).max())


@pytest.mark.parametrize(("degree", "n"), [(2, 1), (0, 9), (2, 1003)])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_one_epoch(name, reduction, degree, n, dtype):
    case = CASES[name]
    coef = start_of(case, degree, dtype)
    problem = problem_of(case, reduction, coef, *data(case, n, dtype))
    assert TRITON.refuse(problem) is None
    loss, grad = value_and_gradient(TRITON, problem, coef)
    exact, truth = value_and_gradient(CPU, problem, coef)
    assert_same(loss, exact)
    assert_same(grad, truth)


@pytest.mark.parametrize("name", CASES)
def test_several_epochs(name, dtype):
    case = CASES[name]
    coef = start_of(case, 2, dtype)
    problem = problem_of(case, case.reductions[0], coef, *data(case, 9, dtype))
    problem = problem._replace(rule=(MOMENTUM,) * 3)
    found, truth = (State.of(coef.double().numpy().copy()) for _ in range(2))
    mine = TRITON.descend(problem, "stream", None, Schedule(2, 5, 3), found)
    exact = CPU.descend(problem, "stream", None, Schedule(2, 5, 3), truth)
    for of in ("params", "momentum", "grad"):
        assert_same(getattr(found, of), getattr(truth, of))
    assert_same(mine.recorded, exact.recorded)
    assert_same([mine.loss, mine.previous], [exact.loss, exact.previous])


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
def test_fit_of_rows_and_samples_left_out(reduction):
    case, found = CASES["kl"], []
    x, y = (t.reshape(6, 5) for t in data(case, 30, torch.float64))
    y[2, 3] = torch.nan
    for backend in ("triton", "cpu"):
        model = Quadratic(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        criterion = case.make(torch.nn, torch.float64, reduction)
        result = pf.fit(
            model, criterion, optimizer, x, y, epochs=5, nan_policy="omit", backend=backend
        )
        assert (result.backend, result.engine) == (backend, "stream")
        found.append(model.c.detach())
    assert_same(*found)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("variance", [0.3, 0.0])
def test_gaussian(variance, full, dtype):
    coef = start_of(CASES["l1"], 2, dtype)
    x, y = data(CASES["l1"], 9, dtype)
    options = (("var", variance), ("full", full), ("eps", 1e-6))
    problem = problem_of(CASES["l1"], "mean", coef, x, y)
    problem = problem._replace(criterion=criteria.criterion_of(criteria.GAUSSIAN, options))
    loss, grad = value_and_gradient(TRITON, problem, coef)
    plain = coef.double().requires_grad_()
    prediction = sum(c * x.double() ** k for k, c in enumerate(plain))
    exact = torch.nn.GaussianNLLLoss(full=full)(prediction, y.double(), variance)
    exact.backward()
    assert_same(loss, exact.item())
    assert_same(grad, plain.grad)


@pytest.mark.parametrize("omit", [False, True])
@pytest.mark.parametrize("name", ["poisson-rate", "soft_margin", "kl-log"])
def test_what_does_not_count_may_be_undefined(name, omit):
    """Places of a tile without a sample lie at 0, where the loss would be nan or inf here."""
    x = torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, float("inf")], dtype=torch.float64)
    coef = [-1e3, 2e3]
    kept = slice(None) if omit else slice(2)
    problem = problem_of(CASES[name], "sum", coef, x[kept], y[kept])._replace(omit=omit)
    loss, grad = value_and_gradient(TRITON, problem, coef)
    values, slopes = by_sample(CASES[name], coef[0] + coef[1] * x[:2], y[:2])
    assert_relative(loss, values.sum(), 1e-14)
    assert_relative(grad, [slopes.sum(), (slopes * x[:2]).sum()], 1e-14)


@pytest.mark.parametrize("name", CASES)
def test_extreme_samples_give_what_torch_gives(name):
    targets = torch.tensor([*EXTREMES, 2.0, 7.0, 1.5, 0.5], dtype=torch.float64)
    predictions = torch.tensor([*EXTREMES, *LARGEST], dtype=torch.float64)
    target, prediction = torch.cartesian_prod(targets, predictions).T.contiguous()
    criterion, _ = criteria.of_module(CASES[name].make(torch.nn, torch.float64), target)
    value, slope = torch.empty_like(target), torch.empty_like(target)
    told = launch.criterion_arguments(criterion)
    launch.launch(each_sample, 1, 1, prediction, target, value, slope, N=len(target), **told)
    values, slopes = by_sample(CASES[name], prediction, target)
    np.testing.assert_allclose(value, values, rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(slope, slopes, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize(
    ("name", "reduction"), [("huber", "mean"), ("bce-weighted", "sum"), ("kl", "batchmean")]
)
def test_step(name, reduction, dtype):
    case = CASES[name]
    x, y = (t.reshape(3, 3) for t in data(case, 9, dtype))
    coef = start_of(case, 2, dtype)
    problem = problem_of(case, reduction, coef, x, y)
    tensors = problem.model.tensors
    with torch.no_grad():
        tensors[0].copy_(coef)
    plain = coef.clone().requires_grad_()
    optimizer = torch.optim.SGD([plain], lr=1e-3, weight_decay=0.1)
    loss = case.make(torch.nn, dtype, reduction)(sum(c * x**k for k, c in enumerate(plain)), y)
    loss.backward()
    optimizer.step()
    cpu = torch.device("cpu")
    grads, spares = ([torch.zeros_like(t) for t in tensors] for _ in range(2))
    table = tables(problem.model, tensors, grads, nothing(1), spares)
    state = TRITON.step(
        DeviceMap.of(problem.model, cpu),
        device_rule((SgdOptions(1e-3, 0.0, 0.0, 0.1, False, False),) * 3, cpu),
        table, x.reshape(-1), y.reshape(-1), problem.model, problem.reduction == "mean", None,
        problem.criterion.over_rows_of(x),
    )  # fmt: skip
    assert_like_torch(state[7 * 3 + 2].to(dtype), loss.detach())
    assert_like_torch(grads[0], plain.grad)
    assert_like_torch(spares[0], plain.detach())
