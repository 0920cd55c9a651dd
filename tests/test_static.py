"""Promised data of every kind of model: what plain PyTorch does, from sums taken once."""

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse import _C

from .tolerance import assert_relative

N = 333


class Calls:
    """cos, and how often it was called."""

    def __init__(self):
        self.n = 0

    def __call__(self, x):
        self.n += 1
        return torch.cos(x)


def side_by_side(x):
    return torch.stack([x.sin(), x**2, 1 - x], 1)


# The arguments of a Polynomial, and x and y made of numbers [N].
MODELS = {
    "one variable": ({"degree": 3}, lambda x: (x, x.sin())),
    "several variables": (
        {"degree": 2, "variables": 2},
        lambda x: (torch.stack([x, x.cos()], 1), x.sin()),
    ),
    "functions": ({"basis": [torch.ones_like, Calls()]}, lambda x: (x, x.sin())),
    "one function": ({"basis": [torch.cos]}, lambda x: (x, x.sin())),
    "a long series": (
        {"degree": 11, "basis": "chebyshev", "domain": (-1, 1)},
        lambda x: (x, (5 * x).sin()),
    ),
    "outputs": ({"degree": 2, "outputs": 3}, lambda x: (x, side_by_side(x))),
    "outputs in a basis": (
        {"degree": 3, "outputs": 3, "basis": "legendre", "domain": (-2, 2)},
        lambda x: (x, side_by_side(x)),
    ),
    "a batch": ({"degree": 2, "batch_shape": (3,)}, lambda x: (x, side_by_side(x))),
    "a batch, own x": (
        {"degree": 2, "batch_shape": (3,)},
        lambda x: (torch.stack([x, 0.5 * x, x + 0.1], 1), side_by_side(x)),
    ),
}


