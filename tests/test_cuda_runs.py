"""Whole runs of the CUDA kernels, on the CPU, against the reference and plain PyTorch."""

import itertools
from dataclasses import replace

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY
from polyfuse.problem import Problem, Schedule
from polyfuse.rules import SgdOptions

from .test_fit import ENGINES, OPTIONS, plain_loop
from .test_kernels import make, state_of
from .test_optimizers import CASES, numbers, side
from .tolerance import assert_relative

REFERENCE = REGISTRY["reference"]


@pytest.fixture
def backend(emulated):
    return emulated


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_option_of_sgd(options, engine, reduction, backend):
    lr = 1e-7 if options["maximize"] else 1e-5
    lr = lr / 9 if reduction == "sum" else lr
    xs, ys = workload.data(torch.float64)
    truth, truth_optimizer, losses = plain_loop(
        {"lr": lr, **options}, 57, xs, ys, reduction, every=10
    )
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    criterion = torch.nn.MSELoss(reduction=reduction)
    result = pf.fit(
        model, criterion, optimizer, xs, ys, epochs=57, engine=engine, backend="emulated",
        record_every=10,
    )  # fmt: skip
    assert (result.backend, result.launches) == ("emulated", 1 + (engine == "stream"))
    assert_relative(result.history, losses, 1e-9)
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
        assert_relative(p.grad, q.grad, 1e-8)
        if options["momentum"]:
            assert_relative(optimizer.state[p]["momentum_buffer"],
                            truth_optimizer.state[q]["momentum_buffer"], 1e-8)  # fmt: skip
        else:
            assert "momentum_buffer" not in optimizer.state[p]


def test_shares_that_do_not_fit_on_chip(dtype, backend):
    model, problem = make(2, 100_003, dtype)
    found, truth = state_of(model), state_of(model)
    backend.descend(problem, "stream", None, Schedule(0, 3), found)
    REFERENCE.descend(problem, "stream", None, Schedule(0, 3), truth)
    assert_relative(found.params, truth.params, 1e-11)


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize("n", [1, 12, 13, 96, 97])
@pytest.mark.parametrize("degree", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_epochs_that_nobody_looks_at(engine, n, degree, momentum, dtype, backend):
    """Within and beyond what stays in registers, with a rule that changes and parameters apart."""
    model, problem = make(degree, n, dtype)
    rule = SgdOptions(0.05, momentum, 0.1 * momentum, 0.01, momentum > 0.0, False)
    slower = rule._replace(lr=0.02)
    at_first, then = (rule,) * (degree + 1), (slower,) * (degree + 1)
    apart = (rule,) * degree + (None if degree else slower,)
    for first, changes in ((at_first, ((7, then), (40, at_first))), (apart, ())):
        found, truth = state_of(model), state_of(model)
        run = problem._replace(rule=first, changes=changes)
        seen = backend.descend(run, engine, None, Schedule(0, 50, 21), found)
        recorded, rules = [], ((0, first), *changes, (50, None))
        for (begin, rule), (end, _) in itertools.pairwise(rules):
            span = Schedule(begin, end - begin, 21)
            part = REFERENCE.descend(problem._replace(rule=rule), engine, None, span, truth)
            recorded += list(part.recorded)
        assert_relative(seen.recorded, recorded, 1e-9)
        assert_relative(found.params, truth.params, 1e-10)
        assert_relative(found.kept, truth.kept, 1e-9)
        assert_relative(found.grad, truth.grad, 1e-7)


@pytest.mark.parametrize("engine", ["moments", "closed_form"])
def test_matrices_that_take_much_shared_memory(engine, backend):
    model, problem = make(13, 1003, torch.float64)
    found, truth = state_of(model), state_of(model)
    backend.descend(problem, engine, None, Schedule(0, 25), found)
    REFERENCE.descend(problem, "stream", None, Schedule(0, 25), truth)
    assert_relative(found.params, truth.params, 1e-9)


@pytest.mark.parametrize(("engine", "epochs"), [("moments", 5000), ("closed_form", 100_000)])
@pytest.mark.parametrize("offset", [0.0, 1.7e9])
def test_long_runs(engine, epochs, offset, dtype, backend):
    xs, ys = workload.data(torch.float64)
    model, problem = make(2, 9, dtype)
    traced = replace(problem.model, shift=offset + 320, scale=1 / 256)
    xs, ys = (offset + 64 * xs).to(dtype), ys.to(dtype)
    problem = Problem(traced, "mean", problem.rule, xs, ys)
    found, truth = state_of(model), state_of(model)
    schedule = Schedule(0, epochs, epochs // 7)
    a = backend.descend(problem, engine, None, schedule, found)
    b = REGISTRY["cpu"].descend(problem, engine, None, schedule, truth)
    assert_relative(found.params, truth.params, 1e-10)
    assert_relative(a.recorded, b.recorded, 1e-10)
    assert_relative(a.loss, b.loss, 1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("first", [0, 5])
def test_recorded_epochs(engine, every, first, backend):
    model, problem = make(2, 9, torch.float64)
    for epochs in (0, 1, 3, 4, 5, 11):
        a, b = state_of(model), state_of(model)
        found = backend.descend(problem, engine, None, Schedule(first, epochs, every), a)
        truth = REFERENCE.descend(problem, engine, None, Schedule(first, epochs, every), b)
        assert_relative(found.recorded, truth.recorded, 1e-10)
        assert_relative(a.params, b.params, 1e-12)
        assert found.epochs == epochs


@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_tol_over_several_launches(engine, backend):
    model, problem = make(2, 129, torch.float64)
    rule = (SgdOptions(0.1, 0.0, 0.0, 0.0, False, False),) * 3
    problem = Problem(problem.model, "mean", rule, problem.x, problem.y)
    a, b = state_of(model), state_of(model)
    whole = REFERENCE.descend(problem, engine, None, Schedule(0, 1000, 10, 1e-5), b)
    assert whole.converged
    done, moments, previous, recorded = 0, None, float("nan"), []
    for _ in range(1000):
        part = backend.descend(
            problem, engine, moments, Schedule(done, 7, 10, 1e-5, 0, previous), a
        )
        done, moments, previous = done + part.epochs, part.moments, part.previous
        recorded += list(part.recorded)
        if part.converged:
            break
    assert done == whole.epochs and backend.launches() == done // 7 + 1
    assert_relative(recorded, whole.recorded, 1e-10)
    assert_relative(a.params, b.params, 1e-10)
    assert_relative(a.grad, b.grad, 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [9, 1003])
def test_same_bits_every_time(engine, n, dtype, backend):
    model, problem = make(4, n, dtype)
    seen = set()
    for _ in range(3):
        state = state_of(model)
        backend.descend(problem, engine, None, Schedule(0, 5), state)
        seen.add(state.params.tobytes() + state.grad.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("split", [0, 1, 2, 3, 29])
def test_plain_pytorch_goes_on_from_a_fit(engine, split, backend):
    options = {"lr": 1e-5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    xs, ys = workload.data(torch.float64)
    truth, _, _ = plain_loop(options, 30, xs, ys)
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    run = dict(epochs=split, engine=engine, backend="emulated")
    pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, **run)
    workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 30 - split)
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_policy(engine, backend):
    xs, ys = (torch.cat([t, t[:2]]) for t in workload.data(torch.float64))
    xs[9], ys[10] = float("nan"), float("inf")
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.5)
    run = dict(epochs=50, engine=engine, backend="emulated")
    with pytest.raises(ValueError, match=r"x, y: 2 samples hold nan or inf"):
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, **run)
    pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, nan_policy="omit", **run)
    truth, _, _ = plain_loop({"lr": 1e-4, "momentum": 0.5}, 50, *workload.data(torch.float64))
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
    with pytest.warns(RuntimeWarning):
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, nan_policy="propagate", **run)
    assert not torch.isfinite(model.c).any()


