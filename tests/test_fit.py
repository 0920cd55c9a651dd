"""pf.fit against loops of plain PyTorch in float64."""

import itertools
import os
import signal
import threading
import warnings

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import workload

from .interpreter import INTERPRETED
from .tolerance import assert_like_torch, assert_relative

ENGINES = ("stream", "moments", "closed_form")
LIBRARIES = {"torch": (torch.nn, torch.optim), "polyfuse": (pf.nn, pf.optim)}


def plain_loop(optimizer_options, epochs, xs, ys, reduction="mean", every=None):
    """Parameters, gradients, momenta and losses of a loop of plain PyTorch."""
    model = workload.make_model(torch.nn, xs.dtype)
    optimizer = torch.optim.SGD(model.parameters(), **optimizer_options)
    losses = []
    for epoch in range(epochs):
        loss = torch.nn.functional.mse_loss(model(xs), ys, reduction=reduction)
        if every and epoch % every == 0:
            losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses.append(torch.nn.functional.mse_loss(model(xs), ys, reduction=reduction).item())
    return model, optimizer, losses


@pytest.fixture
def on(backend):
    """The argument of `fit` that has it run there."""
    return {"backend": backend.name}


@pytest.fixture(scope="module")
def long_run():
    xs, ys = workload.data(torch.float64)
    return plain_loop({"lr": 1e-4}, 100_000, xs, ys, every=10_000)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_workload(long_run, engine, library):
    nn, optim = LIBRARIES[library]
    truth, _, losses = long_run
    xs, ys = workload.data(torch.float64)
    model = workload.make_model(nn, torch.float64)
    optimizer = optim.SGD(model.parameters(), lr=1e-4)
    result = pf.fit(
        model, nn.MSELoss(), optimizer, xs, ys, epochs=100_000, engine=engine, record_every=10_000
    )
    assert_relative([p.item() for p in model.parameters()], [p.item() for p in truth.parameters()],
                    1e-9)  # fmt: skip
    assert_relative(result.history, losses, 1e-9)
    assert_relative([p.grad.item() for p in model.parameters()],
                    [p.grad.item() for p in truth.parameters()], 1e-6)  # fmt: skip
    assert result.history_epochs.tolist() == list(range(0, 100_001, 10_000))
    assert (result.engine, result.backend, result.launches) == (engine, "cpu", 1)
    assert (result.epochs, result.stop_reason) == (100_000, "epochs")


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_reaches_the_float64_truth(engine):
    xs, ys = workload.data()
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    pf.fit(model, pf.nn.MSELoss(), optimizer, xs, ys, epochs=100_000, engine=engine)
    exact = [0.77334418, -6.59796653, 12.73228830]
    assert_relative([p.item() for p in model.parameters()], exact, 2e-7)