class Traced(nn.Module):
    """Of two columns of x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return x[:, 0] * x[:, 1] * self.w[0] + x[:, 1] * self.w[1] ** 2 + self.w[1]


def make(name):
    if name == "traced":
        x, y = MODELS["several variables"][1](numbers())
        return Traced(), x, y
    how, data = MODELS[name]
    return nn.Polynomial(**how, dtype=torch.float64), *data(numbers())


def numbers():
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(N, generator=generator, dtype=torch.float64) - 1


def optimizer_of(model, kind="sgd"):
    if kind == "adam":
        return optim.Adam(model.parameters(), lr=0.01)
    return optim.SGD(model.parameters(), lr=0.05, momentum=0.5)


def loop(call, criterion, optimizer, x, y, steps):
    losses = []
    for _ in range(steps):
        loss = criterion(call(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def stepped(model, criterion, optimizer, x, y, steps, how):
    if how == "loop":
        return loop(model, criterion, optimizer, x, y, steps)
    step = pf.fuse(model, criterion, optimizer)
    return [step(x, y).item() for _ in range(steps)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("how", ["loop", "fuse"])
@pytest.mark.parametrize("name", [*MODELS, "traced"])
def test_steps_are_those_of_torch(name, how, reduction):
    """Also once the data is overwritten past the version counter: from then on it is not read."""
    model, x, y = make(name)
    plain, x_then, y_then = make(name)
    criterion = nn.MSELoss(reduction=reduction)
    optimizers = [
        optim.Adam(m.parameters(), lr=0.01) if reduction == "sum" else optimizer_of(m)
        for m in (model, plain)
    ]
    assert pf.static(x, y) == (x, y)
    losses = stepped(model, criterion, optimizers[0], x, y, 3, how)
    y.numpy()[:] = 7.0
    before = _C.launches()
    losses += stepped(model, criterion, optimizers[0], x, y, 20, how)
    assert _C.launches() - before == 20
    truth = loop(plain.forward, criterion, optimizers[1], x_then, y_then, 23)
    assert_relative(losses, truth, 1e-9)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_changed_data_is_read_again(name):
    model, x, y = make(name)
    plain, *same = make(name)
    criterion, losses = nn.MSELoss(), []
    optimizers = [optimizer_of(m) for m in (model, plain)]
    pf.static(x, y)
    for change in (x, y):
        losses += stepped(model, criterion, optimizers[0], x, y, 3, "loop")
        losses += stepped(model, criterion, optimizers[0], x, y, 3, "fuse")
        change.mul_(0.8)
    losses += stepped(model, criterion, optimizers[0], x, y, 3, "fuse")
    truth = []
    for change in same:
        truth += loop(plain.forward, criterion, optimizers[1], *same, 6)
        change.mul_(0.8)
    truth += loop(plain.forward, criterion, optimizers[1], *same, 3)
    assert_relative(losses, truth, 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_what_needs_the_data_reads_it(name):
    model, x, y = make(name)
    plain, *same = make(name)
    pf.static(x, y)
    optimizers = [optimizer_of(m) for m in (model, plain)]
    w = torch.linspace(0.5, 2, y.numel(), dtype=torch.float64).view(y.shape)
    step = pf.fuse(model, nn.MSELoss(), optimizers[0])
    found = [step(x, y, sample_weight=w).item() for _ in range(3)]
    found += stepped(model, nn.HuberLoss(), optimizers[0], x, y, 3, "loop")
    found += stepped(model, nn.MSELoss(), optimizers[0], x, y, 3, "loop")

    def weighted(prediction, target):
        return (w * (prediction - target) ** 2).sum() / w.sum()

    truth = loop(plain.forward, weighted, optimizers[1], *same, 3)
    truth += loop(plain.forward, nn.HuberLoss(), optimizers[1], *same, 3)
    truth += loop(plain.forward, nn.MSELoss(), optimizers[1], *same, 3)
    assert_relative(found, truth, 1e-9)


@pytest.mark.parametrize("name", ["functions", "a long series", "one function"])
def test_steps_without_a_promise(name):
    """x and y are others in every step."""
    model, x, y = make(name)
    plain = make(name)[0]
    optimizers = [optimizer_of(m) for m in (model, plain)]
    step = pf.fuse(model, nn.MSELoss(), optimizers[0])
    for n in (N, N - 1, 1, 7):
        data = x[:n].clone(), y[:n].clone()
        (truth,) = loop(plain.forward, nn.MSELoss(), optimizers[1], *data, 1)
        assert_relative(step(*data).item(), truth, 1e-10)
    torch.testing.assert_close(model.coefficients, plain.coefficients, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"y: expected .*\(7,\), got \(6,\)|x: .*\(6,\)"):
        step(x[:7], y[:6])


def test_functions_are_called_once_and_learn_where_they_can():
    count = Calls()
    x = numbers()
    model = nn.Polynomial(basis=[torch.ones_like, count], dtype=torch.float64)
    pf.static(x, y := x.sin())
    for how in ("loop", "fuse", "loop"):
        stepped(model, nn.MSELoss(), optimizer_of(model), x, y, 5, how)
    assert count.n == 1
    assert torch.equal(model(x), model.forward(x))
    assert "loop over data that static promises" in pf.explain(model)
    rate = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    learns = nn.Polynomial(basis=[lambda v: (rate * v).sin()], dtype=torch.float64)
    optimizer = optim.SGD([*learns.parameters(), rate], lr=0.1)
    loop(learns, nn.MSELoss(), optimizer, x, y, 5)
    assert rate.item() != 1.0


def test_far_more_samples_than_a_block():
    n = 700_000
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y = torch.stack([x.exp(), x.sin()], 1)
    pf.static(x, y)
    model = nn.Polynomial(5, outputs=2, basis="chebyshev", dtype=torch.float64)
    fitted = nn.Polynomial(5, outputs=2, basis="chebyshev", dtype=torch.float64)
    losses = stepped(model, nn.MSELoss(), optimizer_of(model), x, y, 50, "loop")
    result = pf.fit(fitted, nn.MSELoss(), optimizer_of(fitted), x, y, epochs=50, record_every=1)
    assert_relative(losses, result.history[:50], 1e-9)


def test_bad_input():
    x = numbers()
    for bad, message in (
        ((x, x[:5]), "y: expected as many samples as x"),
        ((x[:0], x[:0]), "x: expected at least one sample"),
    ):
        with pytest.raises(ValueError, match=message):
            pf.static(*bad)
    with pytest.raises(TypeError, match="y: expected the dtype of x"):
        pf.static(x, x.float())