@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_callbacks_between_launches(engine, backend):
    xs, ys = workload.data()
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    called = []
    result = pf.fit(
        model, pf.nn.MSELoss(), optimizer, xs, ys, epochs=100, engine=engine, record_every=10,
        callback=lambda epoch, loss: called.append((epoch, loss)) or epoch >= 30,
        backend="emulated",
    )  # fmt: skip
    assert result.stop_reason == "callback" and result.epochs == 30
    assert called[-1] == (30, result.loss) and result.history_epochs.tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_and_parameters_that_no_optimizer_holds(engine, backend):
    xs, ys = workload.data(torch.float64)
    trained = []
    for name in ("emulated", "reference"):
        model = workload.make_model(torch.nn, torch.float64)
        groups = [
            {"params": [model.a], "lr": 1e-5},
            {"params": [model.c], "lr": 1e-2, "momentum": 0.5},
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        run = dict(epochs=40, engine=engine, backend=name)
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, **run)
        trained.append([v for p in model.parameters() for v in (p.item(), p.grad.item())])
    assert_relative(*trained, 1e-8)


def test_products_of_parameters(backend):
    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
            self.b = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

        def forward(self, x):
            return self.a * self.b * x + self.a**2

    xs, ys = workload.data(torch.float64)
    trained = []
    for engine in ("stream", "moments", None):
        model = Product()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        if engine:
            run = dict(epochs=50, engine=engine, backend="emulated")
            pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, **run)
        else:
            workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 50)
        trained.append([p.item() for p in model.parameters()])
    for found in trained[:-1]:
        assert_relative(found, trained[-1], 1e-10)


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_optimizer(name, options, engine, backend):
    sides = [side(torch.nn, torch.optim, name, torch.float64, options) for _ in range(2)]
    for epochs in (20, 9):  # from nothing, and from where a run has ended
        for s, on in zip(sides, ("emulated", "cpu"), strict=True):
            pf.fit(*s, epochs=epochs, engine=engine, backend=on)
        found, truth = (numbers(s[0], s[2]) for s in sides)
        assert found.keys() == truth.keys()
        for key, value in truth.items():
            if value is not None:
                assert_relative(found[key], value, 1e-9)
