"""The CUDA kernels of every criterion, run on the CPU, against those of the CPU."""

import polyfuse as pf
import pytest
import torch
from polyfuse.backends import REGISTRY
from polyfuse.backends.device import DeviceState
from polyfuse.criteria import GAUSSIAN, MSE, Criterion
from polyfuse.problem import Schedule, State
from polyfuse.rules import AdamOptions, SgdOptions

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, Quadratic, data
from .test_criteria import problem_of
from .test_cuda_kernels import step
from .tolerance import assert_relative

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)
SGD = SgdOptions(1e-3, 0.5, 0.0, 0.01, False, False)
ADAM = AdamOptions(1e-2, 0.9, 0.99, 1e-8, 0.0, False, False, False)
FACTORS = {
    "weighted mse": Criterion(MSE, factor=2.5),
    "gaussian": Criterion(GAUSSIAN, (("var", 0.3), ("full", True), ("eps", 1e-6))),
}


def assert_same_runs(problem, coef, emulated):
    def start():
        return State.of(coef.double().numpy().copy())

    for options, epochs in ((SGD, 1), (SGD, 20), (ADAM, 20)):
        problem = problem._replace(rule=(options,) * len(coef))
        found, truth = start(), start()
        schedule = Schedule(0, epochs, 1)
        report = emulated.descend(problem, "stream", None, schedule, found)
        expected = REGISTRY["cpu"].descend(problem, "stream", None, schedule, truth)
        assert_relative(report.recorded, expected.recorded, 1e-10)
        assert_relative(report.loss, expected.loss, 1e-10)
        for name in ("params", "grad", "kept"):
            assert_relative(getattr(found, name), getattr(truth, name), 1e-8)
        if epochs == 1:
            found = start()
            on_device = DeviceState(found, Schedule(0, 1), problem.x.device)
            step(emulated, problem, on_device.buffer)
            assert_relative(on_device.outcome()["loss"], expected.recorded[0], 1e-10)
            on_device.finish()
            assert_relative(found.params, truth.params, 1e-10)


def coefficients(degree, case, dtype):
    coef = torch.randn(degree + 1, generator=torch.Generator().manual_seed(1)).to(dtype)
    coef[0] = coef.abs().sum() + 0.1 if case.positive else coef[0]
    return coef


@pytest.mark.parametrize("n", [1, 9, 1003])
@pytest.mark.parametrize("degree", [0, 2, 5])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_runs_and_steps(name, reduction, degree, n, dtype, emulated):
    case = CASES[name]
    coef = coefficients(degree, case, dtype)
    problem = problem_of(case, reduction, coef, *data(case, n, dtype))
    assert_same_runs(problem, coef, emulated)


@pytest.mark.parametrize("degree", [0, 2, 5])
@pytest.mark.parametrize("criterion", FACTORS.values(), ids=FACTORS)
def test_criteria_with_numbers_of_their_own(criterion, degree, dtype, emulated):
    case = CASES["l1"]
    coef = coefficients(degree, case, dtype)
    problem = problem_of(case, "mean", coef, *data(case, 1003, dtype))
    assert_same_runs(problem._replace(criterion=criterion), coef, emulated)


@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_fit_of_rows_with_samples_left_out(name, reduction, emulated):
    case, fitted = CASES[name], []
    for backend in ("emulated", "cpu"):
        x, y = (t.reshape(6, 5) for t in data(case, 30, torch.float64))
        y[2, 3] = torch.nan
        model = Quadratic(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        criterion = case.make(torch.nn, torch.float64, reduction)
        result = pf.fit(
            model, criterion, optimizer, x, y, epochs=20, nan_policy="omit", backend=backend
        )
        assert (result.engine, result.backend) == ("stream", backend)
        fitted.append([*model.c.tolist(), *model.c.grad.tolist(), result.loss])
    assert_relative(*fitted, 1e-9)
