"""Deferred predictions and losses, looked at and differentiated in every way."""

import polyfuse as pf
import pytest
import torch
import torch.nn.functional as F
from polyfuse.deferred import Prediction
from polyfuse.fused import TRY_AGAIN

from .sides import Side, check, retained, step


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
        y_pred, loss = retained(side)
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


def test_the_broadcast_trap_warns():
    side = Side(pf.nn, pf.optim, torch.float32)
    with pytest.warns(UserWarning, match="broadcasting"):
        side.criterion(side.model(side.xs), side.ys[:, None]).backward()


def test_many_kept_losses_do_not_mix():
    side = Side(pf.nn, pf.optim, torch.float64)
    kept = [step(side) for _ in range(50)]
    values = [loss.item() for loss in kept]
    assert len(set(values)) == 50 and values == sorted(values, reverse=True)


def test_a_prediction_has_the_shape_of_its_data():
    model = pf.nn.Polynomial(2)
    for n in (5, 7, 5, 5):
        for _ in range(3):
            y_pred = model(torch.ones(n))
            assert y_pred.shape == (n,)
            assert len(y_pred) == y_pred.numel() == n


def test_predictions_that_torch_goes_on_with_are_not_deferred_for_long(sides):
    """And are again, once the loop is one that is fused."""

    def in_vain(side):
        side.optimizer.zero_grad()
        loss = side.criterion(side.model(side.xs).unsqueeze(0), side.ys.unsqueeze(0))
        loss.backward()
        side.optimizer.step()
        return loss

    for _ in range(2):
        check(sides, lambda side, _: [in_vain(side).detach()])
    mine = sides[0]
    assert type(mine.model(mine.xs)) is torch.Tensor
    for _ in range(TRY_AGAIN):
        step(mine)
    assert isinstance(mine.model(mine.xs), Prediction)