OPTIONS = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n, "maximize": x}
    for m, d, w, n, x in itertools.product(
        (0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True), (False, True)
    )
    if not (n and (m == 0 or d != 0))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("backend", ["triton"] if INTERPRETED else ["cpu", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_option_of_sgd(options, engine, backend, reduction):
    lr = 1e-7 if options["maximize"] else 1e-5
    lr = lr / 9 if reduction == "sum" else lr
    xs, ys = workload.data(torch.float64)
    epochs = 5 if INTERPRETED else 57
    truth, truth_optimizer, losses = plain_loop(
        {"lr": lr, **options}, epochs, xs, ys, reduction, every=5
    )
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    criterion = torch.nn.MSELoss(reduction=reduction)
    result = pf.fit(
        model, criterion, optimizer, xs, ys, epochs=epochs, engine=engine, backend=backend,
        record_every=5,
    )  # fmt: skip
    assert_relative(result.history, losses, 1e-9)
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
        assert_relative(p.grad, q.grad, 1e-8)
        if options["momentum"]:
            assert_relative(optimizer.state[p]["momentum_buffer"],
                            truth_optimizer.state[q]["momentum_buffer"], 1e-8)  # fmt: skip
        else:
            assert "momentum_buffer" not in optimizer.state[p]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("split", [0, 1, 2, 3, 29])
def test_plain_pytorch_goes_on_from_a_fit(on, engine, split):
    options = {"lr": 1e-5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    xs, ys = workload.data(torch.float64)
    truth, _, _ = plain_loop(options, 30, xs, ys)
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=split, engine=engine, **on)
    workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 30 - split)
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_and_parameters_that_no_optimizer_holds(on, engine):
    xs, ys = workload.data(torch.float64)

    def run(fit):
        model = workload.make_model(torch.nn, torch.float64)
        groups = [
            {"params": [model.a], "lr": 1e-5},
            {"params": [model.c], "lr": torch.tensor(1e-2), "momentum": 0.5},
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        if fit:
            pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=40, engine=engine, **on)
        else:
            workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 1)
            for _ in range(39):
                model.b.grad = None
                workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 1)
        return model

    found, truth = run(True), run(False)
    for p, q in zip(found.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
        assert_relative(p.grad, q.grad, 1e-8)
    assert found.b.item() == 2.0


def test_products_of_parameters(on):
    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
            self.b = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

        def forward(self, x):
            return self.a * self.b * x + self.a**2

    xs, ys = workload.data(torch.float64)
    trained = []
    for engine in ("stream", "moments", "auto", None):
        model = Product()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        if engine:
            result = pf.fit(
                model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=50, engine=engine, **on
            )
            assert result.engine == ("moments" if engine == "auto" else engine)
        else:
            workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 50)
        trained.append([p.item() for p in model.parameters()])
    for found in trained[:-1]:
        assert_relative(found, trained[-1], 1e-10)
    with pytest.raises(ValueError, match=r"engine: closed_form .* not affine"):
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=5, engine="closed_form", **on)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [1, 2])
def test_fewer_samples_than_coefficients(on, engine, n):
    xs, ys = (t[:n] for t in workload.data(torch.float64))
    truth, _, losses = plain_loop({"lr": 1e-2}, 200, xs, ys, every=50)
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    result = pf.fit(
        model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=200, engine=engine, record_every=50,
        **on,
    )  # fmt: skip
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
    np.testing.assert_allclose(result.history, losses, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_tol_and_callback(engine):
    xs, ys = workload.data()
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    result = pf.fit(
        model, pf.nn.MSELoss(), optimizer, xs, ys, epochs=10**6, engine=engine, tol=1e-4
    )
    assert result.converged and result.stop_reason == "converged" and result.epochs < 10**5
    called = []

    def stop(epoch, loss):
        called.append((epoch, loss, model.a.item()))
        return epoch >= 30

    result = pf.fit(
        model, pf.nn.MSELoss(), optimizer, xs, ys, epochs=100, engine=engine, record_every=10,
        callback=stop,
    )  # fmt: skip
    assert [e for e, *_ in called] == [10, 20, 30] and len({a for *_, a in called}) == 3
    assert result.stop_reason == "callback" and result.epochs == 30 and result.launches == 3
    assert called[-1][1] == result.loss and result.history_epochs.tolist() == [0, 10, 20, 30]


def test_progress(capsys):
    xs, ys = workload.data()
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    result = pf.fit(model, pf.nn.MSELoss(), optimizer, xs, ys, epochs=500, progress=True)
    assert "500/500" in capsys.readouterr().err
    assert result.epochs == 500


@pytest.mark.parametrize("engine", ENGINES)
def test_callback_may_change_the_lr(on, engine):
    def halve(epoch, loss):
        optimizer.param_groups[0]["lr"] = 1e-4 / (1 + epoch / 10)

    xs, ys = workload.data(torch.float64)
    model, truth = (workload.make_model(torch.nn, torch.float64) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    criterion = torch.nn.MSELoss()
    pf.fit(model, criterion, optimizer, xs, ys, epochs=30, engine=engine, **on, record_every=10,
           callback=halve)  # fmt: skip
    by_hand = torch.optim.SGD(truth.parameters(), lr=1e-4)
    for epoch in range(0, 30, 10):
        by_hand.param_groups[0]["lr"] = 1e-4 / (1 + epoch / 10)
        workload.loop(truth, criterion, by_hand, xs, ys, 10)
    assert_relative([p.item() for p in model.parameters()],
                    [p.item() for p in truth.parameters()], 1e-12)  # fmt: skip


def test_parameters_outside_the_model_lose_their_gradient_as_in_the_loop():
    xs, ys = workload.data()
    model = workload.make_model(torch.nn)
    other = torch.nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    optimizer = torch.optim.SGD([*model.parameters(), other], lr=1e-4)
    pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=3)
    assert other.grad is None and other.tolist() == [1, 1]


def test_a_frozen_parameter_loses_its_gradient_as_in_the_loop():
    model, (xs, ys) = workload.make_model(torch.nn), workload.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for trains in (True, False, True):
        model.b.requires_grad_(trains)
        before = model.b.item()
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=2)
        assert (model.b.grad is not None) == trains == (model.b.item() != before)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diverging_run_says_the_largest_stable_lr(engine):
    xs, ys = workload.data()
    model = workload.make_model(torch.nn)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.warns(RuntimeWarning, match="largest stable lr for this data is about") as caught:
        result = pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=3000, engine=engine)
    assert result.stop_reason == "diverged"
    assert not any(torch.isfinite(p).all() for p in model.parameters())
    lr = float(str(caught[0].message).split()[-1])
    for factor, stable in ((0.98, True), (1.02, False)):
        model = workload.make_model(torch.nn, torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr * factor)
        xs, ys = workload.data(torch.float64)
        workload.loop(model, torch.nn.MSELoss(), optimizer, xs, ys, 3000)
        assert (abs(model.a.item()) < 1e3) == stable


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_policy(on, engine, bad):
    xs, ys = (torch.cat([t, t[:2]]) for t in workload.data(torch.float64))
    xs[9], ys[10] = bad, bad
    model = workload.make_model(torch.nn, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.5)
    run = dict(epochs=50, engine=engine, **on)
    with pytest.raises(ValueError, match=r"x, y: 2 samples hold nan or inf"):
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, **run)
    assert [p.item() for p in model.parameters()] == [1, 2, 3]
    assert model.a.grad is None and not optimizer.state
    pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, nan_policy="omit", **run)
    truth, _, _ = plain_loop({"lr": 1e-4, "momentum": 0.5}, 50, *workload.data(torch.float64))
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        assert_relative(p.detach(), q.detach(), 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, nan_policy="propagate", **run)
    assert not torch.isfinite(model.c).any()
    with pytest.raises(ValueError, match="no sample is left"):
        nothing = torch.full((3,), bad, dtype=torch.float64)
        pf.fit(model, torch.nn.MSELoss(), optimizer, nothing, nothing, nan_policy="omit", **run)


