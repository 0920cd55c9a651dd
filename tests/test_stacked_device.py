"""Batches and several outputs in the loop and in `fuse` on devices, emulated or interpreted."""

import polyfuse as pf
import pytest
import torch
from polyfuse import fused, stacked_loop
from polyfuse.backends import REGISTRY, batched, tables
from polyfuse.backends.batched_cuda import BatchedCuda
from polyfuse.device_loop import DeviceLoop
from polyfuse.optim.classes import FUSED

from . import test_stacked_loop as on_cpu
from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS
from .emulated import Emulated
from .fake_device import take_for_a_device
from .interpreter import INTERPRETED
from .sides import check, retained, step
from .test_device_loop import Recorded
from .test_stacked_loop import (  # noqa: F401  those that say the same of a device
    SHAPES,
    counted,
    sides_of,
    test_a_target_is_that_of_the_criterion,
    test_fuse_refuses_what_fit_refuses,
    test_fuse_takes_views,
    test_mini_batches,
    test_residuals,
    test_targets_whose_numbers_lie_apart,
    test_weights_of_the_step,
    test_weights_of_torch,
    test_what_is_looked_at_on_the_way,
    test_what_is_not_fused_is_torchs,
)

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """The backend of fits, which counts the launches of all kernels."""
    if INTERPRETED:
        runner, fits = REGISTRY["triton"], batched.backend_called("triton")
    else:
        runner = Emulated(request.getfixturevalue("emulation"))
        fits = BatchedCuda(runner)
    take_for_a_device(monkeypatch, runner)
    monkeypatch.setattr(
        fused, "backend_of_outputs", lambda _, m: None if runner.refuse_outputs(m) else runner
    )
    monkeypatch.setattr(
        stacked_loop, "backend_of_fits", lambda d, n: None if fits.refuse(d, n) else fits
    )
    monkeypatch.setattr(on_cpu, "launches", fits.launches)
    return fits


@pytest.mark.parametrize(
    ("shape", "own_x"), [*((s, False) for s in SHAPES), ("batch", True), ("image", True)]
)
def test_one_launch_an_iteration(shape, own_x, dtype):
    counted(sides_of(dtype, shape, own_x=own_x, momentum=0.9))


@pytest.mark.parametrize("shape", ["image", "outputs"])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_every_criterion(name, reduction, shape, dtype):
    case = CASES[name]
    sides = sides_of(dtype, shape, lambda nn: case.make(nn, dtype, reduction), target=case.target,
                     lr=0.01)  # fmt: skip
    for side in sides:
        with torch.no_grad():
            side.model.coefficients[0] += 2  # rates are positive
    counted(sides)
    fused_step = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)
    counted(sides, lambda s: fused_step(s.xs, s.ys) if s is sides[0] else step(s))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("optimizer", [c.__name__ for c in FUSED])
def test_every_optimizer(optimizer, apart, dtype, monkeypatch):
    """apart: numbers that torch keeps once for all parameters lie in the host's memory; where they
    do not, the step is torch's."""
    if apart:
        monkeypatch.setattr(tables, "lies_apart", lambda t, _: t.ndim == 0)
    sides = sides_of(dtype, "image", optimizer=optimizer, lr=0.01)
    counted(sides)
    mine, torchs = sides[0].optimizer, []
    with monkeypatch.context() as patch:
        its = type(mine)._torch_step
        patch.setattr(type(mine), "_torch_step", lambda o: torchs.append(o) or its(o))
        for side in sides:
            step(side)
    assert bool(torchs) == (not apart and "step" in mine.state[sides[0].model.coefficients])
    for side in sides:
        side.optimizer.param_groups[0]["lr"] = 0.005
    counted(sides)


def test_whoever_holds_an_alias_of_a_parameter_sees_every_step(dtype, device):
    sides = sides_of(dtype, momentum=0.9)
    check(sides, lambda side, _: [step(side).detach()])
    aliases = [side.model.coefficients.detach() for side in sides]
    before = device.launches()
    check(sides, lambda side, _: [step(side).detach(), aliases[sides.index(side)].clone()])
    assert device.launches() - before == 6


def test_old_results_are_still_there_after_steps(dtype):
    sides = sides_of(dtype)
    kept = [[], []]

    def script(side, epoch):
        mine = kept[sides.index(side)]
        mine.append(retained(side))
        return [v for p, q in mine for v in (p.detach()[0], p.sum().detach(), q.detach())]

    check(sides, script)


def test_a_fused_step_goes_on_in_the_same_memory(device, monkeypatch):
    """So that a graph can replay it: nothing is copied, and a loss is all that is new."""
    sides = sides_of(torch.float32, momentum=0.9)
    (side, _), recorded = sides, Recorded(device, monkeypatch, "launch_step")
    one = pf.fuse(side.model, side.criterion, side.optimizer)
    for _ in range(5):
        calls = len(recorded.names)
        with recorded:
            one(side.xs, side.ys)
        step(sides[1])
        for found, truth in zip(side.numbers(), sides[1].numbers(), strict=True):
            torch.testing.assert_close(found, truth)
    assert recorded.names[calls:] == ["sum", "_to_copy"]


def test_after_a_capture_parameters_stay_where_the_graph_has_them(monkeypatch, device):
    (side, other), capturing = sides_of(torch.float64, momentum=0.9), DeviceLoop.capturing
    for _ in range(3):
        step(side)
    monkeypatch.setattr(DeviceLoop, "capturing", lambda loop: True)
    step(side)
    monkeypatch.setattr(DeviceLoop, "capturing", capturing)
    before = side.model.coefficients.data_ptr()
    step(side)
    assert side.model.coefficients.data_ptr() == before
    for _ in range(5):
        step(other)
    for found, truth in zip(side.numbers(), other.numbers(), strict=True):
        torch.testing.assert_close(found, truth)


def test_what_kernels_cannot_take_is_torchs_or_an_error(device):
    x = torch.linspace(-1, 1, 9000)
    deep = pf.nn.Polynomial(20, batch_shape=(3,))
    assert type(deep(x)) is torch.Tensor
    few = pf.nn.Polynomial(2, batch_shape=(3,))
    y, before = torch.zeros(9000, 3), device.launches()
    pf.nn.MSELoss()(few(x), y).backward()
    assert device.launches() == before
    for model, message in ((deep, "no kernels for 3 fits of 21"), (few, "too few for a thread")):
        optimizer = pf.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=f"model: .*{message}"):
            pf.fuse(model, pf.nn.MSELoss(), optimizer)(x, y)
