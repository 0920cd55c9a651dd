"""The optimizer of the import-swap loop, used in the ways torch's own can be."""

import copy
import io
import pickle
import subprocess
import sys

import polyfuse as pf
import pytest
import torch
from polyfuse import workload

from .sides import LR, Side, check, launches, step
from .tolerance import assert_like_torch


def test_clipping_gradients(sides):
    def script(side, epoch):
        norm = []
        parameters = list(side.model.parameters())
        clip = torch.nn.utils.clip_grad_norm_
        step(side, lambda: norm.append(clip(parameters, 10.0 * (epoch % 2) + 1e-3)))
        return norm

    check(sides, script)


def test_changed_gradients_cost_one_launch_more(dtype):
    """What backward had computed is no longer right: one more kernel takes the step."""
    fast, slow = (
        Side(pf.nn, pf.optim, dtype, momentum=0.9),
        Side(torch.nn, torch.optim, dtype, momentum=0.9),
    )
    for side in (fast, slow):
        step(side)
    for _ in range(4):
        before = launches()
        for side in (fast, slow):
            step(side, lambda s=side: s.model.a.grad.clamp_(-1.0, 1.0))
        assert launches() - before == 2
        for found, truth in zip(fast.numbers(), slow.numbers(), strict=True):
            assert_like_torch(found, truth)


def test_changing_gradients_in_every_way(sides):
    def script(side, epoch):
        p = side.model.b

        def change():
            if epoch == 1:
                p.grad.mul_(0.5)
            elif epoch == 2:
                p.grad = p.grad * 0.25
            elif epoch == 3:
                p.grad.data = p.grad.data + 1
            elif epoch == 4:
                p.grad = None
            elif epoch == 5:
                p.grad.numpy()[0] = 3.0

        step(side, change)

    check(sides, script)


def test_gradients_that_somebody_keeps(sides):
    kept = {0: [], 1: []}

    def script(side, epoch):
        step(side)
        mine = kept[sides.index(side)]
        mine += [side.model.a.grad, side.model.b.grad.detach(), side.model.c.grad.numpy()]
        return [torch.as_tensor(g).item() for g in mine]

    check(sides, script)


def test_changing_lr_and_other_options(sides):
    def script(side, epoch):
        group = side.optimizer.param_groups[0]
        group["lr"] = LR * (1 + epoch)
        if epoch == 3:
            group["weight_decay"] = 0.5
        y_pred = side.model(side.xs)
        loss = side.criterion(y_pred, side.ys)
        side.optimizer.zero_grad()
        loss.backward()
        if epoch == 4:
            group["lr"] = LR / 7  # between backward and step
        if epoch == 5:
            group["maximize"] = True
        side.optimizer.step()

    check(sides, script)


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "CosineAnnealingLR"])
def test_schedulers(name, sides):
    arguments = {
        "StepLR": {"step_size": 2},
        "OneCycleLR": {"max_lr": 2e-5, "total_steps": 20},
        "CosineAnnealingLR": {"T_max": 4},
    }
    schedulers = [
        getattr(side.optim.lr_scheduler, name)(side.optimizer, **arguments[name]) for side in sides
    ]

    def script(side, epoch):
        step(side)
        schedulers[sides.index(side)].step()

    check(sides, script)


def test_lr_as_tensor(dtype):
    lrs = [torch.tensor(LR), torch.tensor(LR)]
    sides = (
        Side(pf.nn, pf.optim, dtype, lr=lrs[0]),
        Side(torch.nn, torch.optim, dtype, lr=lrs[1]),
    )

    def script(side, epoch):
        lrs[sides.index(side)].fill_(LR * (epoch + 1))
        step(side)

    check(sides, script)


def test_two_models_share_an_optimizer(dtype):
    sides = []
    for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim)):
        side = Side(nn, optim, dtype)
        side.other = workload.make_model(nn, dtype)
        both = [*side.model.parameters(), *side.other.parameters()]
        side.optimizer = optim.SGD(both, lr=LR, momentum=0.5)
        sides.append(side)

    def script(side, epoch):
        loss = side.criterion(side.model(side.xs), side.ys)
        other = side.criterion(side.other(side.xs), side.ys + 1)
        side.optimizer.zero_grad()
        loss.backward()
        if epoch != 3:
            other.backward()
        if epoch == 4:
            side.other.a.grad.zero_()
        side.optimizer.step()
        return [p.detach() for p in side.other.parameters()]

    check(sides, script)


