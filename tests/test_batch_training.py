"""What happens between the epochs of a batch: schedulers, callbacks, tol, Ctrl-C."""

import os
import signal
import threading
import time

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse.backends import batched_cpu
from torch.optim import lr_scheduler

from .test_batch import DATA, OPTIMIZERS, make, model_of
from .test_schedulers import SCHEDULERS, lrs, states

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def loop(model, optimizer, schedulers, x, y, epochs):
    """Every fit's own loss, of which a scheduler is told the mean."""
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        each = ((model(x) - y) ** 2).mean(0)
        each.sum().backward()
        optimizer.step()
        losses.append(each.detach())
        for s in schedulers:
            plateau = isinstance(s, lr_scheduler.ReduceLROnPlateau)
            s.step(each.detach().mean()) if plateau else s.step()
    return torch.stack(losses)


def assert_same_run(found, truth, schedulers):
    p, q = found[0].coefficients, truth[0].coefficients
    torch.testing.assert_close(p, q, **CLOSE)
    torch.testing.assert_close(p.grad, q.grad, **CLOSE)
    for name, value in truth[1].state[q].items():
        if value is not None:
            torch.testing.assert_close(found[1].state[p][name].double(), value.double(), **CLOSE)
    assert lrs(found[1]) == lrs(truth[1])
    assert states(schedulers[0]) == states(schedulers[1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("engine", ["auto", "stream"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name, optimizer, engine, backend):
    x, y, _ = make("shared")
    sides = []
    for library in (optim, torch.optim):
        model = model_of()
        make_optimizer = {
            "nesterov": lambda p, o: o.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
            "adam": lambda p, o: o.Adam(p, lr=0.02),
        }[optimizer]
        sides.append((model, make_optimizer(model.parameters(), library)))
    schedulers = [[SCHEDULERS[name](side[1])] for side in sides]
    for epochs in (30, 13):  # the second run goes on where the first ended
        result = pf.fit(sides[0][0], nn.MSELoss(), sides[0][1], x, y, epochs=epochs, engine=engine,
                        scheduler=schedulers[0], record_every=1, backend=backend)  # fmt: skip
        losses = loop(*sides[1], schedulers[1], x, y, epochs)
        np.testing.assert_allclose(result.history[:epochs], losses, rtol=1e-9)
        assert_same_run(*sides, schedulers)
        assert result.engine == ("moments" if engine == "auto" else engine)
        if backend == "cpu":
            assert result.launches == (epochs if name == "ReduceLROnPlateau" else 1)


@pytest.mark.parametrize("backend", ["cpu"])
def test_momentum_that_a_schedule_brings_in(backend):
    x, y, _ = make("shared")
    sides = [(m, torch.optim.SGD(m.parameters(), lr=0.01)) for m in (model_of(), model_of())]
    schedulers = []
    for _, optimizer in sides:
        group = optimizer.param_groups[0]
        s = lr_scheduler.LambdaLR(optimizer, lambda e: 1.0)
        step = s.step

        def later(step=step, group=group, s=s):
            step()
            group["momentum"] = 0.5 if s.last_epoch >= 4 else 0.0

        s.step = later
        schedulers.append([s])
    pf.fit(sides[0][0], nn.MSELoss(), sides[0][1], x, y, epochs=9, scheduler=schedulers[0],
           backend=backend)  # fmt: skip
    loop(*sides[1], schedulers[1], x, y, 9)
    for p, q in zip(*(side[0].parameters() for side in sides), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)
    buffers = [side[1].state[side[0].coefficients]["momentum_buffer"] for side in sides]
    torch.testing.assert_close(*buffers, **CLOSE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_more_changes_than_a_launch_follows(backend):
    x, y, _ = make("shared", fits=3)
    sides = [(m, torch.optim.SGD(m.parameters(), lr=0.05)) for m in (model_of(3), model_of(3))]
    schedulers = [[lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + 0.001 * e))] for _, o in sides]
    result = pf.fit(sides[0][0], nn.MSELoss(), sides[0][1], x, y, epochs=5000, backend=backend,
                    scheduler=schedulers[0])  # fmt: skip
    assert result.launches == (2 if backend == "cpu" else 0)
    loop(*sides[1], schedulers[1], x, y, 5000)
    torch.testing.assert_close(sides[0][0].coefficients, sides[1][0].coefficients, **CLOSE)


def test_a_plateau_is_that_of_the_fits_that_have_a_loss():
    x, y, _ = make("shared")
    y[:, 2] = torch.nan
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=3, threshold=0.5)
    pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=9, nan_policy="omit", scheduler=scheduler)
    assert lrs(optimizer) == [pytest.approx(1e-5)]
    assert scheduler.best < 10


