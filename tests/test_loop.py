"""The import-swap loop against the same loop on torch.nn and torch.optim."""

import gc
import subprocess
import sys
import weakref

import polyfuse as pf
import pytest
import torch
from polyfuse import _C, workload
from polyfuse.records import Forward, Objective
from torch.overrides import TorchFunctionMode

from .sides import LR, Side, check, launches, step
from .tolerance import assert_relative


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_one_launch_an_iteration(options, dtype):
    side = Side(pf.nn, pf.optim, dtype, **options)
    step(side)
    for _ in range(20):
        before = launches()
        step(side)
        assert launches() - before == 1
    assert side.model.a._version > 0


def test_one_launch_with_a_schedule_and_a_read_loss(dtype):
    side = Side(pf.nn, pf.optim, dtype)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(side.optimizer, 0.9)
    step(side)
    for _ in range(5):
        before = launches()
        loss = step(side)
        scheduler.step()
        loss.item()
        assert launches() - before == 1


def test_plain_loop(sides):
    check(sides, lambda side, _: [step(side).detach()])


def test_evaluation_in_between(sides):
    def script(side, epoch):
        step(side)
        other = side.xs + 0.5
        with torch.no_grad():
            value = side.model(other)
            loss = side.criterion(value, side.ys)
            assert not value.requires_grad and not loss.requires_grad
        side.model.eval()
        kept = side.model(other)
        side.model.train()
        with torch.inference_mode():
            third = side.model(other).clone()
        step(side)
        return [value, loss, kept.detach(), third]

    check(sides, script)


def test_mini_batches(sides):
    """New tensors every time, of changing length, and one that is not seen as the others are."""

    def script(side, epoch):
        losses = []
        for first, stop, every in ((0, 4, 1), (4, 9, 1), (0, 9, 2), (8, 9, 1), (2, 7, 1)):
            x, y = side.xs[first:stop:every], side.ys[first:stop:every].clone()
            if (epoch, first) == (3, 4):
                x = x.clone().requires_grad_()
            before = launches()
            y_pred = side.model(x)
            assert y_pred.shape == x.shape and len(y_pred) == len(x)
            loss = side.criterion(y_pred, y)
            side.optimizer.zero_grad()
            loss.backward()
            side.optimizer.step()
            if side is sides[0] and epoch > 0 and not x.requires_grad:
                assert launches() - before == 1
            losses.append(loss.detach())
        return losses

    check(sides, script)


def test_targets_of_other_shapes_and_types(sides):
    def script(side, epoch):
        losses = []
        for y in (side.ys, side.ys[:1], side.ys.double(), side.ys.clone().requires_grad_()):
            loss = torch.nn.MSELoss(reduction="sum")(side.model(side.xs), y.expand(9))
            side.optimizer.zero_grad()
            loss.backward()
            side.optimizer.step()
            losses.append(loss.detach().double())
        return losses

    check(sides, script)