def test_two_optimizers_on_one_model(dtype):
    sides = []
    for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim)):
        side = Side(nn, optim, dtype)
        side.optimizer = optim.SGD([side.model.a], lr=LR)
        side.second = optim.SGD([side.model.b, side.model.c], lr=LR * 3, momentum=0.3)
        sides.append(side)

    def script(side, epoch):
        loss = side.criterion(side.model(side.xs), side.ys)
        side.optimizer.zero_grad()
        side.second.zero_grad()
        loss.backward()
        side.optimizer.step()
        if epoch % 2:
            side.second.step()

    check(sides, script)


def test_a_plain_torch_optimizer(dtype):
    sides = Side(pf.nn, torch.optim, dtype), Side(torch.nn, torch.optim, dtype)
    check(sides, lambda side, _: [step(side).detach()])
    before = launches()
    step(sides[0])
    assert launches() - before == 1


def test_step_hooks_and_closures(sides):
    called = {0: [], 1: []}
    for i, side in enumerate(sides):
        side.optimizer.register_step_pre_hook(lambda *_, i=i: called[i].append(0.0))
        side.optimizer.register_step_post_hook(lambda *_, i=i: called[i].append(1.0))

    def script(side, epoch):
        step(side)

        def closure():
            side.optimizer.zero_grad()
            loss = side.criterion(side.model(side.xs), side.ys)
            loss.backward()
            return loss

        return [side.optimizer.step(closure).detach(), *called[sides.index(side)]]

    check(sides, script)


def test_step_hooks_without_any_torch_optimizer():
    """torch wraps torch.optim.SGD.step for hooks only once such an optimizer was made."""
    script = (
        "import torch, polyfuse.nn as nn, polyfuse.optim as optim\n"
        "m = nn.Polynomial(1); o = optim.SGD(m.parameters(), lr=0.1)\n"
        "o.register_step_pre_hook(lambda *_: print('pre'))\n"
        "o.register_step_post_hook(lambda *_: print('post'))\n"
        "nn.MSELoss()(m(torch.arange(3.0)), torch.arange(3.0)).backward(); o.step()"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["pre", "post"]


def test_state_dict_goes_both_ways(sides):
    for side in sides:
        step(side), step(side)
    states = [copy.deepcopy(side.optimizer.state_dict()) for side in sides]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for side, state in zip(sides, reversed(states), strict=True):
        side.optimizer.load_state_dict(state)
    check(sides, lambda side, _: [step(side).detach()])


def test_pickle_and_deepcopy(sides):
    for side in sides:
        loss = step(side)
        side.model, side.optimizer = pickle_together(side) if side is sides[0] else (
            side.model, side.optimizer)  # fmt: skip
        copied = copy.deepcopy(loss.detach())
        torch.testing.assert_close(copied, loss.detach())
    check(sides, lambda side, _: [step(side).detach()])


def pickle_together(side):
    model = pf.nn.Polynomial(2)
    assert torch.equal(pickle.loads(pickle.dumps(model)).coefficients, model.coefficients)
    twin, optimizer = copy.deepcopy((side.model, side.optimizer))
    state = pickle.loads(pickle.dumps(side.optimizer.state_dict()))
    optimizer.load_state_dict(state)
    assert type(optimizer) is pf.optim.SGD and isinstance(optimizer, torch.optim.SGD)
    buffer = io.BytesIO()
    torch.save(side.model.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    return twin, optimizer


def test_add_param_group(dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)
    for side in sides:
        side.optimizer = side.optim.SGD([side.model.a], lr=LR)

    def script(side, epoch):
        if epoch == 2:
            side.optimizer.add_param_group({"params": [side.model.c], "lr": 1e-2, "momentum": 0.5})
        for p in side.model.parameters():
            p.grad = None
        step(side)

    check(sides, script)
