"""Cross entropy by interpreted Triton kernels; tests/test_triton.py has this file run."""

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse import fused
from polyfuse.backends import REGISTRY, launch

from .fake_device import take_for_a_device
from .sides import check, step
from .test_classes import CRITERIA, NOTHING_COUNTS, data, once, two_models
from .test_classes_loop import OPTIONS, TARGETS, criterion, sides_of
from .test_optimizers import CASES as OPTIMIZERS


def assert_same_run(criterion, x, y, make, *, parts=(5, 3), degree=2, basis="monomial", **options):
    models = two_models(x.dtype, degree, basis=basis)
    results = []
    for model, backend in zip(models, ("triton", "cpu"), strict=True):
        optimizer = make(model.parameters())
        for epochs in parts:
            before = launch.launches
            result = pf.fit(
                model, criterion, optimizer, x, y, epochs=epochs, backend=backend, record_every=2,
                **options,
            )  # fmt: skip
            assert (result.backend, result.launches) == (backend, 1)
            assert launch.launches - before == (backend == "triton")
        state = optimizer.state[model.coefficients]
        numbers = [v for v in state.values() if isinstance(v, torch.Tensor)]
        results.append([model.coefficients.detach(), model.coefficients.grad, *numbers])
        results[-1].append(torch.tensor([result.loss, *result.history]))
    close = {"rtol": 1e-9, "atol": 1e-11} if x.dtype == torch.float64 else {}
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, **close)


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
@pytest.mark.parametrize("options", CRITERIA)
@pytest.mark.parametrize("n", [1, 9, 1003])
def test_criteria(n, options, targets, dtype):
    x, y, shares = data(n, dtype)
    options = {k: v.to(dtype) if k == "weight" else v for k, v in CRITERIA[options].items()}
    if targets == "probabilities":
        y = shares[:, torch.tensor([3, 1, 0, 2])].T.contiguous().T  # samples lie side by side
        options.pop("ignore_index", None)
    elif n == 1:
        y = torch.tensor([3])
    w = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=dtype)
    w[1::3] = 0.0
    for more in ({}, {"sample_weight": w}):
        assert_same_run(
            nn.CrossEntropyLoss(**options), x, y, lambda p: optim.SGD(p, lr=0.3 / n, momentum=0.5),
            **more,
        )  # fmt: skip


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_every_optimizer(name, options):
    x, y, _ = data(40)
    assert_same_run(nn.CrossEntropyLoss(), x, y, lambda p: getattr(optim, name)(p, **options))


@pytest.mark.parametrize("basis", ["chebyshev", "laguerre"])
@pytest.mark.parametrize("degree", [0, 1, 4])
def test_bases(degree, basis):
    x, y, _ = data(40)
    assert_same_run(
        nn.CrossEntropyLoss(label_smoothing=0.1), x[::2], y[::2], lambda p: optim.SGD(p, lr=0.1),
        degree=degree, basis=basis,
    )  # fmt: skip


def test_tol_stops():
    x, y, _ = data(30)
    assert_same_run(
        nn.CrossEntropyLoss(), x, y, lambda p: optim.SGD(p, lr=0.5), parts=(10**6,), tol=1e-3
    )


@pytest.mark.parametrize("name", NOTHING_COUNTS)
def test_what_counts_nothing_or_loses_everything_is_torchs(name):
    y, options = NOTHING_COUNTS[name]
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    y = torch.tensor(y, dtype=torch.float64 if isinstance(y[0], list) else torch.int64)
    found, wanted = (once(make, x, y, **options) for make in ("triton", "torch"))
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_what_the_backend_refuses():
    for degree, outputs, message in (
        (16, 2, "17 coefficients of a class, more than 16"),
        (4, 200, "2048 coefficients, padded to powers of two, more than 1024"),
    ):
        model = nn.Polynomial(degree, outputs=outputs)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=message):
            pf.fit(model, nn.CrossEntropyLoss(), optimizer, torch.ones(3), torch.tensor([0, 1, 0]),
                   epochs=2, backend="triton")  # fmt: skip


@pytest.fixture
def loop_on_triton(monkeypatch):
    runner = REGISTRY["triton"]
    take_for_a_device(monkeypatch, runner)
    monkeypatch.setattr(fused, "backend_of_classes", lambda *_: runner)
    return runner


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_loop_and_fuse(name, targets, dtype, loop_on_triton):
    for make in (torch.nn, None):  # a module, and the function
        sides = sides_of(
            dtype, targets, lambda nn, m=make: criterion(name, targets, dtype, m and nn)
        )
        check(sides, lambda side, _: [step(side).detach()])
        before = launch.launches
        for _ in range(5):
            step(sides[0])
        assert launch.launches - before == 5
        for _ in range(5):
            step(sides[1])
    side = sides[0]
    one = pf.fuse(side.model, criterion(name, targets, dtype, pf.nn), side.optimizer)
    before = launch.launches
    check(sides, lambda s, _: [one(s.xs, s.ys) if s is side else step(s).detach()])
    assert launch.launches - before == 6


@pytest.mark.parametrize("optimizer", ["Adam", "Rprop", "ASGD"])
def test_optimizers_in_the_loop_and_what_is_looked_at(optimizer, dtype, loop_on_triton):
    sides = sides_of(dtype, optimizer=optimizer, lr=0.01)

    def script(side, epoch):
        y_pred = side.model(side.xs)
        accuracy = (y_pred.argmax(1) == side.ys).double().mean()
        loss = side.criterion(y_pred, side.ys)
        side.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(side.model.parameters(), 0.5)
        side.optimizer.step()
        again = side.criterion(side.model(side.xs), side.ys)
        return [accuracy, loss.detach(), again.detach()]

    check(sides, script)


def test_a_class_out_of_range_is_an_error(loop_on_triton):
    side = sides_of(torch.float64)[0]
    step(side)
    side.ys[3] = 9
    far, before = side.ys.clone(), side.model.coefficients.detach().clone()
    with pytest.raises(IndexError):
        side.criterion(side.model(side.xs), far).backward()
    assert torch.equal(side.model.coefficients, before)
