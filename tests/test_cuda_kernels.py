"""The CUDA kernels, run on the CPU, against the reference and plain PyTorch."""

from dataclasses import replace

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY
from polyfuse.backends.device import DeviceMap, DeviceState, device_rule
from polyfuse.backends.tables import nothing, tables
from polyfuse.fused import fused
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import SgdOptions

from .test_fit import ENGINES
from .test_kernels import make, state_of
from .tolerance import assert_close, assert_relative

REFERENCE = REGISTRY["reference"]


@pytest.fixture
def backend(emulated):
    return emulated


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
    stepped = state_of(model)
    on_device = DeviceState(stepped, Schedule(0, 1), problem.x.device)
    step(backend, problem, on_device.buffer)
    assert_close(torch.tensor([on_device.outcome()["loss"]]), plain_loss[None], [loss], loss_scale)
    on_device.finish()
    assert_close(torch.tensor(stepped.grad), plain_grad, grad, grad_scale)
    assert_relative(stepped.params, state_of(model).params - 1e-3 * stepped.grad, 1e-14)


def step(backend, problem, state, tables=None, flags=0, kernel="step", moments=None):
    device = problem.x.device
    backend.launch(
        kernel, problem.model, problem.x, problem.y, map=DeviceMap.of(problem.model, device),
        rule=device_rule(problem.rule, device), state=state, tables=tables, omit=problem.omit,
        moments=moments, mean=problem.reduction == "mean", schedule=Schedule(0, 1),
        engine="stream" if kernel == "step" else "moments", criterion=problem.criterion,
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


def tables_of(model, params, grads, momentum):
    """Of parameters that are tensors of their own."""
    apart = replace(model, slots=tuple((k, 0) for k in range(len(params))))
    return tables(apart, params, grads, [momentum, *nothing(len(params))[1:]])


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
    table = tables_of(problem.model, scalars, grads, momentum)
    launched = backend.launches()
    step(backend, problem, on_device.buffer, table, module.LOAD, kernel, moments)
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
        "store", problem.model, problem.x, None, tables=table, rule=rule,
        map=DeviceMap.of(problem.model, problem.x.device), state=on_device.buffer,
    )  # fmt: skip
    assert backend.launches() - launched == 2
    installed = [t.clone() for t in there]
    for t, b in zip(there, before, strict=True):
        t.copy_(b)
    step(backend, problem, on_device.buffer, table, module.LOAD | module.STORE, kernel, moments)
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
    table = tables_of(problem.model, scalars, [p.grad for p in stepped], momentum)
    rule = device_rule(problem.rule, problem.x.device)
    backend.update(DeviceMap.of(problem.model, problem.x.device), rule, table, dtype)
    rtol = 1e-6 if dtype == torch.float32 else 1e-14
    assert_relative([p.item() for p in scalars], [q.item() for q in stepped], rtol)
    for b, truth in zip(momentum, buffers, strict=True):
        assert b is None or abs(b.item() - truth.item()) <= rtol * abs(truth.item())


def test_too_many_parameters_are_refused(backend):
    _, problem = make(2, 9, torch.float64)
    many = problem._replace(model=replace(problem.model, slots=((0, 0),) * 65))
    assert "65 scalar parameters" in backend.refuse(many)
    assert backend.refuse(problem) is None