@pytest.mark.parametrize("engine", ["auto", "moments", "stream"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_callback_sees_what_a_shorter_run_leaves(name, engine):
    x, y, _ = make("own" if engine == "moments" else "shared", dtype=torch.float32)
    seen = []

    def run(epochs, **more):
        model = model_of(dtype=torch.float32)
        optimizer = OPTIMIZERS[name](model.parameters())
        result = pf.fit(
            model, nn.MSELoss(), optimizer, x, y, epochs=epochs, engine=engine, record_every=5,
            **more,
        )  # fmt: skip
        return model, optimizer, result

    def look(epoch, loss):
        p = shown.coefficients
        seen.append((epoch, p.detach().clone(), p.grad.clone(), loss.clone()))

    shown = model_of(dtype=torch.float32)
    optimizer = OPTIMIZERS[name](shown.parameters())
    result = pf.fit(shown, nn.MSELoss(), optimizer, x, y, epochs=23, engine=engine, record_every=5,
                    callback=look)  # fmt: skip
    assert [epoch for epoch, *_ in seen] == [5, 10, 15, 20, 23]
    close = {"rtol": 2e-6, "atol": 1e-6}
    for epoch, p, grad, loss in seen:
        model, _, alone = run(epoch)
        torch.testing.assert_close(p, model.coefficients.detach(), **close)
        torch.testing.assert_close(grad, model.coefficients.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss, alone.loss, rtol=1e-6, atol=0)
    np.testing.assert_allclose(result.history, alone.history, rtol=1e-6)
    assert result.history_epochs.tolist() == [0, 5, 10, 15, 20, 23]
    assert result.fit_epochs.unique().tolist() == [23]


@pytest.mark.parametrize("backend", ["cpu"])
def test_a_callback_changes_things_and_stops(backend):
    x, y, _ = make("shared")
    model, looped = model_of(), model_of()
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, looped))

    def change(group, p):
        group["lr"] *= 0.5
        with torch.no_grad():
            p[0, 3] = 7.0

    def callback(epoch, loss):
        assert loss.shape == (13,)
        change(optimizer.param_groups[0], model.coefficients)
        return epoch == 6

    result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=90, record_every=3,
                    callback=callback, backend=backend)  # fmt: skip
    for _ in range(2):
        loop(looped, plain, [], x, y, 3)
        change(plain.param_groups[0], looped.coefficients)
    assert (result.epochs, result.stop_reason, result.launches) == (6, "callback", 2)
    torch.testing.assert_close(model.coefficients, looped.coefficients, **CLOSE)


def test_a_callback_that_takes_the_parameters_away():
    x, y, _ = make("shared")
    model = model_of()

    def callback(epoch, loss):
        model.coefficients = torch.nn.Parameter(model.coefficients.detach().clone())

    with pytest.raises(RuntimeError, match="callback: changed the model, or exchanged"):
        pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.05), x, y, epochs=9,
               record_every=3, callback=callback)  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("engine", ["moments", "stream"])
def test_launches_of_a_long_run_are_one_run(name, engine, kind, monkeypatch):
    """Fits that have settled stay so, and what is recorded is what one launch records."""
    x, y, more = make(kind)
    outcomes = []
    for slice_of in (batched_cpu.SLICE, 1):  # the second takes a launch for every epoch
        monkeypatch.setattr(batched_cpu, "SLICE", slice_of)
        model = model_of()
        optimizer = OPTIMIZERS[name](model.parameters())
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=60, engine=engine, tol=1e-3,
                        record_every=7, **more)  # fmt: skip
        outcomes.append((result, model.coefficients, optimizer.state[model.coefficients]))
    (a, p, kept), (b, q, again) = outcomes
    assert a.launches == 1 and b.launches == b.epochs > 10
    assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
    assert torch.equal(a.fit_epochs, b.fit_epochs) and torch.equal(a.status, b.status)
    assert torch.equal(a.rank, b.rank)
    np.testing.assert_array_equal(a.history, b.history)
    np.testing.assert_array_equal(a.history_epochs, b.history_epochs)
    for key, value in kept.items():
        torch.testing.assert_close(again[key], value)


