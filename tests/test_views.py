"""Predictions in another shape, as scripts make them fit their targets: still one launch a step."""

import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
import torch.nn.functional as F
from polyfuse import _C

from .tolerance import assert_like_torch

N = 32
VIEWS = {
    "squeeze": lambda y: y.squeeze(),
    "squeeze(1)": lambda y: y.squeeze(1),
    "torch.squeeze": lambda y: torch.squeeze(y, -1),
    "view": lambda y: y.view(-1),
    "reshape": lambda y: y.reshape((N,)),
    "flatten": lambda y: y.flatten(),
    "ravel": lambda y: torch.ravel(y),
    "[:, 0]": lambda y: y[:, 0],
    "twice": lambda y: y.squeeze(1).unsqueeze(1).view(N),
}
CRITERIA = {
    "module": lambda library: library.HuberLoss(),
    "function": lambda library: F.smooth_l1_loss,
    "by hand": lambda library: lambda y_pred, y: (y_pred - y).pow(2).mean(),
}


def trained(library, optimizers, view, criterion):
    torch.manual_seed(0)
    model = library.Linear(3, 1)
    optimizer = optimizers.Adam(model.parameters(), lr=0.1)
    for _ in range(12):
        x = torch.rand(N, 3)
        loss = criterion(library)(view(model(x)), x.sum(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*model.parameters(), loss]


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_trains_as_torch_in_one_launch_a_step(view, criterion):
    truth = trained(torch.nn, torch.optim, view, criterion)
    before = _C.launches()
    found = trained(nn, optim, view, criterion)
    assert _C.launches() - before == 12
    for ours, torchs in zip(found, truth, strict=True):
        assert_like_torch(ours.detach(), torchs.detach(), torch.float32)


def test_a_column_from_samples_without_one():
    x, y = torch.linspace(-1, 1, N), torch.ones(N, 1)
    model = nn.Polynomial(2)
    before = _C.launches()
    nn.MSELoss()(model(x).unsqueeze(1), y).backward()
    assert _C.launches() - before == 1
    grad, model.coefficients.grad = model.coefficients.grad, None
    F.mse_loss(torch.nn.Module.__call__(model, x).unsqueeze(1), y).backward()
    assert_like_torch(grad, model.coefficients.grad, torch.float32)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_sample_is_torchs(shape):
    model, x = nn.Polynomial(2), torch.full(shape, 2.0)
    out = model(x).squeeze()
    assert type(out) is torch.Tensor
    assert out.shape == ()


def of_both(script):
    """What script(model, x, y) gives with torch's layer and with ours."""
    found = []
    for library in (torch.nn, nn):
        torch.manual_seed(1)
        model, x, y = library.Linear(2, 1), torch.rand(N, 2), torch.rand(N)
        for _ in range(3):  # of which the last are handed out again
            model.zero_grad()
            out = script(model, x, y)
        found.append([*out, *(p.grad for p in model.parameters())])
    for torchs, ours in zip(*found, strict=True):
        assert_like_torch(ours.detach(), torchs.detach(), torch.float32)


def script_changed_before_its_view(model, x, y):
    y_pred = model(x)
    y_pred.detach().mul_(2.0)
    loss = F.mse_loss(y_pred.squeeze(1), y)
    loss.backward()
    return [loss]


def script_changed_after_its_view(model, x, y):
    y_pred = model(x)
    view = y_pred.squeeze(1)
    y_pred.data.mul_(2.0)
    loss = F.mse_loss(view, y)
    loss.backward()
    return [loss, y_pred]


def script_changed_by_its_view(model, x, y):
    y_pred = model(x)
    view = y_pred.squeeze(1)
    view += 1.0
    loss = F.mse_loss(y_pred, y.unsqueeze(1))
    loss.backward()
    return [loss, view]


def script_gradient_kept(model, x, y):
    y_pred = model(x)
    view = y_pred.squeeze(1)
    y_pred.retain_grad()
    F.mse_loss(view, y).backward()
    return [y_pred.grad]


def script_both_in_one_loss(model, x, y):
    y_pred = model(x)
    loss = F.mse_loss(y_pred.squeeze(1), y) + y_pred.sum()
    loss.backward()
    return [loss]


def script_looked_at_afterwards(model, x, y):
    y_pred = model(x)
    view = y_pred.squeeze(1)
    F.mse_loss(view, y).backward()
    return [view, y_pred, view.sum()]


def script_parameters_changed_between(model, x, y):
    y_pred = model(x)
    with torch.no_grad():
        model.bias += 1.0
    view = y_pred.squeeze(1)
    with torch.no_grad():
        model.bias -= 1.0
    loss = F.mse_loss(view, y)
    return [loss, *torch.autograd.grad(loss, model.bias), *backward(model, x, y)]


def backward(model, x, y):
    loss = F.mse_loss(model(x).squeeze(1), y)
    loss.backward()
    return [loss]


@pytest.mark.parametrize(
    "script", [s for name, s in sorted(globals().items()) if name.startswith("script_")]
)
def test_what_is_done_to_one_is_done_to_the_other(script):
    of_both(script)


def test_what_torch_refuses_is_refused():
    model, x = nn.Linear(2, 1), torch.rand(N, 2)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        model(x).view(7)
    with pytest.raises(IndexError):
        model(x).squeeze(2)
    loss = F.mse_loss(model(x).squeeze(1), torch.rand(N))
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


@pytest.mark.parametrize("view", [lambda y: y[::2, 0], lambda y: y.T, lambda y: y[[1, 0], 0]])
def test_other_samples_are_torchs(view):
    model, x = nn.Linear(2, 1), torch.rand(N, 2)
    out = view(model(x))
    assert type(out) is torch.Tensor
    assert torch.equal(out, view(torch.nn.Module.__call__(model, x)))