def test_modes_that_change_torch(dtype):
    """What looks on at torch's functions still sees them."""

    class Count(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.seen += 1
            return func(*args, **(kwargs or {}))

    side = Side(pf.nn, pf.optim, dtype)
    for _ in range(3):
        step(side)
    with Count():
        side.model(side.xs.clone())
    assert Count.seen > 5
    with torch.inference_mode():
        x = side.xs.clone()
    torch.testing.assert_close(side.model(x).detach(), side.model(side.xs).detach())
    batch = torch.stack([side.xs, side.xs])
    torch.testing.assert_close(
        torch.func.vmap(side.model)(batch).detach(), side.model(batch).detach()
    )


def test_parameters_changed_in_place(sides):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        loss = side.criterion(y_pred, side.ys)
        with torch.no_grad():
            side.model.a.add_(0.25)  # after the forward: the gradient is that of before
        side.optimizer.zero_grad()
        loss.backward()
        side.optimizer.step()
        values = [loss.detach(), y_pred.detach()]
        side.model.b.data = side.model.b.data * 0.5
        loss = step(side, lambda: side.model.c.data.fill_(1.5))
        return [*values, loss.detach()]

    check(sides, script)


def test_data_changed_in_place(sides):
    def script(side, epoch):
        loss = step(side)
        value = loss.item()
        side.xs.mul_(0.9)
        side.ys.add_(1)
        if epoch == 3:
            side.xs, side.ys = side.xs[::2], side.ys[::2]
        if epoch == 4:
            side.xs.data = side.xs.data[1:].clone()
            side.ys.data = side.ys.data[1:].clone()
        return [value, loss.detach()]

    check(sides, script)


def test_aliases_see_every_update(dtype):
    side = Side(pf.nn, pf.optim, dtype)
    view, array = side.model.a.detach(), side.model.b.detach().numpy()
    version = side.model.a._version
    address = side.model.a.data_ptr()
    for i in range(5):
        step(side)
        assert view.item() == side.model.a.item() and array[0] == side.model.b.item()
        assert side.model.a._version > version + i and side.model.a.data_ptr() == address


def test_hooks_turn_fusing_off_and_are_called(sides):
    called = {0: [], 1: []}
    for i, side in enumerate(sides):
        step(side)
        side.model.a.register_hook(lambda g, i=i: called[i].append(g.item()) or g * 2)
        side.model.register_forward_hook(lambda m, a, out, i=i: called[i].append(1.0))
        side.model.c.register_post_accumulate_grad_hook(
            lambda p, i=i: called[i].append(p.grad.item())
        )

    check(sides, lambda side, _: [step(side).detach(), *called[sides.index(side)]])
    assert called[0]


def test_a_frozen_parameter_and_its_thawing(sides):
    def script(side, epoch):
        side.model.b.requires_grad_(epoch not in (2, 3))
        if epoch == 2:  # the optimizer is looked at anew while the parameter is frozen
            side.optimizer.param_groups[0]["lr"] *= 0.5
        return [step(side).detach()]

    check(sides, script)


def test_gradients_of_before_and_after_the_thawing_add_up(sides):
    def script(side, epoch):
        side.model.b.requires_grad_(epoch == 5)
        if epoch < 5:
            side.optimizer.zero_grad()
        side.criterion(side.model(side.xs), side.ys).backward()
        if epoch != 4:
            side.optimizer.step()

    check(sides, script)


def test_a_graph_is_freed_though_the_parameters_have_changed(sides):
    for side in sides:
        for sum_of in (side.criterion, lambda p, _: (p + 0).sum()):
            step(side)
            early, late = (sum_of(side.model(side.xs), side.ys) for _ in range(2))
            step(side)
            side.model.b.requires_grad_(False)
            for graph in (early + 0, late):
                graph.backward()
                with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                    graph.backward()
            side.model.b.requires_grad_(True)


def test_static_data_takes_moments_and_notices_changes(dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)
    fast = sides[0]
    x, y = pf.static(fast.xs, fast.ys)
    assert x is fast.xs and y is fast.ys

    def script(side, epoch):
        loss = step(side).detach()
        if epoch in (1, 4):
            side.xs.mul_(0.9)
        if epoch == 2 and side is fast:
            pf.static(fast.xs, fast.ys)
        if epoch == 3:
            side.ys.data = side.ys.data + 1
        return [loss]

    check(sides, script)


def test_static_data_is_read_once():
    n = 300_000
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y = torch.exp(x)
    pf.static(x, y)
    model = pf.nn.Polynomial(3, dtype=torch.float64)
    optimizer = pf.optim.SGD(model.parameters(), lr=0.1)
    criterion = pf.nn.MSELoss()
    workload.loop(model, criterion, optimizer, x, y, 1)
    moments_of = y.clone()
    y.numpy()[:] = 0.0  # which breaks the promise, unseen: the moments of before must serve
    workload.loop(model, criterion, optimizer, x, y, 300)
    y = moments_of
    truth = torch.nn.Sequential()
    truth = pf.nn.Polynomial(3, dtype=torch.float64)
    plain = torch.optim.SGD(truth.parameters(), lr=0.1)
    pf.fit(truth, criterion, plain, x, y, epochs=301)
    assert_relative(model.coefficients.detach(), truth.coefficients.detach(), 1e-10)


def test_columns_and_scalars(dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)
    for side in sides:
        side.xs, side.ys = side.xs[:, None], side.ys[:, None]
    check(sides, lambda side, _: [step(side).detach()])
    for side in sides:
        side.xs, side.ys = side.xs[0, 0], side.ys[:1, 0]
    check(sides, lambda side, _: [step(side).detach()])


def test_the_module_moves_and_changes():
    sides = Side(pf.nn, pf.optim, torch.float32), Side(torch.nn, torch.optim, torch.float32)

    def script(side, epoch):
        if epoch == 2:
            side.model.double()
            side.xs, side.ys = side.xs.double(), side.ys.double()
        if epoch == 4:
            side.model.b = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
            side.optimizer = side.optim.SGD(side.model.parameters(), lr=LR)
        return [step(side).detach()]

    check(sides, script)


def test_the_parameters_change_their_dtype_before_backward():
    sides = Side(pf.nn, pf.optim, torch.float32), Side(torch.nn, torch.optim, torch.float32)
    for side in sides:
        step(side)
        loss = side.criterion(side.model(side.xs), side.ys)
        side.optimizer.zero_grad()
        side.model.double()
        loss.backward()
        assert side.model.a.dtype == torch.float64
    found, expected = ([p.grad.double() for p in side.model.parameters()] for side in sides)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_parameters_are_swapped():
    sides = Side(pf.nn, pf.optim, torch.float32), Side(torch.nn, torch.optim, torch.float32)

    def script(side, epoch):
        if epoch == 2:
            side.optimizer.zero_grad()
            for p in side.model.parameters():
                other = torch.nn.Parameter(2 * p.detach())
                torch.utils.swap_tensors(p, other)
        return [step(side).detach()]

    check(sides, script)


def test_torch_answers_through_its_shim():
    assert _C.use_shim(True) == sys.platform.startswith("linux")


@pytest.mark.parametrize("shim", [True, False])
@pytest.mark.parametrize("exchange", [True, False])
def test_without_the_c_interfaces(shim, exchange):
    """Not every torch has DLPack's exchange or the shim; attributes serve as well."""
    forget = "if hasattr(torch.Tensor, '__dlpack_c_exchange_api__'):\n"
    forget += "    del torch.Tensor.__dlpack_c_exchange_api__\n"
    script = (
        "import torch\n"
        f"{'' if exchange else forget}"
        "import polyfuse as pf; from polyfuse import _C, workload\n"
        f"_C.use_shim({shim})\n"
        "xs, ys = workload.data(); m = workload.make_model(pf.nn); c = pf.nn.MSELoss()\n"
        "o = pf.optim.SGD(m.parameters(), lr=1e-5)\n"
        "workload.loop(m, c, o, xs, ys, 10); before = _C.launches()\n"
        "workload.loop(m, c, o, xs, ys, 10); print(_C.launches() - before)\n"
        "xs.resize_(6); workload.loop(m, c, o, xs, ys[:6], 10)\n"
        "print(*(p.item() for p in m.parameters()))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, *found = out.stdout.split()
    model = workload.make_model(torch.nn)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    xs, ys = workload.data()
    workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 20)
    workload.loop(model, torch.nn.MSELoss(), optimizer, xs[:6], ys[:6], 10)
    assert count == "10"
    truth = [p.item() for p in model.parameters()]
    assert_relative([float(v) for v in found], truth, 1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "trace",
    [
        lambda model, x: torch.compile(model, backend="eager"),
        lambda model, x: torch.fx.symbolic_trace(model),
        lambda model, x: torch.jit.trace(model, x),
        lambda model, x: torch.export.export(model, (x,)).module(),
    ],
    ids=["compile", "fx", "jit", "export"],
)
def test_torch_tools_see_an_ordinary_module(trace):
    side = Side(pf.nn, pf.optim, torch.float32)
    step(side)
    traced = trace(side.model, side.xs)
    torch.testing.assert_close(traced(side.xs), side.model(side.xs).detach())


def test_nothing_outlives_its_model():
    def use():
        side = Side(pf.nn, pf.optim, torch.float32, momentum=0.9)
        for _ in range(3):
            step(side)
        str(side.criterion(side.model(side.xs), side.ys))
        return weakref.ref(side.model), weakref.ref(side.optimizer)

    def alive():
        while gc.collect():
            pass
        return sum(type(o) in (_C.Loop, Forward, Objective) for o in gc.get_objects())

    before = alive()
    references = use()
    assert alive() == before
    assert [r() for r in references] == [None, None]
