"""The import-swap loop on a GPU, beside torch's; steps and runs in CUDA graphs."""

from functools import partial

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import AUTO, backend_of
from polyfuse.backends.device import DeviceMap, device_rule
from polyfuse.backends.tables import nothing, tables

from ..sides import step
from ..test_classes_loop import sides_of as classes
from ..test_optimizers import CASES as OPTIMIZERS
from ..test_optimizers import assert_same, numbers, side
from ..test_stacked_loop import SHAPES
from ..test_stacked_loop import sides_of as stacked
from ..tolerance import assert_like_torch
from .test_backends import DEVICE, backend, make, on_device, pytestmark  # noqa: F401


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_small_loop_takes_one_launch_an_iteration(momentum, dtype):
    xs, ys = (t.to(DEVICE) for t in workload.data(dtype))
    found, truth = (workload.make_model(nn, dtype).to(DEVICE) for nn in (pf.nn, torch.nn))
    options = {"lr": 1e-5, "momentum": momentum}
    mine = pf.optim.SGD(found.parameters(), **options)
    plain = torch.optim.SGD(truth.parameters(), **options)
    runner = backend_of(DEVICE, 3)
    if runner is None:
        pytest.skip("no device backend is available")
    workload.loop(found, pf.nn.MSELoss(), mine, xs, ys, 3)
    before = runner.launches()
    loss = workload.loop(found, pf.nn.MSELoss(), mine, xs, ys, 10)
    assert runner.launches() - before == 10
    expected = workload.loop(truth, torch.nn.MSELoss(), plain, xs, ys, 13)
    assert_like_torch(loss.detach().cpu() / 100, expected.detach().cpu() / 100)
    for p, q in zip(found.parameters(), truth.parameters(), strict=True):
        assert_like_torch(p.detach().cpu(), q.detach().cpu())


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_every_optimizer(name, options, dtype):
    runner = backend_of(DEVICE, 3)
    if runner is None:
        pytest.skip("no device backend is available")
    libraries = (pf.nn, pf.optim), (torch.nn, torch.optim)
    sides = [on_device(*side(nn, optim, name, dtype, options), DEVICE) for nn, optim in libraries]
    for epoch in range(9):
        before = runner.launches()
        for model, criterion, optimizer, xs, ys in sides:
            optimizer.zero_grad()
            criterion(model(xs), ys).backward()
            if epoch == 5:  # the launch's update no longer holds
                for p in model.parameters():
                    p.grad.mul_(0.5)
            optimizer.step()
        if epoch > 2:  # the first step, which makes the state, is torch's
            assert runner.launches() - before == (2 if epoch == 5 else 1)
        assert_same(*(numbers(s[0], s[2]) for s in sides))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("shape", ["classes", *SHAPES])
def test_small_loops_side_by_side(shape, optimizer, backend, dtype, monkeypatch):  # noqa: F811
    monkeypatch.setitem(AUTO, "cuda", (backend.name,))
    make = classes if shape == "classes" else partial(stacked, shape=shape)
    sides = make(dtype, optimizer=optimizer, lr=0.01)
    for s in sides:
        s.model.coefficients.data = s.model.coefficients.data.to(DEVICE)
        s.xs, s.ys = s.xs.to(DEVICE), s.ys.to(DEVICE)
    for epoch in range(6):
        before = backend.launches()
        losses = [step(s).detach().cpu() for s in sides]
        if epoch > 1 and DEVICE.type == "cuda":
            assert backend.launches() - before == 1
        for found, truth in zip(*([*s.numbers(), x] for s, x in zip(sides, losses, strict=True)),
                                strict=True):  # fmt: skip
            assert_like_torch(found.cpu(), truth.cpu(), dtype)


def test_looking_and_clipping_between_the_lines(dtype):
    xs, ys = (t.to(DEVICE) for t in workload.data(dtype))
    sides = []
    for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim)):
        model = workload.make_model(nn, dtype).to(DEVICE)
        optimizer, seen, alias = optim.SGD(model.parameters(), lr=1e-4), [], model.a.detach()
        for i in range(6):
            y_pred = model(xs)
            loss = nn.MSELoss()(y_pred, ys)
            optimizer.zero_grad()
            loss.backward()
            if i % 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen += [loss.item() / 100, y_pred.detach().sum().item() / 100, alias.item()]
            if i == 3:
                alias = model.b.detach().clone()  # from here on nobody holds a parameter's memory
        sides.append([*seen, *(p.item() for p in model.parameters())])
    assert_like_torch(torch.tensor(sides[0], dtype=dtype), torch.tensor(sides[1], dtype=dtype))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs")
def test_small_step_in_a_graph(backend):  # noqa: F811
    far, _, start = make(2, 1003, torch.float32, {"lr": 0.05})
    params, grads, spares = (
        [torch.tensor(start, dtype=torch.float32, device=DEVICE)] for _ in range(3)
    )
    map, rule = DeviceMap.of(far.model, DEVICE), device_rule(far.rule, DEVICE)
    table = tables(far.model, params, grads, nothing(1), spares)
    arguments = (map, rule, table, far.x, far.y, far.model, True, None)
    truth = backend.step(*arguments).clone()
    expected = spares[0].clone()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        state = backend.step(*arguments)
    for _ in range(3):
        spares[0].zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(spares[0], expected) and torch.equal(state[:-5], truth[:-5])


@pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs")
@pytest.mark.parametrize(("name", "options"), [
    ("SGD", {"lr": 1e-5}), ("SGD", {"lr": 1e-5, "momentum": 0.9}),
    ("Adam", {"lr": 1e-2, "fused": True}),
])  # fmt: skip
def test_small_fused_step_in_a_graph(backend, name, options, dtype, monkeypatch):  # noqa: F811
    monkeypatch.setitem(AUTO, "cuda", (backend.name,))
    sides = [on_device(*side(torch.nn, torch.optim, name, dtype, options), DEVICE)
             for _ in range(2)]  # fmt: skip
    (model, criterion, optimizer, xs, ys), truth = sides
    step, apart = pf.fuse(model, criterion, optimizer), torch.cuda.Stream()
    apart.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(apart):
        for _ in range(3):
            step(xs, ys)
    torch.cuda.current_stream().wait_stream(apart)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(xs, ys)
    workload.loop(*truth, 3)
    for _ in range(5):
        graph.replay()
        expected = workload.loop(*truth, 1)
        assert_like_torch(loss.cpu() / 100, expected.detach().cpu() / 100)
        assert_same(*(numbers(s[0], s[2]) for s in sides))
    step(xs, ys)
    workload.loop(*truth, 1)
    assert_same(*(numbers(s[0], s[2]) for s in sides))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs")
def test_small_steps_that_a_graph_cannot_replay():
    if backend_of(DEVICE, 3) is None:
        pytest.skip("no device backend is available")
    model, criterion, optimizer, xs, ys = on_device(
        *side(torch.nn, torch.optim, "Adam", torch.float32, {"lr": 1e-2}), DEVICE
    )
    step = pf.fuse(model, criterion, optimizer)
    for _ in range(3):
        step(xs, ys)
    refused = pytest.raises(RuntimeError, match="Adam counts its steps in the host's memory")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        step(xs, ys)
