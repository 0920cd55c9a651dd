"""What only Triton's backend has, on its interpreter; tests/test_triton.py has this file run."""

import itertools

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY, geometry, launch, tuning
from polyfuse.backends.device import DeviceMap, device_rule
from polyfuse.backends.tables import nothing, tables
from polyfuse.fused import fused
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import SgdOptions

from .fake_device import take_for_a_device
from .test_kernels import make, state_of
from .test_optimizers import CASES as OPTIMIZERS
from .test_optimizers import numbers, side
from .tolerance import assert_like_torch, assert_relative

TRITON, REFERENCE = REGISTRY["triton"], REGISTRY["reference"]
ENGINES = ("stream", "moments", "closed_form")
MOMENTUM = SgdOptions(1e-3, 0.9, 0.0, 0.1, True, False)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that nobody has written holds nan."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        t = empty(*args, **kwargs)
        return t.fill_(float("nan")) if t.is_floating_point() else t

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(launch, "_workspaces", {})


class Scaled(torch.nn.Module):
    """Of x near 1.7e9, with a product of parameters, a constant and one parameter twice."""

    def __init__(self, affine):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
        self.affine = affine

    def forward(self, x):
        u = (x - 1.7e9) / 1000
        first = self.w[1] * 2 if self.affine else self.w[0] * self.w[1]
        return self.w[0] * u**2 + first * u + self.w[2] + self.w[0] + 3


def test_measuring_the_fastest_pass_changes_nothing(monkeypatch):
    model, problem = make(2, 1003, torch.float64)
    problem = problem._replace(rule=(MOMENTUM,) * 3)

    def descend():
        state = state_of(model)
        report = TRITON.descend(problem, "moments", None, Schedule(0, 9, 1), state)
        return [state.params, state.kept, state.grad, report.recorded]

    expected = descend()
    ran = measure_everything(monkeypatch)
    before = TRITON.launches()
    for found, truth in zip(descend(), expected, strict=True):
        assert_relative(found, truth, 1e-12)
    assert ran == [*tuning.OCCUPANCIES] and TRITON.launches() == before + 1


def measure_everything(monkeypatch):
    """Has every launch tried by every choice, of which the last is taken; gives those tried."""
    ran = []

    def fastest(x, kernel, choices, run):
        for choice in choices:
            run(choice)
            ran.append(choice)
        return choices[-1]

    monkeypatch.setattr(tuning, "fastest", fastest)
    monkeypatch.setattr(tuning, "LARGE", 0)
    monkeypatch.setattr(tuning, "LONG", 0)
    return ran


def test_measuring_the_fastest_step_changes_nothing(monkeypatch):
    take_for_a_device(monkeypatch, TRITON)
    ran = measure_everything(monkeypatch)
    options = {"lr": 1e-5, "momentum": 0.9}
    mine, truth = (side(torch.nn, torch.optim, "SGD", torch.float64, options) for _ in range(2))
    step = pf.fuse(*mine[:3])
    for _ in range(4):
        step(*mine[3:])
        workload.loop(*truth, 1)
        for found, expected in zip(*(numbers(s[0], s[2]).values() for s in (mine, truth)),
                                   strict=True):  # fmt: skip
            assert_like_torch(found, expected)
    assert ran == [*tuning.OCCUPANCIES] * 4


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(("name", "options"), [
    ("SGD", {"lr": 1e-5, "momentum": 0.9}), ("Adam", {"lr": 0.01}),
], ids=str)  # fmt: skip
def test_measuring_the_fastest_stream_run_changes_nothing(name, options, resident, monkeypatch):
    if resident:
        take_for_a_device(monkeypatch, TRITON)

    def run():
        fitted = side(torch.nn, torch.optim, name, torch.float64, options)
        for epochs in (7, 5):
            result = pf.fit(*fitted, epochs=epochs, engine="stream", record_every=2,
                            backend="triton", nan_policy="propagate")  # fmt: skip
            assert result.launches == 1
        return [*numbers(fitted[0], fitted[2]).values(), torch.tensor(result.history)]

    expected = run()
    ran = measure_everything(monkeypatch)
    for found, truth in zip(run(), expected, strict=True):
        assert_relative(found.detach(), truth.detach(), 1e-12)
    assert ran == [*geometry.shares(launch.machine(torch.device("cpu")))] * 2


