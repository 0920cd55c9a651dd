"""The device backends on a GPU, against the reference on the CPU (benchmarks/gpu/check.sh)."""

import os

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY
from polyfuse.criteria import of_module
from polyfuse.fused import fused
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import SgdOptions

from ..criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, data
from ..test_optimizers import CASES as OPTIMIZERS
from ..test_optimizers import assert_same, numbers, side
from ..test_surface import make as make_surface
from ..tolerance import assert_close, assert_like_torch, assert_relative

DEVICE = torch.device(os.environ.get("POLYFUSE_TEST_DEVICE", "cuda:0"))
REFERENCE = REGISTRY["reference"]
OPTIONS = [
    {"lr": 0.05},
    {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    {"lr": 0.05, "momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 1e-3, "maximize": True, "weight_decay": 0.1},
]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"
    ),
]


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    state = pf.backends()[request.param]
    if state != "available":
        pytest.skip(state)
    return REGISTRY[request.param]


def make(degree, n, dtype, options=None, mean=True, seed=0):
    """A problem on the device and the same on the CPU, with a start for both."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    start = torch.randn(degree + 1, generator=generator, dtype=torch.float64).numpy()
    model = pf.nn.Polynomial(degree, dtype=dtype)
    traced = fused(model, dtype, torch.device("cpu")).traced
    plain = torch.optim.SGD([torch.zeros(1)], **(options or {"lr": 0.0})).defaults
    rule = (SgdOptions(*(plain[name] for name in SgdOptions._fields)),) * (degree + 1)
    x, y = x.to(dtype), y.to(dtype)
    reduction = "mean" if mean else "sum"
    near = Problem(traced, reduction, rule, x, y)
    far = Problem(traced, reduction, rule, x.to(DEVICE), y.to(DEVICE))
    return far, near, start


def on_device(model, criterion, optimizer, xs, ys, device):
    """The same there; nothing has been optimized yet."""
    for p in model.parameters():
        p.data = p.data.to(device)
    return model, criterion, optimizer, xs.to(device), ys.to(device)


def state_of(start):
    return State.of(start.copy())


@pytest.mark.parametrize("n", [1, 2, 9, 1003, 100_003])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, 7, 12, 32])
def test_verbs(backend, degree, n, dtype):
    far, near, coef = make(degree, n, dtype)
    found = backend.evaluate(far.model, coef, far.x)
    truth = REFERENCE.evaluate(near.model, coef, near.x.double())
    plain = sum(float(c) * near.x**k for k, c in enumerate(coef))
    assert found.dtype == dtype and found.device == far.x.device
    assert_close(found.cpu(), plain, truth, np.abs(coef).sum())
    g = torch.as_tensor(backend.project(far.model, far.x, far.y)).cpu().double()
    scale = float(near.y.double().abs().sum())
    exact = REFERENCE.project(near.model, near.x, near.y)
    assert_close(g, torch.as_tensor(exact), exact, scale)
    assert int(backend.nonfinite(far)) == 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
@pytest.mark.parametrize("n", [1, 9, 5003, 20_003])
@pytest.mark.parametrize("degree", [0, 2, 5])
def test_runs(backend, degree, n, engine, options, dtype):
    far, near, start = make(degree, n, dtype, options)
    found, truth = state_of(start), state_of(start)
    schedule = Schedule(0, 25, 10)
    mine = backend.descend(far, engine, None, schedule, found)
    exact = REFERENCE.descend(near, "stream", None, schedule, truth)
    assert mine.epochs == exact.epochs == 25
    for name in ("params", "momentum", "grad"):
        bound = 1e-9 * max(1.0, np.abs(getattr(truth, name)).max())
        assert np.abs(getattr(found, name) - getattr(truth, name)).max() <= bound, name
    assert_relative(mine.recorded, exact.recorded, 1e-9)
    assert_relative(mine.loss, exact.loss, 1e-9)


@pytest.mark.filterwarnings(KL_MEAN_WARNS)
@pytest.mark.parametrize("n", [9, 20_003])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_criteria(backend, name, reduction, n, dtype):
    case = CASES[name]
    x, y = data(case, n, dtype)
    criterion, mean = of_module(case.make(torch.nn, dtype, reduction), y)
    far, near, start = make(2, 9, dtype, {"lr": 1e-3 if mean else 1e-3 / n}, mean)
    start[0] = abs(start).sum() + 0.1  # so that predictions are positive
    far = far._replace(x=x.to(DEVICE), y=y.to(DEVICE), criterion=criterion)
    near = near._replace(x=x, y=y, criterion=criterion)
    found, truth = state_of(start), state_of(start)
    a = backend.descend(far, "stream", None, Schedule(0, 20, 1), found)
    b = REFERENCE.descend(near, "stream", None, Schedule(0, 20, 1), truth)
    assert_relative(a.recorded, b.recorded, 1e-9)
    assert_relative(found.params, truth.params, 1e-9)


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_optimizers(backend, name, options, engine, dtype):
    """`fit` from nothing, and from where a run has ended, beside the loop of torch."""
    sides = [side(torch.nn, torch.optim, name, dtype, options) for _ in range(2)]
    sides = [on_device(*s, DEVICE) for s in sides]
    (*found, xs, ys), truth = sides
    for epochs in (4, 3):
        result = pf.fit(*found, xs, ys, epochs=epochs, engine=engine, backend=backend.name,
                        nan_policy="propagate")  # fmt: skip
        assert (result.backend, result.launches) == (backend.name, 1)
        workload.loop(*truth, epochs)
        assert_same(*(numbers(s[0], s[2]) for s in sides))


@pytest.mark.parametrize("n", [9, 1003, 2_000_003])
@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
def test_weighted_runs(backend, engine, n, dtype):
    assert_weighted_run(backend, engine, n, dtype)


@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
def test_small_weighted_runs_of_several_blocks(backend, engine, dtype):
    assert_weighted_run(backend, engine, 12_001, dtype)


def assert_weighted_run(backend, engine, n, dtype):
    far, near, start = make(2, n, dtype, {"lr": 0.05, "momentum": 0.5})
    w = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 - 1
    w = w.clamp(min=0).index_fill(0, torch.tensor([0]), 1.0).to(dtype)
    near.x[w == 0] = float("nan")
    far = far._replace(x=near.x.to(DEVICE), weight=w.to(DEVICE))
    near = near._replace(weight=w)
    found, truth = state_of(start), state_of(start)
    mine = backend.descend(far, engine, None, Schedule(0, 9, 2), found)
    exact = REFERENCE.descend(near, "stream", None, Schedule(0, 9, 2), truth)
    assert_relative(found.params, truth.params, 1e-9)
    assert_relative(mine.recorded, exact.recorded, 1e-9)
    assert backend.nonfinite(far) == 0


@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_small_schedules(backend, engine):
    xs, ys = (t.to(DEVICE) for t in workload.data(torch.float64))
    sides = [workload.make_model(torch.nn, torch.float64).to(DEVICE) for _ in range(2)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-5, momentum=0.5) for m in sides]
    mine, plain = (torch.optim.lr_scheduler.ExponentialLR(o, 0.97) for o in optimizers)
    result = pf.fit(sides[0], torch.nn.MSELoss(), optimizers[0], xs, ys, epochs=40, engine=engine,
                    backend=backend.name, scheduler=mine, nan_policy="propagate")  # fmt: skip
    assert result.launches == 1
    for _ in range(40):
        workload.loop(sides[1], torch.nn.MSELoss(), optimizers[1], xs, ys, 1)
        plain.step()
    for p, q in zip(*(m.parameters() for m in sides), strict=True):
        assert_relative(p.detach().cpu(), q.detach().cpu(), 1e-9)


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize("n", [9, 20_003])
def test_small_runs_within_bounds(backend, engine, n, dtype):
    far, near, start = make(2, n, dtype, {"lr": 0.05, "momentum": 0.5})
    bounds = np.array([-np.inf, -0.1, 0.2]), np.array([0.0, 0.1, np.inf])
    start = start.clip(*bounds)
    found, truth = state_of(start), state_of(start)
    mine = backend.descend(far._replace(bounds=bounds), engine, None, Schedule(0, 40, 7), found)
    near = near._replace(bounds=bounds)
    exact = REFERENCE.descend(near, "stream", None, Schedule(0, 40, 7), truth)
    assert_relative(found.params, truth.params, 1e-9)
    assert_relative(mine.recorded, exact.recorded, 1e-9)


@pytest.mark.parametrize("engine", ["moments", "closed_form"])
def test_small_matrices_in_shared_memory(backend, engine):
    far, near, start = make(13, 1003, torch.float64, {"lr": 0.01})
    found, truth = state_of(start), state_of(start)
    backend.descend(far, engine, None, Schedule(0, 25), found)
    REFERENCE.descend(near, "stream", None, Schedule(0, 25), truth)
    assert_relative(found.params, truth.params, 1e-9)


# 600,000: a block's share of about 36 KiB, and what kernels declare
@pytest.mark.parametrize("n", [70_001, 600_000, 2_000_003])
def test_small_and_large_stream_runs_agree_with_moments(backend, n):
    far, _, start = make(2, n, torch.float32, {"lr": 0.05})
    stream, moments = state_of(start), state_of(start)
    schedule = Schedule(0, 50, 7)
    a = backend.descend(far, "stream", None, schedule, stream)
    b = backend.descend(far, "moments", None, schedule, moments)
    assert_relative(stream.params, moments.params, 1e-9)
    assert_relative(a.recorded, b.recorded, 1e-9)


@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
@pytest.mark.parametrize("n", [9, 100_003])
def test_the_same_bits_over_100_runs(backend, engine, n):
    far, _, start = make(3, n, torch.float32, {"lr": 0.05, "momentum": 0.9})
    seen = set()
    for _ in range(100):
        state = state_of(start)
        backend.descend(far, engine, None, Schedule(0, 6), state)
        seen.add(state.params.tobytes() + state.grad.tobytes() + state.momentum.tobytes())
    assert len(seen) == 1


def test_on_another_stream(backend):
    far, near, start = make(2, 100_003, torch.float32, {"lr": 0.05})
    truth = state_of(start)
    REFERENCE.descend(near, "stream", None, Schedule(0, 5), truth)
    side = torch.cuda.Stream()
    for _ in range(20):
        found = state_of(start)
        with torch.cuda.stream(side):
            x = far.x * 1.0
            problem = Problem(far.model, "mean", far.rule, x, far.y)
            backend.descend(problem, "stream", None, Schedule(0, 5), found)
        assert_relative(found.params, truth.params, 1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_small_fit_and_fuse(backend, momentum, dtype):
    xs, ys = (t.to(DEVICE) for t in workload.data(dtype))
    found, truth = (workload.make_model(torch.nn, dtype).to(DEVICE) for _ in range(2))
    options = {"lr": 1e-5, "momentum": momentum}
    mine = torch.optim.SGD(found.parameters(), **options)
    plain = torch.optim.SGD(truth.parameters(), **options)
    result = pf.fit(found, torch.nn.MSELoss(), mine, xs, ys, epochs=20, backend=backend.name)
    assert result.backend == backend.name
    workload.loop(truth, torch.nn.MSELoss(), plain, xs, ys, 20)
    step = pf.fuse(found, torch.nn.MSELoss(), mine)
    for _ in range(3):
        loss = step(xs, ys)
        expected = workload.loop(truth, torch.nn.MSELoss(), plain, xs, ys, 1)
        assert_relative(loss.cpu(), expected.detach().cpu(), 1e-5)
    for p, q in zip(found.parameters(), truth.parameters(), strict=True):
        assert_like_torch(p.cpu(), q.cpu())


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
def test_solutions_of_columns(weighted):
    x, y, near, far = make_surface("quartic", 100_003)
    w = torch.linspace(0, 2, len(y), dtype=torch.float64) if weighted else None
    truth = pf.solve(near, x, y, weight=w)
    far = far.to(DEVICE)
    found = pf.solve(
        far, x.to(DEVICE), y.to(DEVICE), weight=None if w is None else w.to(DEVICE)
    )  # fmt: skip
    assert found.backend == ("cpu" if DEVICE.type == "cpu" else "reference")
    assert_relative(found.params, truth.params, 1e-13)
    assert_relative(found.statistics.r_squared, truth.statistics.r_squared, 1e-13)
    assert_relative(found.statistics.covariance, truth.statistics.covariance, 1e-12)


def fit_both(near, far, x, y, backend, epochs, criterion=None, weight=None, **options):
    """The model near on the CPU, its like on the device by this backend."""
    for model, on, device in ((near, "cpu", "cpu"), (far.to(DEVICE), backend.name, DEVICE)):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.5)
        xs, ys, w = (None if t is None else t.to(device) for t in (x, y, weight))
        found = pf.fit(
            model, criterion or torch.nn.MSELoss(), optimizer, xs, ys, epochs=epochs, backend=on,
            sample_weight=w, **options,
        )  # fmt: skip
    assert (found.backend, found.launches) == (backend.name, 1)
    assert_like_torch(far.coefficients.detach().cpu(), near.coefficients.detach())


@pytest.mark.parametrize("engine", ["closed_form", "moments", "stream"])
@pytest.mark.parametrize("n", [1, 129, 100_003])
@pytest.mark.parametrize("name", ["plane", "quartic", "domain"])
def test_runs_of_several_variables(backend, name, n, engine, dtype):
    x, y, near, far = make_surface(name, n, dtype)
    fit_both(near, far, x, y, backend, 5, engine=engine)


@pytest.mark.parametrize("terms", [7, 16, 31, 62])
def test_moments_of_many_columns(backend, terms):
    x = torch.rand(5000, terms, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    models = [
        pf.nn.Polynomial(1, variables=terms, intercept=False, dtype=torch.float64) for _ in range(2)
    ]
    fit_both(*models, x, torch.sin(x.sum(1)), backend, 50)
