"""Defects that torch's own test files let through: every fused optimizer is without them, and
subclasses that have them are found out."""

import pickle

import polyfuse as pf
import pytest
import torch
from polyfuse.optim.classes import FUSED

X = torch.linspace(-1, 1, 9, dtype=torch.float64)
Y = torch.sin(3 * X)


def train(cls, between=lambda optimizer: optimizer, **options):
    """Coefficients after some steps; between: what the optimizer becomes halfway."""
    nn = torch.nn if cls.__module__.startswith("torch") else pf.nn
    torch.manual_seed(0)
    model = pf.nn.Polynomial(2, dtype=torch.float64)
    optimizer, criterion = cls(model.parameters(), **options), nn.MSELoss()
    for epoch in range(8):
        if epoch == 4:
            optimizer = between(optimizer)
            (model.coefficients,) = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        criterion(model(X), Y).backward()
        optimizer.step()
    return model.coefficients.detach()


def torchs(cls):
    return next(c for c in cls.__mro__ if c.__module__.startswith("torch."))


def assert_torchs(cls, *arguments, **options):
    truth = train(torchs(cls), *arguments, **options)
    torch.testing.assert_close(train(cls, *arguments, **options), truth)


def has_nesterov(cls):
    if issubclass(cls, torch.optim.SGD):
        assert_torchs(cls, lr=0.1, momentum=0.9, nesterov=True)


def can_be_pickled(cls):
    def through_a_file(optimizer):
        found = pickle.loads(pickle.dumps(optimizer))
        assert type(found) is cls
        return found

    found, truth = train(cls, through_a_file, lr=0.1), train(torchs(cls), lr=0.1)
    torch.testing.assert_close(found, truth)


def refuses_a_negative_lr(cls):
    for lr in (-0.1, torch.tensor(-0.1)):
        with pytest.raises(ValueError, match="Invalid learning rate"):
            cls([torch.nn.Parameter(torch.ones(2))], lr=lr)


def follows_lr(cls):
    def halved(optimizer):
        optimizer.param_groups[0]["lr"] *= 0.5
        return optimizer

    assert_torchs(cls, halved, lr=0.1)


CHECKS = {f.__name__: f for f in (has_nesterov, can_be_pickled, refuses_a_negative_lr, follows_lr)}


class WithoutNesterov(pf.optim.SGD):
    def __init__(self, params, nesterov=False, **options):
        super().__init__(params, **options)


class PositiveLr(pf.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=abs(lr))


class CachedLr(pf.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.cached = lr

    def step(self, closure=None):
        self.param_groups[0]["lr"] = self.cached
        return super().step(closure)


def of_a_function():
    class Unpicklable(pf.optim.SGD):
        pass

    return Unpicklable


BROKEN = {
    "has_nesterov": WithoutNesterov,
    "can_be_pickled": of_a_function(),
    "refuses_a_negative_lr": PositiveLr,
    "follows_lr": CachedLr,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("cls", FUSED, ids=lambda c: c.__name__)
def test_fused_optimizers_are_without(cls, check):
    CHECKS[check](cls)


@pytest.mark.parametrize("check", CHECKS)
def test_a_broken_subclass_is_found_out(check):
    with pytest.raises(
        (AssertionError, AttributeError, pickle.PicklingError, pytest.fail.Exception)
    ):
        CHECKS[check](BROKEN[check])
    for other in CHECKS.keys() - {check, "has_nesterov", "can_be_pickled"}:
        CHECKS[other](BROKEN[check])


def test_a_closure_of_the_whole_step():
    """As trainers call it: the closure zeroes, computes and goes backward."""

    def run(nn, optim):
        torch.manual_seed(0)
        model = pf.nn.Polynomial(2, dtype=torch.float64)
        optimizer, criterion = optim.Adam(model.parameters(), lr=0.1), nn.MSELoss()
        losses = []
        for _ in range(6):

            def closure():
                optimizer.zero_grad()
                loss = criterion(model(X), Y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                return loss

            losses.append(optimizer.step(closure).detach())
        return [*losses, model.coefficients.detach()]

    for found, truth in zip(run(pf.nn, pf.optim), run(torch.nn, torch.optim), strict=True):
        torch.testing.assert_close(found, truth)


def test_a_step_that_is_differentiated_is_torchs():
    def run(optim):
        start = torch.ones(2, dtype=torch.float64, requires_grad=True)
        p = start.clone()
        optimizer = optim.SGD([p], lr=0.1, momentum=0.9, differentiable=True)
        for _ in range(3):
            p.grad = 2 * p
            optimizer.step()
        return torch.autograd.grad(p.square().sum(), start)[0]

    torch.testing.assert_close(run(pf.optim), run(torch.optim))


def test_sparse_gradients_are_torchs():
    def run(optim):
        p = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
        optimizer = optim.SGD([p], lr=0.1)
        for _ in range(3):
            p.grad = torch.sparse_coo_tensor(
                [[1, 3]], p.detach()[[1, 3]], (5,), check_invariants=True
            )
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(pf.optim), run(torch.optim))
