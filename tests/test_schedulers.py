"""`fit` with torch's learning-rate schedulers, beside the loop that steps them every epoch."""

import copy

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from torch.optim import lr_scheduler as L

from .tolerance import assert_relative

SCHEDULERS = {
    "StepLR": lambda o: L.StepLR(o, 7, 0.5),
    "MultiStepLR": lambda o: L.MultiStepLR(o, [5, 30], 0.1),
    "ConstantLR": lambda o: L.ConstantLR(o, 0.5, 9),
    "LinearLR": lambda o: L.LinearLR(o, 0.1, 1.0, 20),
    "ExponentialLR": lambda o: L.ExponentialLR(o, 0.97),
    "PolynomialLR": lambda o: L.PolynomialLR(o, 30, 2.0),
    "CosineAnnealingLR": lambda o: L.CosineAnnealingLR(o, 12),
    "CosineAnnealingWarmRestarts": lambda o: L.CosineAnnealingWarmRestarts(o, 6, 2),
    "LambdaLR": lambda o: L.LambdaLR(o, lambda epoch: 1 / (1 + epoch % 5)),
    "MultiplicativeLR": lambda o: L.MultiplicativeLR(o, lambda epoch: 0.98),
    "CyclicLR": lambda o: L.CyclicLR(o, 1e-5, 1e-4, 6, cycle_momentum=True),
    "OneCycleLR": lambda o: L.OneCycleLR(o, 1e-4, 60),
    "SequentialLR": lambda o: L.SequentialLR(
        o, [L.ConstantLR(o, 0.1, 9), L.ExponentialLR(o, 0.9)], [12]
    ),
    "ChainedScheduler": lambda o: L.ChainedScheduler([L.StepLR(o, 9), L.ExponentialLR(o, 0.99)]),
    "ReduceLROnPlateau": lambda o: L.ReduceLROnPlateau(o, patience=1, threshold=0.2),
}
LOOPS = {"LRScheduler", "_LRScheduler"}


def make(optimizer, lr=1e-4, **options):
    model = workload.make_model(torch.nn, torch.float64)
    groups = [{"params": [model.a, model.b]}, {"params": [model.c], "lr": torch.tensor(3 * lr)}]
    return model, getattr(torch.optim, optimizer)(groups, lr=lr, **options)


def loop(model, optimizer, schedulers, epochs):
    xs, ys = workload.data(torch.float64)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(xs), ys)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for s in schedulers:
            s.step(loss.detach()) if isinstance(s, L.ReduceLROnPlateau) else s.step()
    return losses


def lrs(optimizer):
    return [float(g["lr"]) for g in optimizer.param_groups]


def states(schedulers):
    out = []
    for s in schedulers:
        state = copy.deepcopy(s.state_dict())
        for key in ("_schedulers", "lr_lambdas", "_scale_fn_ref", "best", "num_bad_epochs"):
            state.pop(key, None)
        out.append(str(state))
    return out


def assert_same_run(found, truth, schedulers):
    for p, q in zip(found[0].parameters(), truth[0].parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
    assert lrs(found[1]) == lrs(truth[1])
    assert states(schedulers[0]) == states(schedulers[1])


@pytest.mark.parametrize("engine", ["auto", "stream"])
@pytest.mark.parametrize(
    ("optimizer", "options"), [("SGD", {"momentum": 0.5}), ("Adam", {})], ids=["SGD", "Adam"]
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name, optimizer, options, engine):
    found, truth = make(optimizer, **options), make(optimizer, **options)
    schedulers = [[SCHEDULERS[name](side[1])] for side in (found, truth)]
    data = workload.data(torch.float64)
    for epochs in (30, 13):  # the second run goes on where the first ended
        result = pf.fit(found[0], torch.nn.MSELoss(), found[1], *data, epochs=epochs,
                        engine=engine, scheduler=schedulers[0], record_every=1)  # fmt: skip
        losses = loop(*truth, schedulers[1], epochs)
        assert_relative(result.history[:epochs], losses, 1e-9)
        assert_same_run(found, truth, schedulers)
        assert result.launches == (epochs if name == "ReduceLROnPlateau" else 1)


def test_every_scheduler_of_torch_is_here():
    theirs = {n for n, c in vars(L).items() if isinstance(c, type) and issubclass(c, L.LRScheduler)}
    assert theirs - LOOPS <= set(SCHEDULERS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["StepLR", "ExponentialLR"])
def test_runs_that_end_early(name, backend):
    """Schedulers stand where the run ended, not where they were stepped ahead to."""
    for stop in ({"tol": 1e-1}, {"callback": lambda epoch, loss: epoch >= 20, "record_every": 10}):
        found, truth = make("SGD"), make("SGD")
        schedulers = [[SCHEDULERS[name](side[1])] for side in (found, truth)]
        data = workload.data(torch.float64)
        result = pf.fit(found[0], torch.nn.MSELoss(), found[1], *data, epochs=500,
                        engine="stream", scheduler=schedulers[0], backend=backend,
                        **stop)  # fmt: skip
        assert 0 < result.epochs < 500
        loop(*truth, schedulers[1], result.epochs)
        assert_same_run(found, truth, schedulers)


def test_more_changes_than_a_launch_follows():
    found, truth = make("SGD"), make("SGD")
    schedulers = [[L.LambdaLR(side[1], lambda e: 1 / (1 + 0.001 * e))] for side in (found, truth)]
    data = workload.data(torch.float64)
    result = pf.fit(found[0], torch.nn.MSELoss(), found[1], *data, epochs=5000,
                    scheduler=schedulers[0], engine="moments")  # fmt: skip
    assert result.launches == 2
    loop(*truth, schedulers[1], 5000)
    assert_same_run(found, truth, schedulers)


def test_bad_schedulers():
    model, optimizer = make("SGD")
    data = workload.data(torch.float64)
    call = (model, torch.nn.MSELoss(), optimizer, *data)
    with pytest.raises(TypeError, match=r"scheduler: expected a torch.optim.lr_scheduler, got str"):
        pf.fit(*call, epochs=3, scheduler="cosine")
    with pytest.raises(ValueError, match="scheduler: it belongs to another optimizer"):
        pf.fit(*call, epochs=3, scheduler=L.StepLR(make("SGD")[1], 3))
    with pytest.raises(ValueError, match=r"engine: closed_form .* a scheduler changes the update"):
        pf.fit(*call, epochs=3, scheduler=L.StepLR(optimizer, 3), engine="closed_form")
    assert [p.item() for p in model.parameters()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("engine", ["moments", "stream"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_small_schedules_on_a_device(name, optimizer, engine, on_device):
    found, truth = make(optimizer), make(optimizer)
    schedulers = [[SCHEDULERS[name](side[1])] for side in (found, truth)]
    data = workload.data(torch.float64)
    for epochs in (17, 8):
        result = pf.fit(found[0], torch.nn.MSELoss(), found[1], *data, epochs=epochs,
                        engine=engine, scheduler=schedulers[0], record_every=1,
                        nan_policy="propagate", backend=on_device.name)  # fmt: skip
        losses = loop(*truth, schedulers[1], epochs)
        assert_relative(result.history[:epochs], losses, 1e-9)
        assert_same_run(found, truth, schedulers)
        assert result.launches == (epochs if name == "ReduceLROnPlateau" else 1)
