"""The import-swap loop on a device, played by memory of the CPU, against torch's loop."""

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY, tables
from polyfuse.device_loop import DeviceLoop
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS
from .emulated import Emulated
from .fake_device import FakeDevice, take_for_a_device
from .interpreter import INTERPRETED
from .scripts import SCRIPTS, line
from .sides import Side, check, retained, step
from .test_criteria_loop import (  # noqa: F401  those that say the same of a device
    WEIGHTED,
    sides_of,
    test_a_weight_of_other_samples_is_refused_at_once,
    test_a_weight_that_changes_is_seen,
    weights,
)
from .test_optimizers import CASES as OPTIMIZERS
from .test_optimizers import assert_same, numbers
from .test_optimizers import side as side_of
from .test_weights import model_of, samples
from .tolerance import assert_like_torch

# What is compared by value on the CPU, and cannot be on a device without waiting for it.
BY_VALUE = {"prediction_written_through_numpy"}


@pytest.fixture(autouse=True, params=["triton"] if INTERPRETED else ["fake", "cuda"])
def device(request, monkeypatch):
    if request.param == "cuda":
        runner = Emulated(request.getfixturevalue("emulation"))
    else:
        runner = REGISTRY["triton"] if INTERPRETED else FakeDevice()

    take_for_a_device(monkeypatch, runner)
    return runner


@pytest.mark.parametrize(
    "script", [s for s in SCRIPTS if s.__name__ not in BY_VALUE], ids=lambda s: s.__name__
)
def test_the_same_as_torch(script):
    found = script(pf.nn, pf.optim, line(pf.nn))
    truth = script(torch.nn, torch.optim, line(torch.nn))
    for mine, torchs in zip(found, truth, strict=True):
        assert_like_torch(mine, torchs)


def test_one_launch_an_iteration(device, sides):
    check(sides, lambda side, _: [step(side).detach()])
    before = device.launches()
    for _ in range(5):
        step(sides[0])
    assert device.launches() - before == 5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_of_every_sample(device, name, reduction, dtype):
    w = weights(dtype)
    sides = sides_of(CASES["bce"], dtype, lambda nn: WEIGHTED[name](nn, w, reduction))
    check(sides, lambda side, _: [step(side).detach()])
    before = device.launches()
    for _ in range(5):
        step(sides[0])
    assert device.launches() - before == 5
    strided = w.repeat_interleave(2)[::2]
    sides = sides_of(CASES["bce"], dtype, lambda nn: WEIGHTED[name](nn, strided, reduction))
    check(sides, lambda side, _: [step(side).detach()])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_weighted_fused_step_is_one_launch(device, reduction):
    x, y, w = samples(100)
    model, truth = model_of(torch.float64), model_of(torch.float64)
    optimizer = pf.optim.SGD(model.parameters(), lr=0.001)
    step = pf.fuse(model, torch.nn.MSELoss(reduction=reduction), optimizer)
    other = torch.optim.SGD(truth.parameters(), lr=0.001)
    for weight in (w, w.flip(0), w):
        before = device.launches()
        loss = step(x, y, sample_weight=weight)
        assert device.launches() - before == 1
        expected = (weight * (truth(x) * 1.0 - y) ** 2).sum()
        expected = expected / weight.sum() if reduction == "mean" else expected
        other.zero_grad()
        expected.backward()
        other.step()
        assert_like_torch(loss, expected.detach())
    assert_like_torch(model.coefficients.detach(), truth.coefficients.detach())


class Recorded(TorchDispatchMode):
    """The names of torch's operations but views, and but those within a launch."""

    def __init__(self, device, monkeypatch, name="step"):
        super().__init__()
        self.names = []
        launch = getattr(device, name)

        def step(*args):
            with _disable_current_modes():
                return launch(*args)

        monkeypatch.setattr(device, name, step)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_a_fused_step_goes_on_in_the_same_memory(name, options, device, dtype, monkeypatch):
    """So that a graph can replay it: nothing is copied, and a loss is all that is new."""
    model, criterion, optimizer, xs, ys = side_of(pf.nn, pf.optim, name, dtype, options)
    truth = side_of(torch.nn, torch.optim, name, dtype, options)
    step, recorded = pf.fuse(model, criterion, optimizer), Recorded(device, monkeypatch)
    for epoch in range(5):
        before, calls = device.launches(), len(recorded.names)
        with recorded:
            step(xs, ys)
        workload.loop(*truth, 1)
        assert_same(numbers(model, optimizer), numbers(truth[0], truth[2]))
        if epoch > 2:
            assert device.launches() - before == 1
            assert recorded.names[calls:] == ["_to_copy"]


def test_after_a_capture_parameters_stay_where_the_graph_has_them(sides, monkeypatch):
    (side, _), capturing = sides, DeviceLoop.capturing
    for _ in range(3):
        step(side)
    monkeypatch.setattr(DeviceLoop, "capturing", lambda loop: True)
    step(side)
    monkeypatch.setattr(DeviceLoop, "capturing", capturing)
    before = [p.data_ptr() for p in side.model.parameters()]
    step(side)
    assert [p.data_ptr() for p in side.model.parameters()] == before


