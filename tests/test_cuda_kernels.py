"""The CUDA kernels, run on the CPU, against the reference and plain PyTorch."""

import shutil
from dataclasses import replace

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY
from polyfuse.backends.device import DeviceMap, DeviceState, device_rule
from polyfuse.fused import fused
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import SgdOptions

from . import emulated
from .test_fit import ENGINES, OPTIONS, plain_loop
from .test_kernels import make, state_of
from .test_optimizers import CASES, numbers, side
from .tolerance import assert_close, assert_relative

REFERENCE = REGISTRY["reference"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="session")
def module():
    return emulated.build()


@pytest.fixture(params=[None, 3], ids=["one block", "blocks"])
def backend(request, module, monkeypatch):
    backend = emulated.Emulated(module, request.param)
    monkeypatch.setitem(REGISTRY, backend.name, backend)
    yield backend
    for workspace in backend._workspaces.values():
        assert not workspace[:64].any()


def truth_of(model, problem):
    """Loss and gradient in long double, in plain torch, and the size of what is summed."""
    degree, n = problem.model.degree, len(problem.x)
    exact_v = np.vander(problem.x.numpy().astype(np.longdouble), degree + 1, increasing=True)
    r = exact_v @ model.coefficients.detach().numpy().astype(np.longdouble) - problem.y.numpy()
    grad = (2 / n * (exact_v.T @ r)).astype(np.float64)
    plain = model.coefficients.detach().clone().requires_grad_()
    v = torch.stack([problem.x**k for k in range(degree + 1)], dim=1)
    loss = ((v @ plain - problem.y) ** 2).mean()
    loss.backward()
    magnitude = v.abs().double() @ plain.detach().abs().double() + problem.y.abs()
    scales = (magnitude**2).mean(), 2 * v.abs().double().T @ magnitude / n
    return float((r @ r) / n), grad, loss.detach(), plain.grad, *scales


@pytest.mark.parametrize("degree", [0, 3, 32])
def test_loss_and_gradient_at_given_parameters(degree, dtype, backend):
    model, problem = make(degree, 1003, dtype)
    params = model.coefficients.detach().clone()
    loss, grad = backend.loss_and_gradient(problem, params)
    exact_loss, exact_grad, plain_loss, plain_grad, *sizes = truth_of(model, problem)
    assert_close(loss, plain_loss, exact_loss, sizes[0])
    assert_close(grad, plain_grad, exact_grad, sizes[1])
    assert torch.equal(params, model.coefficients)


@pytest.mark.parametrize("n", [1, 2, 9, 129, 1003])
@pytest.mark.parametrize("degree", [*range(13), 32])
def test_loss_and_gradient(degree, n, dtype, backend):
    model, problem = make(degree, n, dtype)
    loss, grad, plain_loss, plain_grad, loss_scale, grad_scale = truth_of(model, problem)
    found = state_of(model)
    trace = backend.descend(problem, "stream", None, Schedule(0, 1, 1), found)
    assert_close(torch.tensor(found.grad), plain_grad, grad, grad_scale)
    assert_close(trace.recorded, plain_loss[None], np.array([loss]), loss_scale)
    on_device = DeviceState(state_of(model), Schedule(0, 1), problem.x.device)
    step(backend, problem, on_device.buffer)
    assert_close(torch.tensor([on_device.outcome()["loss"]]), plain_loss[None], [loss], loss_scale)
    stepped = state_of(model)
    on_device.read_into(stepped)
    assert_close(torch.tensor(stepped.grad), plain_grad, grad, grad_scale)
    assert_relative(stepped.params, state_of(model).params - 1e-3 * stepped.grad, 1e-14)


def step(backend, problem, state, tables=None, flags=0, kernel="step", moments=None):
    device = problem.x.device
    backend.launch(
        kernel, problem.model, problem.x, problem.y, map=DeviceMap.of(problem.model, device),
        rule=device_rule(problem.rule, device), state=state, tables=tables, omit=problem.omit,
        moments=moments, mean=problem.reduction == "mean", schedule=Schedule(0, 1),
        engine="stream" if kernel == "step" else "moments",
        flags=flags | backend.module.STEP,
    )  # fmt: skip


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 9, 12, 32])
@pytest.mark.parametrize("n", [1, 7, 8, 1003])
def test_evaluate_and_project(degree, n, dtype, backend):
    model, problem = make(degree, n, dtype)
    coef = model.coefficients.detach().double().numpy()
    found = backend.evaluate(problem.model, coef, problem.x)
    truth = REFERENCE.evaluate(problem.model, coef, problem.x.double())
    plain = sum(c * problem.x**k for k, c in enumerate(model.coefficients.detach()))
    assert found.dtype == dtype
    assert_close(found, plain, truth, np.abs(coef).sum())
    np.testing.assert_allclose(
        backend.project(problem.model, problem.x, problem.y),
        REFERENCE.project(problem.model, problem.x, problem.y),
        atol=1e-13 * float(problem.y.double().abs().sum()),
    )