def offset_problem(affine, reduction):
    x = torch.linspace(1.7e9 - 1000, 1.7e9 + 1000, 2 * 257, dtype=torch.float64)[::2]
    y = torch.sin((x - 1.7e9) / 500)
    model = Scaled(affine)
    traced = fused(model, torch.float64, torch.device("cpu")).traced
    rule = (MOMENTUM, None, SgdOptions(2e-3, 0.0, 0.0, 0.0, False, False))
    if reduction == "sum":
        rule = tuple(o and o._replace(lr=o.lr / 257) for o in rule)
    return Problem(traced, reduction, rule, x, y), np.array([0.5, -1.0, 2.0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("engine", "affine"), [*itertools.product(ENGINES, [True]), ("stream", False)], ids=str
)
def test_offsets_strides_and_maps(engine, affine, reduction):
    problem, start = offset_problem(affine, reduction)
    found, truth = State.of(start.copy()), State.of(start.copy())
    for state in (found, truth):
        state.kept[:2, 0] = 0.1, 1.0
    schedule = Schedule(7, 12, 5)
    mine = TRITON.descend(problem, engine, None, schedule, found)
    exact = REFERENCE.descend(problem, "stream", None, schedule, truth)
    for name in ("params", "momentum", "grad"):
        assert_relative(getattr(found, name), getattr(truth, name), 1e-8)
    assert found.has_momentum.tolist() == truth.has_momentum.tolist()
    assert_relative(mine.recorded, exact.recorded, 1e-9)
    assert_relative([mine.loss, mine.previous], [exact.loss, exact.previous], 1e-9)


@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_tol_ends_the_run(engine):
    _, problem = make(1, 9, torch.float64)
    problem = problem._replace(rule=(MOMENTUM,) * 2)
    states = [State.of(np.ones(2)) for _ in range(2)]
    schedule = Schedule(0, 30, 4, 0.02)
    mine = TRITON.descend(problem, engine, None, schedule, states[0])
    exact = REFERENCE.descend(problem, "stream", None, schedule, states[1])
    assert (mine.epochs, mine.converged) == (exact.epochs, True) and mine.epochs < 30
    assert_relative(mine.recorded, exact.recorded, 1e-9)
    assert_relative(states[0].params, states[1].params, 1e-9)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("engine", ["moments", "closed_form"])
def test_moments_of_the_last_launch_serve_the_next(engine, given):
    model, problem = make(3, 1003, torch.float64)
    moments = TRITON.accumulate(problem) if given else None
    state, whole = state_of(model), state_of(model)
    for first in (0, 6):
        run = TRITON.descend(problem, engine, moments, Schedule(first, 6), state)
        moments = run.moments
    REFERENCE.descend(problem, "stream", None, Schedule(0, 12), whole)
    assert_relative(state.params, whole.params, 1e-9)
    assert np.isfinite(run.moments.square)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("n", [9, 100_003])
def test_step_store_and_update(moments, first, n, dtype):
    model, problem = make(2, n, dtype)
    plain = model.coefficients.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([plain], lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1)
    if not first:
        optimizer.state[plain]["momentum_buffer"] = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    tensors = problem.model.tensors
    held = [None] if first else [optimizer.state[plain]["momentum_buffer"].clone()]
    grads, spares = ([torch.zeros_like(t) for t in tensors] for _ in range(2))
    spare_momenta = [torch.zeros_like(tensors[0])]
    map = DeviceMap.of(problem.model, torch.device("cpu"))
    rule = device_rule((MOMENTUM,) * 3, torch.device("cpu"))
    table = tables(
        problem.model, tensors, grads, [held, *nothing(1)[1:]], spares,
        [spare_momenta, *nothing(1)[1:]],
    )  # fmt: skip
    before = TRITON.launches()
    sums = TRITON.accumulate(problem) if moments else None
    state = TRITON.step(map, rule, table, problem.x, problem.y, problem.model, True, sums)
    loss = torch.nn.functional.mse_loss(
        sum(c * problem.x**k for k, c in enumerate(plain)), problem.y
    )
    loss.backward()
    before_step = plain.detach().clone()
    optimizer.step()
    assert TRITON.launches() - before == 1 + moments
    assert_like_torch(state[7 * 3 + 2].to(dtype), loss.detach())
    assert_like_torch(grads[0], plain.grad)
    assert torch.equal(state[6:9].to(dtype), before_step)
    assert torch.equal(tensors[0].detach(), before_step)
    assert_like_torch(spares[0], plain.detach())
    buffer = optimizer.state[plain]["momentum_buffer"]
    assert_like_torch(spare_momenta[0], buffer)
    if first:
        return
    row = tables(problem.model, tensors, grads, [held, *nothing(1)[1:]])
    with torch.no_grad():
        TRITON.store(map, rule, row, state, dtype)
        assert torch.equal(tensors[0], spares[0]) and torch.equal(held[0], spare_momenta[0])
        plain.grad = grads[0].mul_(0.5).clone()
        optimizer.step()
        TRITON.update(map, rule, row, dtype)
    assert_like_torch(tensors[0].detach(), plain.detach())
    assert_like_torch(held[0], buffer)


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_every_optimizer(name, options, engine):
    sides = [side(torch.nn, torch.optim, name, torch.float64, options) for _ in range(2)]
    for epochs in (7, 3):  # from nothing, and from where a run has ended
        for s, on in zip(sides, ("triton", "cpu"), strict=True):
            result = pf.fit(*s, epochs=epochs, engine=engine, backend=on)
            assert result.backend == on
        found, truth = (numbers(s[0], s[2]) for s in sides)
        assert found.keys() == truth.keys()
        for key, value in truth.items():
            if value is not None:
                assert_relative(found[key], value, 1e-9)


def test_what_is_not_finite_is_counted():
    for n in (1, 5, 100_003):
        _, problem = make(1, n, torch.float32)
        assert TRITON.nonfinite(problem) == 0
        problem.x[0], problem.y[n // 2] = float("nan"), float("-inf")
        assert TRITON.nonfinite(problem) == (1 if n == 1 else 2)


def test_workspaces_are_left_clean():
    _, problem = make(2, 100_003, torch.float64)
    for _ in range(2):
        TRITON.accumulate(problem)
        TRITON.project(problem.model, problem.x, problem.y)
    ((_, counters),) = launch._workspaces.values()
    assert counters.tolist() == [0, 0]


def test_refuses_what_it_has_no_kernel_for():
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(256, dtype=torch.float64))

        def forward(self, x):
            return sum(self.w[i] for i in range(256)) * x

    xs, ys = workload.data(torch.float64)
    model = Wide()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with pytest.raises(ValueError, match="on cpu: triton: 256 parameters"):
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=2, backend="triton")
    assert pf.backends()["triton"] == "available"
