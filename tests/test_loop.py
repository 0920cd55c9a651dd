"""The import-swap loop against the same loop on torch.nn and torch.optim."""

import copy
import io
import pickle
import subprocess
import sys

import polyfuse as pf
import pytest
import torch
import torch.nn.functional as F
from polyfuse import workload
from polyfuse.backends import REGISTRY

LR = 1e-5


class Side:
    """One of the two libraries with its model, criterion, optimizer and data."""

    def __init__(self, nn, optim, dtype, **options):
        self.nn, self.optim = nn, optim
        self.xs, self.ys = workload.data(dtype)
        self.model = workload.make_model(nn, dtype)
        self.criterion = nn.MSELoss()
        self.optimizer = optim.SGD(self.model.parameters(), **({"lr": LR} | options))

    def numbers(self):
        out = [p.detach().clone() for p in self.model.parameters()]
        out += [p.grad for p in self.model.parameters() if p.grad is not None]
        for p in self.model.parameters():
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                out.append(buffer)
        return [t.reshape(-1)[0] for t in out]


@pytest.fixture(params=[{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
                ids=["plain", "momentum"])  # fmt: skip
def sides(request, dtype):
    return (
        Side(pf.nn, pf.optim, dtype, **request.param),
        Side(torch.nn, torch.optim, dtype, **request.param),
    )


def check(sides, script):
    """Runs script(side, epoch) -> values to compare, on both sides, for several epochs."""
    rtol, atol = (2e-5, 2e-5) if sides[0].xs.dtype == torch.float32 else (1e-11, 1e-11)
    for epoch in range(6):
        values = []
        for side in sides:
            extra = script(side, epoch)
            values.append([*side.numbers(), *(extra or [])])
        assert len(values[0]) == len(values[1])
        for found, truth in zip(*values, strict=True):
            torch.testing.assert_close(
                torch.as_tensor(found), torch.as_tensor(truth), rtol=rtol, atol=atol
            )


def step(side, before_step=None):
    y_pred = side.model(side.xs)
    loss = side.criterion(y_pred, side.ys)
    side.optimizer.zero_grad()
    loss.backward()
    if before_step:
        before_step()
    side.optimizer.step()
    return loss


def launches():
    return REGISTRY["cpu"].launches()


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


def test_reading_the_loss(sides):
    kept = {0: [], 1: []}

    def script(side, epoch):
        loss = step(side)
        which = sides.index(side)
        kept[which].append(loss)
        seen = [
            loss.item(),
            float(loss.detach()),
            float(f"{loss:.6e}"),
            loss.detach(),
            loss.data,
            loss + 1,
        ]
        seen += [old.item() for old in kept[which]]
        assert repr(loss).startswith("tensor(")
        return seen

    check(sides, script)


def test_reading_before_backward(sides):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        a = y_pred.detach().numpy().copy()
        loss = side.criterion(y_pred, side.ys)
        b = loss.item()
        side.optimizer.zero_grad()
        loss.backward()
        side.optimizer.step()
        return [a, b, y_pred.detach(), y_pred.sum(), torch.sin(y_pred).detach()]

    check(sides, script)


def test_clipping_gradients(sides):
    def script(side, epoch):
        norm = []
        parameters = list(side.model.parameters())
        clip = torch.nn.utils.clip_grad_norm_
        step(side, lambda: norm.append(clip(parameters, 10.0 * (epoch % 2) + 1e-3)))
        return norm

    check(sides, script)


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


def test_backward_twice_and_accumulation(sides):
    def script(side, epoch):
        side.optimizer.zero_grad(set_to_none=epoch % 2 == 0)
        for _ in range(3):
            side.criterion(side.model(side.xs), side.ys).backward()
        side.optimizer.step()
        loss = side.criterion(side.model(side.xs), side.ys)
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        side.optimizer.step()

    check(sides, script)


def test_two_losses_of_one_prediction(sides):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        first = side.criterion(y_pred, side.ys)
        second = side.criterion(y_pred, side.ys * 2)
        side.optimizer.zero_grad()
        if epoch % 2:
            (first + 0.5 * second).backward()
        else:
            first.backward(retain_graph=True)
            second.backward()
        side.optimizer.step()
        y_pred = side.model(side.xs)
        first, second = side.criterion(y_pred, side.ys), side.criterion(y_pred, side.ys)
        first.backward()
        with pytest.raises(RuntimeError, match="second time"):
            second.backward()
        side.optimizer.zero_grad()

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


@pytest.mark.parametrize(
    "criterion",
    [
        torch.nn.MSELoss(),
        torch.nn.MSELoss(reduction="sum"),
        F.mse_loss,
        lambda p, y: F.mse_loss(p, y, reduction="sum"),
        lambda p, y: ((p - y) ** 2).mean(),
        lambda p, y: (p - y).pow(2).sum(),
        lambda p, y: torch.mean(torch.square(y - p)),
        lambda p, y: ((p - y) * (p - y)).mean(),
    ],
)
def test_other_ways_to_write_the_criterion(criterion, dtype):
    sides = Side(pf.nn, pf.optim, dtype, lr=1e-6), Side(torch.nn, torch.optim, dtype, lr=1e-6)
    for side in sides:
        side.criterion = criterion
    check(sides, lambda side, _: [step(side).detach()])


@pytest.mark.parametrize(
    "criterion",
    [
        lambda p, y: (p - y).abs().mean(),
        lambda p, y: (((p - y) ** 2) * torch.arange(9)).mean(),
        lambda p, y: ((y - p) ** 3).sum() * 1e-3,
        lambda p, y: F.mse_loss(p[2:5], y[2:5]),
        lambda p, y: F.mse_loss(p, y, reduction="none").sum(),
        lambda p, y: F.mse_loss(y, p),
        lambda p, y: torch.stack([p, y]).var(),
        lambda p, y: ((p - y) ** 2).mean().sqrt(),
        lambda p, y: (p.view(3, 3) - y.view(3, 3)).norm(),
    ],
)
def test_criteria_that_are_not_fused(criterion, dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)
    for side in sides:
        side.criterion = criterion
    check(sides, lambda side, _: [step(side).detach()])


def test_reduction_none_and_its_gradient(sides):
    def script(side, epoch):
        loss = side.nn.MSELoss(reduction="none")(side.model(side.xs), side.ys)
        side.optimizer.zero_grad()
        loss.backward(torch.ones_like(loss) * 0.1)
        side.optimizer.step()
        return [loss.detach()]

    check(sides, script)


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


def test_data_changed_before_it_was_used_is_an_error():
    side = Side(pf.nn, pf.optim, torch.float32)
    y_pred = side.model(side.xs)
    loss = side.criterion(y_pred, side.ys)
    side.xs.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation: x"):
        loss.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation: x"):
        y_pred.detach()


def test_a_prediction_looked_at_after_the_step(sides):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        loss = side.criterion(y_pred, side.ys)
        side.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        side.optimizer.step()
        values = [y_pred.detach().clone(), loss.detach().clone()]
        loss.backward()  # the gradient of the parameters of before
        return [*values, (y_pred * 2).detach(), y_pred.max().item()]

    check(sides, script)


def test_a_gradient_through_an_old_prediction(dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)

    def script(side, epoch):
        y_pred = side.model(side.xs)
        side.criterion(y_pred, side.ys).backward(retain_graph=True)
        side.optimizer.step()
        side.optimizer.zero_grad()
        torch.cos(y_pred * 0.01).sum().backward()
        side.optimizer.step()

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


def test_hooks_on_predictions_and_losses(sides):
    called = {0: [], 1: []}

    def script(side, epoch):
        mine = called[sides.index(side)]
        y_pred = side.model(side.xs)
        y_pred.register_hook(lambda g: mine.append(g.sum().item()))
        loss = side.criterion(y_pred, side.ys)
        loss.register_hook(lambda g: mine.append(g.item()))
        y_pred.retain_grad()
        side.optimizer.zero_grad()
        loss.backward()
        side.optimizer.step()
        return [*mine, y_pred.grad]

    check(sides, script)


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


def test_autograd_functions(sides):
    def script(side, epoch):
        loss = side.criterion(side.model(side.xs), side.ys)
        grads = torch.autograd.grad(loss, list(side.model.parameters()))
        side.optimizer.zero_grad()
        torch.autograd.backward(side.criterion(side.model(side.xs), side.ys))
        side.optimizer.step()
        loss = side.criterion(side.model(side.xs), side.ys)
        (g,) = torch.autograd.grad(loss, side.model.a, create_graph=True)
        (second,) = torch.autograd.grad(g, side.model.a)
        assert loss.grad_fn is not None and loss.requires_grad and not loss.is_leaf
        return [*grads, second]

    check(sides, script)


def test_a_frozen_parameter_and_its_thawing(sides):
    def script(side, epoch):
        side.model.b.requires_grad_(epoch not in (2, 3))
        return [step(side).detach()]

    check(sides, script)


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
    before = launches()
    workload.loop(model, criterion, optimizer, x, y, 300)
    assert launches() - before == 300  # computing the moments is a launch as well
    truth = torch.nn.Sequential()
    truth = pf.nn.Polynomial(3, dtype=torch.float64)
    plain = torch.optim.SGD(truth.parameters(), lr=0.1)
    pf.fit(truth, criterion, plain, x, y, epochs=301)
    torch.testing.assert_close(model.coefficients, truth.coefficients, rtol=1e-10, atol=1e-12)


def test_the_broadcast_trap_warns():
    side = Side(pf.nn, pf.optim, torch.float32)
    with pytest.warns(UserWarning, match="broadcasting"):
        side.criterion(side.model(side.xs), side.ys[:, None]).backward()


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


def test_many_kept_losses_do_not_mix():
    side = Side(pf.nn, pf.optim, torch.float64)
    kept = [step(side) for _ in range(50)]
    values = [loss.item() for loss in kept]
    assert len(set(values)) == 50 and values == sorted(values, reverse=True)
