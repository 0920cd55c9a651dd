"""Cross entropy on devices, emulated or interpreted, against the CPU's and torch's."""

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse import fused

from .fake_device import take_for_a_device
from .interpreter import INTERPRETED
from .sides import check, step
from .test_classes import CRITERIA, NOTHING_COUNTS, data, once, two_models
from .test_classes_loop import OPTIONS, TARGETS, criterion, sides_of
from .test_optimizers import CASES as OPTIMIZERS


@pytest.fixture
def backend(on_device):
    return on_device


def assert_same_run(
    backend, criterion, x, y, make, *, parts=(5, 3), degree=2, basis="monomial", **options
):
    models = two_models(x.dtype, degree, basis=basis)
    results = []
    for model, name in zip(models, (backend.name, "cpu"), strict=True):
        optimizer = make(model.parameters())
        for epochs in parts:
            before = backend.launches()
            result = pf.fit(
                model, criterion, optimizer, x, y, epochs=epochs, backend=name, record_every=2,
                **options,
            )  # fmt: skip
            assert (result.backend, result.launches) == (name, 1)
            assert backend.launches() - before == (name != "cpu")
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
def test_criteria(n, options, targets, dtype, backend):
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
            backend, nn.CrossEntropyLoss(**options), x, y,
            lambda p: optim.SGD(p, lr=0.3 / n, momentum=0.5), **more,
        )  # fmt: skip


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_every_optimizer(name, options, backend):
    x, y, _ = data(40)
    assert_same_run(
        backend, nn.CrossEntropyLoss(), x, y, lambda p: getattr(optim, name)(p, **options)
    )


@pytest.mark.parametrize("basis", ["chebyshev", "laguerre"])
@pytest.mark.parametrize("degree", [0, 1, 4])
def test_bases(degree, basis, backend):
    x, y, _ = data(40)
    assert_same_run(
        backend, nn.CrossEntropyLoss(label_smoothing=0.1), x[::2], y[::2],
        lambda p: optim.SGD(p, lr=0.1), degree=degree, basis=basis,
    )  # fmt: skip


def test_tol_stops(backend):
    x, y, _ = data(30)
    assert_same_run(
        backend,
        nn.CrossEntropyLoss(),
        x,
        y,
        lambda p: optim.SGD(p, lr=0.5),
        parts=(10**6,),
        tol=1e-3,
    )


@pytest.mark.parametrize("n", [9, 1003])
def test_schedules_and_bounds_in_one_launch(n, dtype, backend):
    x, y, _ = data(n, dtype)
    models = two_models(dtype)
    for model, name in zip(models, (backend.name, "cpu"), strict=True):
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        before = backend.launches()
        result = pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, y, epochs=12, record_every=3,
                        scheduler=scheduler, bounds=(-0.4, 0.3), backend=name)  # fmt: skip
        assert result.launches == 1 and backend.launches() - before == (name != "cpu")
        assert scheduler.last_epoch == 12
    torch.testing.assert_close(models[0].coefficients, models[1].coefficients)
    assert models[0].coefficients.abs().max() <= 0.4


@pytest.mark.parametrize("name", NOTHING_COUNTS)
def test_what_counts_nothing_or_loses_everything_is_torchs(name, backend):
    y, options = NOTHING_COUNTS[name]
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    y = torch.tensor(y, dtype=torch.float64 if isinstance(y[0], list) else torch.int64)
    found, wanted = (once(make, x, y, **options) for make in (backend.name, "torch"))
    torch.testing.assert_close(found, wanted, equal_nan=True)


REFUSED = [(4, 13, "65 coefficients, more than 64"), (0, 33, "33 classes, more than 32")]
if INTERPRETED:
    REFUSED = [
        (16, 2, "17 coefficients of a class, more than 16"),
        (4, 200, "2048 coefficients, padded to powers of two, more than 1024"),
    ]


@pytest.mark.parametrize(("degree", "outputs", "message"), REFUSED)
def test_what_the_backend_refuses(degree, outputs, message, backend):
    model = nn.Polynomial(degree, outputs=outputs)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        pf.fit(model, nn.CrossEntropyLoss(), optimizer, torch.ones(3), torch.tensor([0, 1, 0]),
               epochs=2, backend=backend.name)  # fmt: skip


@pytest.mark.parametrize("outputs", [1, 2, 9, 32])
def test_numbers_of_classes(outputs, backend):
    x, y, _ = data(300)
    models = [nn.Polynomial(1, outputs=outputs, dtype=torch.float64) for _ in range(2)]
    for model, name in zip(models, (backend.name, "cpu"), strict=True):
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, y % outputs, epochs=5, backend=name)
    torch.testing.assert_close(models[0].coefficients, models[1].coefficients)


@pytest.fixture
def in_the_loop(backend, monkeypatch):
    """Models lie on this backend's device."""
    take_for_a_device(monkeypatch, backend)
    monkeypatch.setattr(fused, "backend_of_outputs", lambda *_: backend)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_loop_and_fuse(name, targets, dtype, in_the_loop, backend):
    for make in (torch.nn, None):  # a module, and the function
        sides = sides_of(
            dtype, targets, lambda nn, m=make: criterion(name, targets, dtype, m and nn)
        )
        check(sides, lambda side, _: [step(side).detach()])
        before = backend.launches()
        for _ in range(5):
            step(sides[0])
        assert backend.launches() - before == 5
        for _ in range(5):
            step(sides[1])
    side = sides[0]
    one = pf.fuse(side.model, criterion(name, targets, dtype, pf.nn), side.optimizer)
    before = backend.launches()
    check(sides, lambda s, _: [one(s.xs, s.ys) if s is side else step(s).detach()])
    assert backend.launches() - before == 6


@pytest.mark.parametrize("optimizer", ["Adam", "Rprop", "ASGD"])
def test_optimizers_in_the_loop_and_what_is_looked_at(optimizer, dtype, in_the_loop, backend):
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


def test_a_class_out_of_range_is_an_error(in_the_loop, backend):
    side = sides_of(torch.float64)[0]
    step(side)
    side.ys[3] = 9
    far, before = side.ys.clone(), side.model.coefficients.detach().clone()
    with pytest.raises(IndexError):
        side.criterion(side.model(side.xs), far).backward()
    assert torch.equal(side.model.coefficients, before)