def interrupted_after(seconds, run):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        return run()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("fits", [1, 30_000])
@pytest.mark.parametrize(("name", "engine"), [("adam", "moments"), ("sgd", "stream")])
def test_ctrl_c_leaves_whole_epochs(name, engine, fits):
    x, y, _ = make("shared", fits=fits, dtype=torch.float32)
    model = model_of(fits, dtype=torch.float32)
    optimizer = OPTIMIZERS[name](model.parameters())
    if fits == 1:  # some launches are over by then
        result = interrupted_after(
            1.0,
            lambda: pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=10**10, engine=engine),
        )
        assert result.stop_reason == "interrupted" and 0 < result.epochs < 10**10
        assert result.fit_epochs.tolist() == [result.epochs]
        assert result.seconds < 3
        torch.testing.assert_close(result.loss, ((model(x) - y) ** 2).mean(0).double().detach())
        return
    before = model.coefficients.detach().clone()
    with pytest.raises(KeyboardInterrupt):  # of the first launch, nothing is left
        interrupted_after(
            0.3,
            lambda: pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=10**10, engine=engine),
        )
    assert torch.equal(model.coefficients, before)
    assert model.coefficients.grad is None and not optimizer.state


def test_ctrl_c_is_heard_while_solving():
    fits, n = 1_000_000, 4000
    x = torch.linspace(-1, 1, n)
    y = torch.sin(9 * x)[:, None].expand(n, fits)
    model = nn.Polynomial(9, batch_shape=(fits,))
    before, started = model.coefficients.detach().clone(), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        interrupted_after(0.3, lambda: pf.solve(model, x, y))
    assert time.perf_counter() - started < 2
    assert torch.equal(model.coefficients, before)


def test_a_schedule_stands_where_the_run_ends():
    x, y, _ = make("shared")
    y[2, 3] = torch.nan
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    for nan_policy in ("raise", "propagate"):
        try:
            pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=7, scheduler=scheduler,
                   nan_policy=nan_policy)  # fmt: skip
        except ValueError:
            assert (scheduler.last_epoch, lrs(optimizer)) == (0, [0.05])
    assert (scheduler.last_epoch, lrs(optimizer)) == (7, [pytest.approx(0.0005)])


def test_progress_is_shown(capsys):
    pytest.importorskip("tqdm")
    x, y, _ = make("shared")
    model = model_of()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=200, progress=True)
    assert "200/200" in capsys.readouterr().err


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_diverging_batch_leaves_fits_at_their_optimum(momentum):
    x, y, _ = make("shared")
    model = model_of()
    y[:, 4] = 0.0
    with torch.no_grad():
        model.coefficients[:, 4] = 0.0
    optimizer = optim.SGD(model.parameters(), lr=9.0, momentum=momentum)
    with pytest.warns(RuntimeWarning, match=r"12 of \d+ fits diverged"):
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=5000)
    assert result.engine == "closed_form"
    assert result.counts() == {"step_limit": 1, "diverged": 12}
    assert not model.coefficients[:, 4].any() and result.loss[4] == 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("engine", ["moments", "stream"])
def test_rank_is_that_of_the_data(engine, backend):
    x, y, _ = make("own")
    x[:, 1] = 0.3
    x[1:, 2] = x[0, 2] + 0.5
    w = torch.ones_like(y)
    w[1:, 5] = 0.0
    model = model_of()
    result = pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.05), x, y, epochs=3,
                    engine=engine, backend=backend, sample_weight=w)  # fmt: skip
    assert result.rank.tolist() == [3, 1, 2, 3, 3, 1, *[3] * 7]
