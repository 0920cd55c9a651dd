"""Kernels and fits of every criterion against torch's own in float64."""

import itertools
import os
import subprocess
import sys

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse.backends import REGISTRY
from polyfuse.criteria import KINDS, of_module
from polyfuse.fused import fused
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import SgdOptions

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, Quadratic, data, loop
from .tolerance import assert_close, assert_relative

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)
CPU, REFERENCE = REGISTRY["cpu"], REGISTRY["reference"]
SINGLE = 69_632  # samples, all of which are computed in float32 where they are float32
EXTREMES = [0.0, 1.0, -1.0, 0.3, -0.3, 1000.0, -1000.0, 40.0, -740.0, 5e-324, -709.9, float("nan")]


def problem_of(case, reduction, coef, x, y):
    """Of a polynomial with these coefficients."""
    model = pf.nn.Polynomial(len(coef) - 1, dtype=x.dtype)
    traced = fused(model, x.dtype, x.device).traced
    criterion, mean = of_module(case.make(torch.nn, x.dtype, reduction), y)
    rule = (SgdOptions(0.0, 0.0, 0.0, 0.0, False, False),) * len(coef)
    return Problem(traced, "mean" if mean else "sum", rule, x, y, criterion=criterion)


def value_and_gradient(backend, problem, coef):
    state = State.of(torch.as_tensor(coef, dtype=torch.float64).numpy().copy())
    trace = backend.descend(problem, "stream", None, Schedule(0, 1, 1), state)
    return trace.recorded[0], state.grad


def by_sample(case, prediction, y):
    """Torch's values and slopes."""
    p = prediction.detach().clone().requires_grad_()
    values = case.make(torch.nn, p.dtype, "none")(p, y)
    (slopes,) = torch.autograd.grad(values.sum(), p)
    return values.detach(), slopes


@pytest.mark.parametrize(
    ("degree", "n"),
    [*itertools.product([0, 1, 2, 3, 4, 5, 9], [1, 9, 1000]), (2, 100_003), (9, 100_003)],
)
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_value_and_gradient(name, reduction, degree, n, dtype):
    case = CASES[name]
    x, y = data(case, n, dtype)
    coef = torch.randn(degree + 1, generator=torch.Generator().manual_seed(1)).to(dtype)
    coef[0] = coef.abs().sum() + 0.1 if case.positive else coef[0]
    loss, grad = value_and_gradient(CPU, problem_of(case, reduction, coef, x, y), coef.double())

    v = torch.stack([x.double() ** k for k in range(degree + 1)], dim=1)
    values, slopes = by_sample(case, v @ coef.double(), y.double())
    long = v.numpy().astype(np.longdouble)
    weight = 1.0 if reduction == "sum" else 1 / n
    truth = (long.T @ slopes.numpy() * weight).astype(np.float64)
    exact = np.float64(values.numpy().astype(np.longdouble).sum() * weight)

    plain = coef.clone().requires_grad_()
    torchs = case.make(torch.nn, dtype, reduction)(v.to(dtype) @ plain, y)
    torchs.backward()
    magnitude = v.abs() @ coef.double().abs() + y.double().abs() + 1
    scale = v.abs().T @ (magnitude * (1 + slopes.abs())) * weight
    assert_close(torch.tensor(grad), plain.grad, truth, scale)
    assert_close(loss, torchs.detach(), exact, (magnitude * (1 + values.abs())).sum() * weight)


@pytest.mark.parametrize(
    ("copies", "dtype"),
    [(1, torch.float64), (16, torch.float64), (SINGLE, torch.float32)],
    ids=["few", "dense", "single"],
)
@pytest.mark.parametrize("name", CASES)
def test_extreme_samples_give_what_torch_gives(name, copies, dtype):
    case = CASES[name]
    tolerance = {"rtol": 1e-14, "atol": 1e-300}
    largest = [1e300, -1e300, float("inf"), -float("inf")]
    if dtype == torch.float32:
        tolerance = {"rtol": 4e-6, "atol": 1e-37}  # of 32 roundings in a sum
        largest = [84.0, -84.0, 89.5, -89.5, 1e30, -1e30, *largest[2:]]
    for target in [*EXTREMES, 2.0, 7.0]:
        for prediction in [*EXTREMES, *largest]:
            prediction = torch.tensor(prediction, dtype=dtype).item()
            y = torch.full((copies,), target, dtype=dtype)
            problem = problem_of(case, "sum", [prediction], torch.zeros_like(y), y)
            loss, (slope,) = value_and_gradient(CPU, problem, [prediction])
            values, slopes = by_sample(case, torch.full((1,), prediction, dtype=dtype), y[:1])
            at = f"prediction {prediction}, target {target}"
            found = np.array([loss, slope]) / copies
            expected = [values.item(), slopes.item()]
            np.testing.assert_allclose(found, expected, **tolerance, err_msg=at)