def test_evaluate_and_project_through_a_map(backend):
    xs, ys = workload.data(torch.float64)
    model = workload.make_model(pf.nn, torch.float64)
    traced = fused(model, torch.float64, xs.device).traced
    params = np.array([traced.tensors[t].view(-1)[e].item() for t, e in traced.slots])
    map = DeviceMap.of(traced, xs.device)
    y = backend.evaluate(traced, params, xs, map)
    torch.testing.assert_close(y, xs**2 + 2 * xs + 3)
    grad = traced.pull_back(params, REFERENCE.project(traced, xs, ys))
    assert_relative(backend.project(traced, xs, ys, map, params), grad, 1e-13)


@pytest.mark.parametrize("layout", ["sliced", "column", "row and column", "unaligned"])
@pytest.mark.parametrize("omit", [False, True])
def test_strides(layout, omit, dtype, backend):
    model, problem = make(3, 1003, dtype)
    x, y = problem.x, problem.y
    if omit:
        x[17], y[901], x[1002] = float("nan"), float("inf"), float("-inf")
    if layout == "sliced":
        xs, ys = x.repeat_interleave(3)[::3], y.repeat_interleave(2)[::2]
    elif layout == "column":
        table = torch.stack([x, y], dim=1)
        xs, ys = table[:, 0], table[:, 1]
    elif layout == "row and column":
        xs, ys = torch.stack([x, -x])[0], torch.stack([y, y], dim=1)[:, 1]
    else:
        xs, ys = torch.cat([x[:1], x])[1:], torch.cat([y[:2], y])[2:]
    strided = Problem(problem.model, "mean", problem.rule, xs, ys, omit)
    assert backend.nonfinite(strided) == 3 * omit
    for engine in ENGINES:
        found, truth = state_of(model), state_of(model)
        a = backend.descend(strided, engine, None, Schedule(0, 5), found)
        b = REFERENCE.descend(strided, engine, None, Schedule(0, 5), truth)
        assert_relative(found.params, truth.params, 1e-11)
        assert_relative(found.grad, truth.grad, 1e-10)
        assert_relative(a.loss, b.loss, 1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 1003, 5003])
@pytest.mark.parametrize("offset", [0.0, 1.7e9])
def test_moments(n, offset, backend):
    _, problem = make(2, n, torch.float64, low=offset, high=offset + 1000)
    found = backend.accumulate(problem)
    shift, scale, square, *reference = found.buffer[:6].tolist()
    assert square == found.square
    u = (problem.x.numpy() - shift) * scale
    power, cross = found.buffer[6:11].numpy(), found.buffer[11:].numpy()
    np.testing.assert_allclose(power, [(u**k).sum() for k in range(5)], atol=1e-10 * n)
    r = np.polynomial.polynomial.polyval(u, reference) - problem.y.numpy()
    np.testing.assert_allclose(square, r @ r, atol=1e-10)
    np.testing.assert_allclose(cross, [(u**k) @ r for k in range(3)], atol=1e-10 * n)
    if n >= 1003:  # a pilot near the optimum: little more than the least sum of squares
        truth = REFERENCE.accumulate(problem)
        assert truth.square <= square * (1 + 1e-12) and square <= truth.square * 1.05


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


def tables_of(params, grads, momentum):
    rows = [[0 if t is None else t.data_ptr() for t in row] for row in (params, grads, momentum)]
    return torch.tensor(rows, dtype=torch.int64)


def in_torch(problem, params, momentum, factor=1.0):
    """A step of torch.optim.SGD with gradients times `factor`: parameters, momenta, loss."""
    params = [p.clone().requires_grad_() for p in params]
    pairs = list(zip(params, problem.rule, strict=True))
    optimizer = torch.optim.SGD([{"params": [p], **o._asdict()} for p, o in pairs if o])
    for p, b in zip(params, momentum, strict=True):
        if b is not None:
            optimizer.state[p]["momentum_buffer"] = b.clone()
    prediction = sum(p * problem.x**k for k, p in enumerate(params))
    loss = torch.nn.functional.mse_loss(prediction, problem.y)
    loss.backward()
    for p in params:
        p.grad *= factor
    optimizer.step()
    return params, [optimizer.state[p].get("momentum_buffer") for p in params], loss.item()


