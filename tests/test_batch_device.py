"""Batches of fits on devices: closed form, schedulers, callbacks, slices, beside the cpu backend;
by emulated CUDA kernels, and for tests/test_triton.py by interpreted Triton kernels."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse.backends import batched, batched_cuda, batched_device
from torch.optim import lr_scheduler

from . import test_batch_training as training
from .emulated import Emulated
from .interpreter import INTERPRETED
from .test_batch import DATA, OPTIMIZERS, assert_same_run, make, model_of
from .test_schedulers import SCHEDULERS, lrs

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
SHARED = [kind for kind in DATA if kind not in ("own", "weights")]
SGD = ["sgd", "nesterov", "dampened"]


@pytest.fixture
def device(request, monkeypatch):
    if INTERPRETED:
        return "triton"
    made = batched_cuda.BatchedCuda(Emulated(request.getfixturevalue("emulation")))
    made.name = "emulated"
    monkeypatch.setitem(batched.HOMES, made.name, lambda: made)
    request.addfinalizer(batched.backend_called.cache_clear)
    return made.name


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("name", SGD)
def test_closed_form(name, kind, every, device):
    x, y, more = make(kind)
    result = assert_same_run(
        (device, "cpu"), OPTIMIZERS[name], nn.MSELoss(), x, y, parts=(11, 7), record_every=every,
        **more,
    )  # fmt: skip
    assert result.engine == "closed_form"
    assert result.launches == (2 if kind == "gaps" else 1)


@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_closed_form_of_few_epochs(name, epochs, device):
    x, y, _ = make("shared", fits=130 if not INTERPRETED else 13)
    for every in (None, 1, 2):
        assert_same_run(
            (device, "cpu"), OPTIMIZERS[name], nn.MSELoss(reduction="sum"), x, y / 100,
            parts=(epochs,), record_every=every, engine="closed_form",
        )  # fmt: skip


@pytest.mark.parametrize("basis", ["monomial", "legendre"])
@pytest.mark.parametrize("degree", [0, 1, 3, 4, 6])
def test_closed_form_of_every_degree(degree, basis, dtype, device):
    x, y, _ = make("shared", n=30, dtype=dtype)
    left = []
    for backend in (device, "cpu"):
        model = model_of(degree=degree, basis=basis, dtype=dtype)
        optimizer = OPTIMIZERS["nesterov"](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=10_000, backend=backend)
        assert result.engine == "closed_form" and result.launches == 1
        left.append(torch.cat([model.coefficients.detach().double(), result.loss[None]]))
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else CLOSE
    torch.testing.assert_close(*left, **close)


def test_closed_form_of_what_no_optimizer_holds_and_of_what_diverges(device):
    x, y, _ = make("shared")
    model, other = model_of(), nn.Polynomial(1)
    before = model.coefficients.detach().clone()
    result = pf.fit(model, nn.MSELoss(), torch.optim.SGD(other.parameters(), lr=0.1), x, y,
                    epochs=9, engine="closed_form", record_every=2, backend=device)  # fmt: skip
    assert torch.equal(model.coefficients, before)
    np.testing.assert_allclose(result.history[0], result.loss)
    y[:, 4] = 0.0
    with torch.no_grad():
        model.coefficients[:, 4] = 0.0
    with pytest.warns(RuntimeWarning, match="12 of 13 fits diverged"):
        result = pf.fit(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=9.0), x, y,
                        epochs=5000, engine="closed_form", backend=device)  # fmt: skip
    assert result.counts() == {"step_limit": 1, "diverged": 12}
    assert not model.coefficients[:, 4].any() and result.loss[4] == 0


@pytest.mark.parametrize("engine", ["auto", "stream"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name, optimizer, engine, device):
    x, y, _ = make("shared")
    outcomes = []
    for backend in (device, "cpu"):
        model = model_of()
        made = OPTIMIZERS[optimizer](model.parameters())
        scheduler = SCHEDULERS[name](made)
        for epochs in (13, 6):
            result = pf.fit(model, nn.MSELoss(), made, x, y, epochs=epochs, engine=engine,
                            scheduler=scheduler, record_every=1, backend=backend)  # fmt: skip
        outcomes.append((result, model.coefficients, lrs(made)))
    (a, p, rates), (b, q, wanted) = outcomes
    assert rates == wanted and (a.engine, a.launches) == (b.engine, b.launches)
    torch.testing.assert_close(p, q, **CLOSE)
    torch.testing.assert_close(p.grad, q.grad, **CLOSE)
    np.testing.assert_allclose(a.history, b.history, **CLOSE)


def test_momentum_that_a_schedule_brings_in(device):
    training.test_momentum_that_a_schedule_brings_in(device)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("nesterov", "closed_form"),
        ("nesterov", "stream"),
        ("adam", "moments"),
        ("asgd", "moments"),
        ("asgd", "stream"),
    ],
)
def test_a_callback_sees_what_the_cpu_leaves(name, engine, device):
    x, y, _ = make("shared", dtype=torch.float32)
    seen = {device: [], "cpu": []}
    for backend, looks in seen.items():
        model = model_of(dtype=torch.float32)
        optimizer = OPTIMIZERS[name](model.parameters())

        def look(epoch, loss, model=model, looks=looks):
            p = model.coefficients
            looks.append((epoch, p.detach().clone(), p.grad.clone(), loss.clone()))

        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=8, record_every=3,
                        engine=engine, callback=look, backend=backend)  # fmt: skip
        assert result.launches == 3
    for a, b in zip(seen[device], seen["cpu"], strict=True):
        assert a[0] == b[0]
        for left, wanted in zip(a[1:], b[1:], strict=True):
            torch.testing.assert_close(left, wanted, rtol=1e-5, atol=1e-6)


def test_a_callback_changes_things_and_stops(device):
    training.test_a_callback_changes_things_and_stops(device)


@pytest.mark.parametrize(
    ("name", "engine", "tol", "kind"),
    [
        *(("adam", "moments", 1e-3, kind) for kind in ("own", "gaps", "shared weights")),
        *(("nesterov", "stream", 1e-3, kind) for kind in ("own", "gaps", "shared weights")),
        *(("nesterov", "closed_form", None, kind) for kind in ("gaps", "shared weights")),
    ],
)
def test_launches_of_a_long_run_are_one_run(name, engine, tol, kind, monkeypatch, device):
    """Fits that have settled stay so, and what is recorded is what one launch records."""
    epochs = 20 if INTERPRETED else 60
    x, y, more = make(kind)
    outcomes = []
    for seconds in (0.2, 0.0):  # the second takes a launch for every epoch, or every record
        monkeypatch.setattr(batched_device, "SLICE_SECONDS", seconds)
        model = model_of()
        optimizer = OPTIMIZERS[name](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=epochs, engine=engine,
                        tol=tol, record_every=7, backend=device, **more)  # fmt: skip
        outcomes.append((result, model.coefficients, optimizer.state[model.coefficients]))
    (a, p, kept), (b, q, again) = outcomes
    per_epoch = 1 if engine != "closed_form" else 7 if kind != "gaps" else 3.5
    assert b.launches == -(-b.epochs // per_epoch) > a.launches
    torch.testing.assert_close(p, q, **CLOSE)
    torch.testing.assert_close(p.grad, q.grad, **CLOSE)
    assert torch.equal(a.fit_epochs, b.fit_epochs) and torch.equal(a.status, b.status)
    assert torch.equal(a.rank, b.rank)
    np.testing.assert_allclose(a.history, b.history, **CLOSE)
    np.testing.assert_array_equal(a.history_epochs, b.history_epochs)
    for key, value in kept.items():
        torch.testing.assert_close(again[key], value, **CLOSE)


def test_slices_of_float32_data_keep_float64(monkeypatch, device):
    monkeypatch.setattr(batched_device, "SLICE_SECONDS", 0.0)
    x, y, _ = make("own", dtype=torch.float32)
    outcomes = []
    for backend in (device, "cpu"):
        model = model_of(dtype=torch.float32)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=9, bounds=(-0.3, 0.9),
                        backend=backend)  # fmt: skip
        outcomes.append(torch.cat([model.coefficients.detach().double(), result.loss[None]]))
    torch.testing.assert_close(*outcomes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine", ["moments", "stream"])
def test_rank_is_that_of_the_data(engine, device):
    training.test_rank_is_that_of_the_data(engine, device)


def test_a_schedule_past_what_a_launch_follows(monkeypatch, device):
    monkeypatch.setattr("polyfuse.many.Many.max_changes", 4)
    x, y, _ = make("shared", fits=3)
    outcomes = []
    for backend in (device, "cpu"):
        model = model_of(3)
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda e: 1 / (1 + 0.1 * e))
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=12, scheduler=scheduler,
                        backend=backend)  # fmt: skip
        assert result.launches == 3
        outcomes.append(model.coefficients.detach())
    torch.testing.assert_close(*outcomes, **CLOSE)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter hears nothing for minutes")
def test_ctrl_c_leaves_whole_epochs(device):
    x, y, _ = make("own", fits=1)
    model = model_of(1)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    result = training.interrupted_after(
        1.0, lambda: pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=10**10, backend=device)
    )
    assert result.stop_reason == "interrupted" and 0 < result.epochs < 10**10
    assert result.fit_epochs.tolist() == [result.epochs]
    torch.testing.assert_close(result.loss, ((model(x) - y) ** 2).mean(0).detach())