def elementary(name, points, dtype):
    """exp, log or log(1 + exp(x)), from criteria that are no more than these of one sample."""
    case = {"exp": "kl-log", "log": "kl", "log1p": "soft_margin"}[name]
    found = []
    for point in points:
        nothing = {"exp": -np.inf, "log": 0.0, "log1p": np.inf if point > 0 else -np.inf}[name]
        y = torch.full((SINGLE if dtype == torch.float32 else 16,), nothing, dtype=dtype)
        y[5] = -1.0 if name == "log1p" else point
        problem = problem_of(CASES[case], "sum", [0.0], torch.zeros_like(y), y)
        loss, (slope,) = value_and_gradient(CPU, problem, [point if name == "log1p" else 0.0])
        found.append(-slope if name == "exp" else loss)
    return np.array(found)


@pytest.mark.parametrize("name", ["exp", "log", "log1p"])
def test_elementary_functions_round_well(name, dtype):
    limits = np.finfo(str(dtype).removeprefix("torch."))
    low, high = np.log(float(limits.smallest_subnormal)), np.log(float(limits.max))
    generator = np.random.default_rng(0)
    points = generator.uniform(low, high * 0.99, 400)
    if name == "log":
        points = np.concatenate([np.exp(points[:200] * 0.9), generator.uniform(0.5, 2.0, 200)])
        ends = [limits.smallest_subnormal, limits.tiny / 4, limits.tiny, 1.0, limits.max / 1e4]
        points = np.append(points, np.array(ends, dtype=np.float64))
    else:
        points = np.concatenate([points, generator.uniform(-1, 1, 200), [low, high * 0.995]])
    points = points.astype(limits.dtype)
    found, exact = elementary(name, points.tolist(), dtype), points.astype(np.longdouble)
    if name == "log":
        truth = exact * np.log(exact)
    else:
        truth = np.exp(exact) if name == "exp" else np.log1p(np.exp(exact))
    error = np.abs(found - truth) / np.spacing(np.abs(truth.astype(limits.dtype)))
    assert error.max() <= (2 if name == "exp" else 3)  # the others round once more


def test_every_instruction_set_agrees():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch\nfrom polyfuse import _C\nfrom tests.criteria import *\n"
        "import polyfuse as pf\n"
        "for case in CASES.values():\n"
        "    x, y = data(case, 5001, torch.float64)\n"
        "    m = Quadratic(torch.float64)\n"
        "    o = torch.optim.SGD(m.parameters(), lr=0.01)\n"
        "    pf.fit(m, case.make(torch.nn, torch.float64), o, x, y, epochs=20)\n"
        "    print(*m.c.tolist())\n"
    )
    numbers = []
    for name in ("baseline", "avx2", ""):
        env = os.environ | {"POLYFUSE_ISA": name}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        numbers.append([float(v) for v in run.stdout.split()])
    assert_relative(numbers[0], numbers[2], 1e-9)
    assert_relative(numbers[1], numbers[2], 1e-9)


