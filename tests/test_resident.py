"""`fit` where parameters and optimizer state stay on a device, played by the CPU's memory."""

import math

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import geometry, tables
from polyfuse.backends.cuda import Cuda
from polyfuse.backends.resident import Resident
from torch.utils._python_dispatch import TorchDispatchMode

from .fake_device import take_for_a_device
from .interpreter import INTERPRETED
from .test_fit import ENGINES
from .test_optimizers import CASES, assert_same, numbers, side

MOMENTUM = {"lr": 1e-5, "momentum": 0.9, "nesterov": True}


@pytest.fixture(autouse=True)
def runner(on_device, monkeypatch):
    take_for_a_device(monkeypatch, on_device)
    return on_device


def fit(model, criterion, optimizer, xs, ys, runner, **options):
    return pf.fit(
        model, criterion, optimizer, xs, ys, backend=runner.name,
        **({"nan_policy": "propagate"} | options),
    )  # fmt: skip


def come_back_after(epochs, runner, monkeypatch):
    """Launches take so many epochs at most."""
    if isinstance(runner, Cuda):

        def within(self, problem, engine, schedule):
            return min(epochs, schedule.epochs)

        monkeypatch.setattr(type(runner), "_within", within)
    else:
        monkeypatch.setattr(geometry, "epochs_at_once", lambda *_: min(epochs, _[4]))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_optimizer(name, options, engine, apart, dtype, runner, monkeypatch):
    """apart: numbers that torch keeps once per tensor lie where no kernel can reach them."""
    if apart:
        monkeypatch.setattr(tables, "lies_apart", lambda t, _: t.ndim == 0)
    found, truth = (side(torch.nn, torch.optim, name, dtype, options) for _ in range(2))
    for epochs in (4, 3):  # from nothing, and from where a run has ended
        versions = [p._version for p in found[0].parameters()]
        assert fit(*found, runner, epochs=epochs, engine=engine).launches == 1
        for _ in range(epochs):
            truth[2].zero_grad()
            truth[1](truth[0](truth[3]), truth[4]).backward()
            truth[2].step()
        assert all(p._version > v for p, v in zip(found[0].parameters(), versions, strict=True))
        assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]))


class Operations(TorchDispatchMode):
    """The operations of torch that run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names = [*getattr(self, "names", ()), func.overloadpacket.__name__]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_launch_and_one_copy_to_the_host(engine, dtype, runner, monkeypatch):
    problem = side(torch.nn, torch.optim, "SGD", dtype, MOMENTUM)
    for _ in range(3):  # what depends on addresses alone is there after a while
        fit(*problem, runner, epochs=9, engine=engine, record_every=3)
    copied, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copied.append(t.numel()) or cpu(t))
    with Operations() as operations:
        result = fit(*problem, runner, epochs=9, engine=engine, record_every=3)
    assert result.launches == 1
    assert copied == [7 * 3 + 5 + 3]  # rows of the state, outcome, recorded losses
    if not INTERPRETED:  # which is written in torch's operations
        assert set(operations.names) <= {"empty", "detach"}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_bits_in_one_launch_and_in_many(engine, dtype, runner, monkeypatch):
    found = []
    for most in (100, 7):
        come_back_after(most, runner, monkeypatch)
        problem = side(torch.nn, torch.optim, "SGD", dtype, MOMENTUM)
        # Epochs that nobody looks at may be summed in another order.
        result = fit(*problem, runner, epochs=20, engine=engine, record_every=1)
        assert (result.launches, result.epochs) == (math.ceil(20 / most), 20)
        assert len(result.history) == 21
        if engine != "closed_form":  # whose powers are others
            found.append((result.history.tolist(), numbers(problem[0], problem[2])))
    if found:
        assert found[0][0] == found[1][0]
        for key, value in found[0][1].items():
            assert value is None or torch.equal(value, found[1][1][key]), key


@pytest.mark.parametrize("engine", ENGINES)
def test_data_that_is_refused_changes_nothing(engine, runner):
    problem = side(torch.nn, torch.optim, "SGD", torch.float64, MOMENTUM)
    problem[3][4] = float("nan")
    before = {k: v.clone() for k, v in numbers(problem[0], problem[2]).items()}
    with pytest.raises(ValueError, match="x, y: 1 sample holds nan or inf"):
        fit(*problem, runner, epochs=9, engine=engine, nan_policy="raise")
    assert_same(numbers(problem[0], problem[2]), before)


def test_moments_that_overflow_give_way_to_the_data(runner):
    found, truth = (side(torch.nn, torch.optim, "SGD", torch.float64, {"lr": 1e-300})
                    for _ in range(2))  # fmt: skip
    for s in (found, truth):
        s[4][::2] = 1e200
    with pytest.warns(RuntimeWarning):
        assert fit(*found, runner, epochs=3).engine == "stream"
    with pytest.warns(RuntimeWarning):
        pf.fit(*truth, epochs=3, backend="cpu", nan_policy="propagate")
    assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]))


def test_gradients_that_somebody_holds_stay(runner):
    problem = side(torch.nn, torch.optim, "SGD", torch.float64, MOMENTUM)
    for hold in (lambda g: g, lambda g: g.detach(), lambda g: None):
        fit(*problem, runner, epochs=2)
        held = hold(problem[0].a.grad)
        before = None if held is None else held.clone()
        fit(*problem, runner, epochs=2)
        assert held is None or torch.equal(held, before)
        assert held is None or held.data_ptr() != problem[0].a.grad.data_ptr()


def test_ctrl_c_leaves_what_the_last_launch_has_done(runner, monkeypatch):
    come_back_after(4, runner, monkeypatch)
    finish, calls = Resident.finish, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 2:  # the second launch is under way
            raise KeyboardInterrupt
        finish(self)

    found = side(torch.nn, torch.optim, "SGD", torch.float64, MOMENTUM)
    monkeypatch.setattr(Resident, "finish", interrupted)
    result = fit(*found, runner, epochs=100, engine="stream")
    monkeypatch.undo()
    truth = side(torch.nn, torch.optim, "SGD", torch.float64, MOMENTUM)
    expected = pf.fit(*truth, epochs=8, engine="stream", backend="cpu")
    assert (result.stop_reason, result.epochs) == ("interrupted", 8)
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]))


def test_callbacks_see_and_may_change_parameters(runner):
    found, truth = (side(torch.nn, torch.optim, "SGD", torch.float64, MOMENTUM) for _ in range(2))

    def halve(model):
        return lambda epoch, loss: model.a.data.mul_(0.5) is None

    for s, backend in ((found, runner.name), (truth, "cpu")):
        pf.fit(*s, epochs=9, engine="stream", record_every=3, callback=halve(s[0]),
               backend=backend)  # fmt: skip
    assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]))


def test_a_fused_step_is_one_launch(dtype, runner):
    found, truth = (side(torch.nn, torch.optim, "SGD", dtype, MOMENTUM) for _ in range(2))
    step = pf.fuse(*found[:3])
    for i in range(4):
        before = runner.launches()
        loss = step(*found[3:])
        assert i == 0 or runner.launches() - before == 1  # the first makes the optimizer's state
        expected = workload.loop(*truth, 1)
        torch.testing.assert_close(loss, expected.detach())
    assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]))