RULES = [
    SgdOptions(0.1, 0.0, 0.0, 0.0, False, False),
    SgdOptions(0.1, 0.9, 0.1, 0.2, False, True),
    SgdOptions(0.1, 0.9, 0.0, 0.2, True, False),
    None,
]


@pytest.mark.parametrize("kernel", ["step", "moments", "epochs"])
@pytest.mark.parametrize("held", [False, True])
def test_a_step_through_tables(kernel, held, dtype, backend):
    module = backend.module
    _, problem = make(3, 129, dtype)
    problem = Problem(problem.model, "mean", tuple(RULES), problem.x, problem.y)
    scalars = [torch.tensor([0.5 - k], dtype=dtype) for k in range(4)]
    grads = [torch.full((1,), float("nan"), dtype=dtype) for _ in range(4)]
    momentum = [torch.tensor([0.25], dtype=dtype) if held and k in (1, 2) else None
                for k in range(4)]  # fmt: skip
    there = [*scalars, *(b for b in momentum if b is not None)]
    before = [t.clone() for t in there]
    stepped, buffers, loss = in_torch(problem, scalars, momentum)
    empty = State.of(np.full(4, np.nan))
    on_device = DeviceState(empty, Schedule(0, 1), problem.x.device)
    moments = torch.empty(18, dtype=torch.float64)
    if kernel == "epochs":
        moments = backend.accumulate(problem).buffer
    tables = tables_of(scalars, grads, momentum)
    launched = backend.launches()
    step(backend, problem, on_device.buffer, tables, module.LOAD, kernel, moments)
    assert there == before
    assert on_device.host[8:12].tolist() == [s.item() for s in scalars]
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    computed = on_device.host[:4]
    assert (computed == torch.tensor(computed).to(dtype).double().numpy()).all()
    assert_relative(computed, [p.item() for p in stepped], rtol)
    assert_relative(on_device.outcome()["loss"], loss, rtol)
    # Computed before and installed now leaves what a step does that stores at once.
    rule = device_rule(problem.rule, problem.x.device)
    backend.launch(
        "store", problem.model, problem.x, None, tables=tables, rule=rule,
        map=DeviceMap.of(problem.model, problem.x.device), state=on_device.buffer,
    )  # fmt: skip
    assert backend.launches() - launched == 2
    installed = [t.clone() for t in there]
    for t, b in zip(there, before, strict=True):
        t.copy_(b)
    step(backend, problem, on_device.buffer, tables, module.LOAD | module.STORE, kernel, moments)
    assert installed == there
    assert_relative([p.item() for p in scalars], [q.item() for q in stepped], rtol)
    assert_relative([g.item() for g in grads], [q.grad.item() for q in stepped], rtol)
    for b, truth in zip(momentum, buffers, strict=True):
        assert b is None or abs(b.item() - truth.item()) <= rtol * abs(truth.item())


@pytest.mark.parametrize("held", [False, True])
def test_the_update_alone(held, dtype, backend):
    _, problem = make(3, 9, dtype)
    problem = Problem(problem.model, "mean", tuple(RULES), problem.x, problem.y)
    scalars = [torch.tensor([0.5 - k], dtype=dtype) for k in range(4)]
    momentum = [torch.tensor([0.25], dtype=dtype) if held and k in (1, 2) else None
                for k in range(4)]  # fmt: skip
    stepped, buffers, _ = in_torch(problem, scalars, momentum, 0.5)
    tables = tables_of(scalars, [p.grad for p in stepped], momentum)
    rule = device_rule(problem.rule, problem.x.device)
    backend.launch("update", problem.model, problem.x, None, tables=tables, rule=rule,
                   map=DeviceMap.of(problem.model, problem.x.device))  # fmt: skip
    rtol = 1e-6 if dtype == torch.float32 else 1e-14
    assert_relative([p.item() for p in scalars], [q.item() for q in stepped], rtol)
    for b, truth in zip(momentum, buffers, strict=True):
        assert b is None or abs(b.item() - truth.item()) <= rtol * abs(truth.item())


def test_too_many_parameters_are_refused(backend):
    _, problem = make(2, 9, torch.float64)
    many = problem._replace(model=replace(problem.model, slots=((0, 0),) * 65))
    assert "65 scalar parameters" in backend.refuse(many)
    assert backend.refuse(problem) is None


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