@pytest.mark.parametrize("name", ["bce", "kl", "huber"])
def test_same_bits_for_any_number_of_threads(name, dtype, threads):
    x, y = data(CASES[name], 200_003, dtype)
    problem, seen = problem_of(CASES[name], "sum", [0.1, 0.2], x, y), set()
    for count in (1, 2, 3, 1):
        threads(count)
        loss, grad = value_and_gradient(CPU, problem, [0.1, 0.2])
        seen.add((float(loss), grad.tobytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_fit_is_the_loop(name, reduction, backend, dtype):
    case = CASES[name]
    x, y = data(case, 30, dtype)
    lr = 1e-4 if reduction == "sum" else 3e-3
    epochs = 250 if backend == "cpu" else 40
    truth = Quadratic(torch.float64)
    options = {"lr": lr, "momentum": 0.5, "weight_decay": 0.01}
    losses = loop(
        truth, case.make(torch.nn, torch.float64, reduction),
        torch.optim.SGD(truth.parameters(), **options), x.double(), y.double(), epochs,
    )  # fmt: skip
    model = Quadratic(dtype)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    criterion = case.make(torch.nn, dtype, reduction)
    result = pf.fit(
        model, criterion, optimizer, x, y, epochs=epochs, record_every=1, backend=backend
    )  # fmt: skip
    rtol = 1e-9 if dtype == torch.float64 else 2e-6
    assert result.engine == "stream" and (backend == "reference" or result.launches == 1)
    np.testing.assert_allclose(result.history[:-1], losses, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.c.detach(), truth.c.detach(), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.c.grad, truth.c.grad, rtol=rtol * 10, atol=rtol * 10)


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_and_samples_left_out(reduction, backend):
    case = CASES["kl"]
    x, y = (t.reshape(6, 5) for t in data(case, 30, torch.float64))
    y[2, 3] = torch.nan
    kept = torch.isfinite(y).double()
    criterion, found = case.make(torch.nn, torch.float64, reduction), []
    for fit in (True, False):
        model = Quadratic(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        if fit:
            pf.fit(model, criterion, optimizer, x, y, epochs=5, nan_policy="omit", backend=backend)
        for _ in range(0 if fit else 5):
            values = torch.nn.functional.kl_div(model(x), y.nan_to_num(), reduction="none")
            loss = (values * kept).sum()
            loss = loss if reduction == "sum" else loss / kept.sum()
            loss = loss * 5 if reduction == "batchmean" else loss  # samples in a row
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(model.c.detach())
    assert_relative(found[0], found[1], 1e-12)


@pytest.mark.parametrize("name", ["poisson-rate", "soft_margin", "kl-log"])
def test_what_does_not_count_may_be_undefined(name):
    """A sample that fills up eight is not one: its loss would be nan or inf here."""
    case, x = CASES[name], torch.tensor([1.0, 2.0, float("inf")], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    coef = [-1e3, 2e3]  # the prediction at 0 is -1000
    loss, grad = value_and_gradient(CPU, problem_of(case, "sum", coef, x[:2], y[:2]), coef)
    values, slopes = by_sample(case, coef[0] + coef[1] * x[:2], y[:2])
    assert_relative(loss, values.sum(), 1e-14)
    assert_relative(grad, [slopes.sum(), (slopes * x[:2]).sum()], 1e-14)


def test_engines_that_need_squared_error_are_refused():
    x, y = data(CASES["l1"], 30, torch.float64)
    model = Quadratic(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for engine in ("moments", "closed_form"):
        with pytest.raises(ValueError, match=f"engine: {engine} cannot serve this case: L1Loss"):
            pf.fit(model, torch.nn.L1Loss(), optimizer, x, y, epochs=5, engine=engine)
    text = pf.explain(model, torch.nn.L1Loss(), optimizer, x, y)
    assert "criterion: L1Loss, fused" in text and "engine stream: chosen by auto" in text
    assert "engine moments: no: L1Loss" in text


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (torch.nn.NLLLoss(), "NLLLoss is not fused; fused: MSELoss, L1Loss, "),
        (torch.nn.L1Loss(reduction="none"), "reduction 'none' gives no scalar loss"),
        (torch.nn.GaussianNLLLoss(), "its variance comes with every call of it; here with sigma="),
        (torch.nn.BCEWithLogitsLoss(weight=torch.ones(30)), "weight: expected one element"),
        (torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)), "pos_weight: expected the dtype"),
        (torch.nn.PoissonNLLLoss(full=1), "full: expected a bool, got 1"),
        (torch.nn.SmoothL1Loss(beta=-1.0), "beta, delta: expected a positive number"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_fit_and_fuse_refuse(criterion, message):
    x, y = data(CASES["bce"], 30, torch.float64)
    model = Quadratic(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for call in (
        lambda: pf.fit(model, criterion, optimizer, x, y, epochs=3),
        lambda: pf.fuse(model, criterion, optimizer)(x, y),
    ):
        with pytest.raises(ValueError, match=f"criterion: .*{message}"):
            call()
    assert model.c.grad is None


def test_each_kind_is_in_the_cases():
    assert {k.name for k in KINDS} - {c.module for c in CASES.values()} == {
        "MSELoss", "GaussianNLLLoss"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("poisson", -3.0, "counts >= 0 for PoissonNLLLoss, got -3"),
        ("bce", 1.5, "targets from 0 to 1 for BCEWithLogitsLoss, got 1.5"),
        ("soft_margin", 0.5, "targets of 1 and -1 for SoftMarginLoss, got 0.5"),
        ("kl", -0.25, "probabilities >= 0 for KLDivLoss, got -0.25"),
    ],
)
def test_targets_outside_the_domain(name, target, message):
    case = CASES[name]
    x, y = data(case, 20, torch.float64)
    y[7] = target
    model = pf.nn.Polynomial(1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    criterion = case.make(torch.nn, torch.float64)
    step = pf.fuse(model, criterion, optimizer)
    for call in (lambda: pf.fit(model, criterion, optimizer, x, y, epochs=2), lambda: step(x, y)):
        with pytest.raises(ValueError, match=f"y: expected {message}"):
            call()
    assert not model.coefficients.any() and model.coefficients.grad is None
    pf.fit(model, criterion, optimizer, x, y, epochs=2, mask=torch.arange(20) != 7)
    assert model.coefficients.all()


@pytest.mark.parametrize("n", [1, 9, 129])
@pytest.mark.parametrize("scale", [3e-3, 0.6, 50.0])
@pytest.mark.parametrize("options", [{}, {"full": True, "reduction": "sum", "eps": 0.1}], ids=str)
def test_gaussian_of_the_variances_in_sigma(options, scale, n, dtype):
    x, y = data(CASES["l1"], n, dtype)
    sigma = (scale * (0.5 + torch.rand(n, generator=torch.Generator().manual_seed(2)))).to(dtype)
    w = torch.linspace(0, 2, n).to(dtype) if n > 1 else torch.ones(1, dtype=dtype)
    criterion, none = (torch.nn.GaussianNLLLoss(**(options | {"reduction": r}))
                       for r in (options.get("reduction", "mean"), "none"))  # fmt: skip
    lr = 1e-3 * min(scale**2, 1.0) / (n if criterion.reduction == "sum" else 1)
    for more in ({}, {"sample_weight": w}):
        fitted, stepped, looped = (Quadratic(torch.float64).to(dtype) for _ in range(3))
        optimizers = [torch.optim.SGD(m.parameters(), lr=lr) for m in (fitted, stepped, looped)]
        losses = []
        for _ in range(5):
            values = none(looped(x), y, sigma**2)
            weights = more.get("sample_weight", torch.ones_like(x))
            total = weights.sum() if criterion.reduction == "mean" else 1.0
            loss = (weights * values).sum() / total
            optimizers[2].zero_grad()
            loss.backward()
            optimizers[2].step()
            losses.append(loss.item())
        result = pf.fit(fitted, criterion, optimizers[0], x, y, epochs=5, record_every=1,
                        sigma=sigma, **more)  # fmt: skip
        step = pf.fuse(stepped, criterion, optimizers[1])
        found = [step(x, y, sigma=sigma, **more).item() for _ in range(5)]
        rtol = 1e-4 if dtype == torch.float32 else 1e-9
        np.testing.assert_allclose(result.history[:5], losses, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(found, losses, rtol=rtol, atol=rtol)
        for model in (fitted, stepped):
            torch.testing.assert_close(model.c, looped.c, rtol=rtol, atol=rtol)


def test_gaussian_leaves_out_samples_and_knows_its_likelihood():
    x, y = data(CASES["l1"], 40, torch.float64)
    sigma = torch.full_like(x, 0.7)
    model, whole = Quadratic(torch.float64), Quadratic(torch.float64)
    criterion = torch.nn.GaussianNLLLoss(full=True)
    y[3] = torch.nan
    keep = y.isfinite()
    results = [
        pf.fit(m, criterion, torch.optim.SGD(m.parameters(), lr=0.1), x[at], y[at], epochs=500,
               sigma=sigma[at], nan_policy="omit")
        for m, at in ((model, slice(None)), (whole, keep))
    ]  # fmt: skip
    torch.testing.assert_close(model.c, whole.c)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-12)
    of_each = torch.distributions.Normal(model(x[keep]), 0.7).log_prob(y[keep])
    assert results[0].statistics.log_likelihood == pytest.approx(of_each.sum().item())