def test_ctrl_c_leaves_the_parameters_of_a_completed_epoch():
    n = 200_000
    x = torch.linspace(-1, 1, n)
    model = pf.nn.Polynomial(2)
    optimizer = pf.optim.SGD(model.parameters(), lr=0.1)
    # A shell that starts the tests in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        result = pf.fit(model, pf.nn.MSELoss(), optimizer, x, x**2, epochs=10**9, engine="stream")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.stop_reason == "interrupted" and 0 < result.epochs < 10**9
    assert result.seconds < 5 and np.isfinite(result.loss)
    again = pf.nn.Polynomial(2)
    optimizer = pf.optim.SGD(again.parameters(), lr=0.1)
    pf.fit(again, pf.nn.MSELoss(), optimizer, x, x**2, epochs=result.epochs, engine="closed_form")
    assert_like_torch(model.coefficients, again.coefficients)


def test_memory_of_a_fit_stays_bounded():
    import resource

    x = torch.linspace(-1, 1, 4_000_000)
    y = x**2
    model = pf.nn.Polynomial(2)
    optimizer = pf.optim.SGD(model.parameters(), lr=0.1)
    pf.fit(model, pf.nn.MSELoss(), optimizer, x[:100], y[:100], epochs=2, engine="stream")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for engine in ENGINES:
        pf.fit(model, pf.nn.MSELoss(), optimizer, x, y, epochs=3, engine=engine)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB


def bad_calls():
    xs, ys = workload.data()
    model = torch.nn.Linear(1, 1)
    yield "x: expected a torch.Tensor", {"x": [1.0, 2.0]}, TypeError
    yield "x: expected dtype float32 or float64, got torch.int64", {"x": xs.long()}, TypeError
    yield "x: expected dtype float32 or float64, got torch.complex64", {"x": xs + 0j}, TypeError
    yield "y: expected the dtype of x", {"y": ys.double()}, TypeError
    yield "y: expected the device of x", {"y": ys.to("meta")}, ValueError
    yield "y: expected the shape of x", {"y": ys[:5]}, ValueError
    yield "x: expected at least one sample", {"x": xs[:0], "y": ys[:0]}, ValueError
    yield "epochs: expected a number >= 0, got -1", {"epochs": -1}, ValueError
    yield "epochs: expected an int, got 1.5", {"epochs": 1.5}, TypeError
    yield "engine: expected one of auto, stream", {"engine": "fast"}, ValueError
    yield "one of auto, cpu, cuda, triton, reference, got 'tpu'", {"backend": "tpu"}, ValueError
    yield "backend: cuda cannot serve this problem on cpu: cuda: ", {"backend": "cuda"}, ValueError
    yield "nan_policy: expected one of", {"nan_policy": "drop"}, ValueError
    yield "record_every: expected None or an int >= 1", {"record_every": 0}, ValueError
    yield "tol: expected None or a finite number >= 0", {"tol": -1.0}, ValueError
    yield (
        "closed_form cannot serve this case: tol",
        {"tol": 0.1, "engine": "closed_form"},
        ValueError,
    )
    yield "callback: expected a function", {"callback": 3}, TypeError
    yield "callback: needs record_every", {"callback": print}, ValueError
    yield (
        "model: Linear is not fused: a matrix product over",
        {"model": model},
        ValueError,
    )
    yield "model: expected a torch.nn.Module", {"model": print}, TypeError
    yield "criterion: NLLLoss is not fused", {"criterion": torch.nn.NLLLoss()}, ValueError
    yield (
        "criterion: reduction 'none'",
        {"criterion": torch.nn.MSELoss(reduction="none")},
        ValueError,
    )
    lbfgs = torch.optim.LBFGS(model.parameters())
    yield "optimizer: LBFGS has no compiled", {"optimizer": lbfgs}, \
        ValueError  # fmt: skip


@pytest.mark.parametrize(
    ("message", "change", "error"), list(bad_calls()), ids=lambda v: str(v)[:40]
)
def test_bad_input_names_the_argument_and_changes_nothing(message, change, error):
    xs, ys = workload.data()
    model = workload.make_model(torch.nn)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    call = dict(
        model=model, criterion=torch.nn.MSELoss(), optimizer=optimizer, x=xs, y=ys, epochs=10
    )
    with pytest.raises(error, match=message.replace("(", r"\(")):
        pf.fit(**(call | change))
    assert [p.item() for p in model.parameters()] == [1, 2, 3]
    assert all(p.grad is None for p in model.parameters()) and not optimizer.state


def test_a_column_against_a_row_warns_as_torch_does():
    xs, ys = workload.data()
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    with pytest.warns(UserWarning, match="broadcasting"), pytest.raises(ValueError, match="y: "):
        pf.fit(model, pf.nn.MSELoss(), optimizer, xs, ys[:, None], epochs=1)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": 1e-3, "nesterov": True}])
def test_sgd_refuses_what_torch_refuses(options):
    with pytest.raises(ValueError):
        pf.optim.SGD([torch.nn.Parameter(torch.ones(1))], **options)


def test_hooks_on_the_optimizer_are_not_passed_over():
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"optimizer: .* hooks"):
        pf.fit(model, pf.nn.MSELoss(), optimizer, *workload.data(), epochs=2)
