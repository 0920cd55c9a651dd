"""What happens between the epochs of several outputs: schedulers, callbacks, bounds, tol."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from torch.optim import lr_scheduler

from .test_schedulers import SCHEDULERS, lrs, states

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
LOW = torch.tensor([[-0.1], [-torch.inf], [0.05]], dtype=torch.float64)
HIGH = torch.tensor([[0.3], [0.1], [torch.inf]], dtype=torch.float64)
OPTIMIZERS = {
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.02),
}
# Of a name: the criterion, and the engine that auto takes between schedules.
LOSSES = {
    "mse": (nn.MSELoss(), "moments"),
    "mse, stream": (nn.MSELoss(), "stream"),
    "huber": (nn.HuberLoss(delta=0.3), "stream"),
    "classes": (nn.CrossEntropyLoss(label_smoothing=0.1), "stream"),
    "probabilities": (nn.CrossEntropyLoss(), "stream"),
}


def data(name, n=29):
    generator = torch.Generator().manual_seed(7)
    x = 2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1
    y = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    if name == "classes":
        return x, y.argmax(1)
    return x, y.softmax(1) if name == "probabilities" else y


def sides(optimizer):
    models = [nn.Polynomial(2, outputs=3, dtype=torch.float64) for _ in range(2)]
    return [(m, OPTIMIZERS[optimizer](m.parameters())) for m in models]


def loop(model, optimizer, criterion, x, y, epochs, schedulers=(), clamp=False):
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = criterion(model.forward(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if clamp:
            with torch.no_grad():
                model.coefficients.clamp_(LOW, HIGH)
        for s in schedulers:
            plateau = isinstance(s, lr_scheduler.ReduceLROnPlateau)
            s.step(loss.detach()) if plateau else s.step()
    return losses


def assert_same_run(found, truth):
    p, q = found[0].coefficients, truth[0].coefficients
    torch.testing.assert_close(p, q, **CLOSE)
    torch.testing.assert_close(p.grad, q.grad, **CLOSE)
    for name, value in truth[1].state[q].items():
        if value is not None:
            torch.testing.assert_close(found[1].state[p][name].double(), value.double(), **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name, optimizer, loss):
    (x, y), (criterion, engine), both = data(loss), LOSSES[loss], sides(optimizer)
    schedulers = [[SCHEDULERS[name](side[1])] for side in both]
    for epochs in (30, 13):  # the second run goes on where the first ended
        result = pf.fit(*both[0][:1], criterion, both[0][1], x, y, epochs=epochs, record_every=1,
                        engine="stream" if "," in loss else "auto",
                        scheduler=schedulers[0])  # fmt: skip
        losses = loop(*both[1], criterion, x, y, epochs, schedulers[1])
        np.testing.assert_allclose(result.history[:epochs], losses, rtol=1e-9)
        assert_same_run(*both)
        assert lrs(both[0][1]) == lrs(both[1][1])
        assert states(schedulers[0]) == states(schedulers[1])
        assert result.engine == engine
        assert result.launches == (epochs if name == "ReduceLROnPlateau" else 1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bounds(optimizer, loss):
    (x, y), (criterion, engine), both = data(loss), LOSSES[loss], sides(optimizer)
    with torch.no_grad():
        both[1][0].coefficients.clamp_(LOW, HIGH)
    for epochs in (30, 13):
        result = pf.fit(both[0][0], criterion, both[0][1], x, y, epochs=epochs, record_every=1,
                        engine=engine, bounds=(LOW, HIGH))  # fmt: skip
        losses = loop(*both[1], criterion, x, y, epochs, clamp=True)
        np.testing.assert_allclose(result.history[:epochs], losses, rtol=1e-9)
        assert_same_run(*both)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_callback_sees_changes_and_stops_the_run(loss):
    (x, y), (criterion, engine), both = data(loss), LOSSES[loss], sides("adam")
    seen = []

    def callback(epoch, value):
        model, optimizer = both[0]
        seen.append((epoch, value, model.coefficients.detach().clone()))
        if epoch == 4:
            with torch.no_grad():
                model.coefficients[0, 1] = 0.25
            optimizer.param_groups[0]["lr"] = 0.01
        return epoch == 8

    result = pf.fit(both[0][0], criterion, both[0][1], x, y, epochs=50, record_every=2,
                    engine=engine, callback=callback)  # fmt: skip
    model, optimizer = both[1]
    for epoch, value, params in seen:
        loop(model, optimizer, criterion, x, y, 2)
        torch.testing.assert_close(params, model.coefficients.detach(), **CLOSE)
        assert value == pytest.approx(criterion(model.forward(x), y).item(), rel=1e-9)
        if epoch == 4:
            with torch.no_grad():
                model.coefficients[0, 1] = 0.25
            optimizer.param_groups[0]["lr"] = 0.01
    assert_same_run(*both)
    assert (result.stop_reason, result.epochs) == ("callback", 8)
    assert [epoch for epoch, *_ in seen] == [2, 4, 6, 8]
    np.testing.assert_array_equal(result.history_epochs, [0, 2, 4, 6, 8])


def test_progress(capsys):
    pytest.importorskip("tqdm")
    x, y = data("classes")
    model, optimizer = sides("adam")[0]
    pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, y, epochs=40, progress=True)
    assert "40/40" in capsys.readouterr().err


def test_gaps_of_probabilities_are_left_out():
    x, y = data("probabilities")
    both = sides("adam")
    x[3], y[5, 1] = torch.nan, torch.inf
    keep = x.isfinite() & y.isfinite().all(1)
    criterion = nn.CrossEntropyLoss()
    result = pf.fit(both[0][0], criterion, both[0][1], x, y, epochs=9, nan_policy="omit")
    loop(*both[1], criterion, x[keep], y[keep], 9)
    assert_same_run(*both)
    assert result.loss == pytest.approx(criterion(both[1][0].forward(x[keep]), y[keep]).item())


def test_statistics_of_classes_leave_out_what_a_mask_does():
    x, y = data("classes")
    keep = torch.arange(len(x)) % 5 != 0
    criterion, both = nn.CrossEntropyLoss(), sides("adam")
    masked = pf.fit(both[0][0], criterion, both[0][1], x, y, epochs=200, mask=keep)
    alone = pf.fit(both[1][0], criterion, both[1][1], x[keep], y[keep], epochs=200)
    np.testing.assert_allclose(masked.statistics.covariance, alone.statistics.covariance)
    assert masked.statistics.n == int(keep.sum())
    weighted = pf.fit(both[0][0], criterion, both[0][1], x, y, epochs=2, sample_weight=x + 2)
    with pytest.raises(RuntimeError, match="statistics: not of CrossEntropyLoss with weights"):
        weighted.statistics  # noqa: B018