def test_a_gradient_that_somebody_holds_stays_through_fused_steps(sides):
    mine, truth = sides
    fused_step, held = pf.fuse(mine.model, mine.criterion, mine.optimizer), [[], []]
    for _ in range(6):
        fused_step(mine.xs, mine.ys)
        step(truth)
        for side, of in zip(sides, held, strict=True):
            of.append(side.model.a.grad)
            of.append(side.model.b.grad.view(-1))
    for found, expected in zip(*held, strict=True):
        assert_like_torch(found, expected)


def test_whoever_holds_an_alias_of_a_parameter_sees_every_step(device, sides):
    check(sides, lambda side, _: [step(side).detach()])
    aliases = [side.model.a.detach() for side in sides]
    saved = [side.model.state_dict() for side in sides]
    before = device.launches()

    def script(side, epoch):
        loss, i = step(side), sides.index(side)
        return [loss.detach(), aliases[i][0], saved[i]["b"][0]]

    check(sides, script)
    assert device.launches() - before == 12  # the step is copied, by a launch of its own
    aliases.clear(), saved.clear()
    before = device.launches()
    check(sides, lambda side, _: [step(side).detach()])
    assert device.launches() - before == 6


def test_clipped_gradients_and_another_lr(sides):
    def script(side, epoch):
        if epoch == 3:
            side.optimizer.param_groups[0]["lr"] *= 0.5
        step(side, lambda: torch.nn.utils.clip_grad_norm_(side.model.parameters(), 1.0))

    check(sides, script)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_every_optimizer(device, name, options, apart, dtype, monkeypatch):
    """apart: numbers that torch keeps once per tensor lie where no kernel can reach them."""
    if apart:
        monkeypatch.setattr(tables, "lies_apart", lambda t, _: t.ndim == 0)
    libraries = (pf.nn, pf.optim), (torch.nn, torch.optim)
    sides = [side_of(nn, optim, name, dtype, options) for nn, optim in libraries]
    held = []
    for epoch in range(12):
        before = device.launches()
        for model, criterion, optimizer, xs, ys in sides:
            optimizer.zero_grad()
            criterion(model(xs), ys).backward()
            if epoch in (5, 6):  # the launch's update no longer holds
                for p in model.parameters():
                    p.grad.mul_(0.5)
            optimizer.step()
        if epoch > 2:  # the first step, which makes the state, is torch's
            assert device.launches() - before == (2 if held or epoch in (5, 6) else 1)
        if epoch == 8:  # from here on the next parameters are copied
            held.append(sides[0][0].a.detach())
        assert_same(*(numbers(s[0], s[2]) for s in sides))


def test_static_data(sides):
    pf.static(sides[0].xs, sides[0].ys)
    check(sides, lambda side, _: [step(side).detach()])


def test_old_results_are_still_there_after_steps(sides):
    kept = {0: [], 1: []}

    def script(side, epoch):
        mine = kept[sides.index(side)]
        mine.append(retained(side))
        return [v for p, q in mine for v in (p.detach()[0], p.sum().detach(), q.item(), q.detach())]

    check(sides, script)


def test_parameters_changed_before_the_launch_are_an_error(dtype):
    side = Side(pf.nn, pf.optim, dtype)
    loss = side.criterion(side.model(side.xs), side.ys)
    with torch.no_grad():
        side.model.a.add_(1)
    with pytest.raises(RuntimeError, match="a parameter was changed after model"):
        loss.item()


@pytest.mark.filterwarnings(KL_MEAN_WARNS)
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_other_criteria(device, name, reduction, dtype):
    case = CASES[name]
    sides = sides_of(case, dtype, lambda nn: case.make(nn, dtype, reduction))
    for side in sides:  # four rows of two samples
        side.xs, side.ys = side.xs[:8].reshape(4, 2), side.ys[:8].reshape(4, 2)
    check(sides, lambda side, _: [step(side).detach()])
    before = device.launches()
    check(sides, lambda side, _: [step(side).detach()])
    assert device.launches() - before == 6


def test_criteria_that_are_called(device, dtype):
    """Of one variance, and written out."""
    for criterion in (
        lambda p, y: torch.nn.functional.gaussian_nll_loss(p, y, 0.3, full=True),
        lambda p, y: (p - y).abs().mean(),
    ):
        sides = sides_of(CASES["l1"], dtype, lambda nn, criterion=criterion: criterion)
        check(sides, lambda side, _: [step(side).detach()])


def test_static_data_serves_squared_error_alone(dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)
    pf.static(sides[0].xs, sides[0].ys)
    for criterion in ("MSELoss", "HuberLoss"):
        for side in sides:
            side.criterion = getattr(side.nn, criterion)()
        check(sides, lambda side, _: [step(side).detach()])
