"""Batches of fits on a GPU, beside the CPU (benchmarks/gpu/check.sh)."""

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse.backends import batched_device

from ..test_batch import DATA, OPTIMIZERS, make, model_of
from .test_backends import DEVICE, pytestmark  # noqa: F401

BACKENDS = ["cuda", "triton"]


def on_device(model, *tensors):
    far = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in tensors]
    return model.to(DEVICE), *far


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degree", [2, 6])
@pytest.mark.parametrize(("n", "fits"), [(12, 13), (12, 1003), (1003, 200)])
@pytest.mark.parametrize("kind", DATA)
def test_small_solutions(kind, n, fits, degree, backend):
    x, y, more = make(kind, n=n, fits=fits)
    near, far = model_of(fits, degree), model_of(fits, degree)
    w, policy = more.get("sample_weight"), more.get("nan_policy", "raise")
    truth = pf.solve(near, x, y, weight=w, nan_policy=policy, covariance=True)
    far, x, y, w = on_device(far, x, y, w)
    found = pf.solve(far, x, y, weight=w, nan_policy=policy, covariance=True, backend=backend)
    assert found.launches == 1 and found.loss.device == x.device
    torch.testing.assert_close(
        far.coefficients.cpu(), near.coefficients.detach(), rtol=1e-8, atol=1e-10
    )
    for name in ("loss", "covariance", "rank", "status"):
        value, wanted = getattr(found, name).cpu(), getattr(truth, name)
        torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("degree_by", [None, "aicc"])
def test_small_solutions_of_a_high_degree(degree_by):
    x, y, _ = make("own", n=60)
    near, far = (model_of(degree=24, basis="legendre", domain=(-1, 1)) for _ in range(2))
    truth = pf.solve(near, x, y, degree_by=degree_by)
    far, x, y = on_device(far, x, y)
    found = pf.solve(far, x, y, degree_by=degree_by)
    assert found.backend == ("cpu" if DEVICE.type == "cpu" else "reference")
    p, q = far.coefficients.detach().cpu(), near.coefficients.detach()
    assert ((p - q).abs() <= 1e-9 * q.abs().amax(0)).all()
    torch.testing.assert_close(found.loss.cpu(), truth.loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("engine", ["moments", "stream"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_small_runs(name, engine, backend):
    x, y, _ = make("own")
    models = model_of(), model_of().to(DEVICE)
    for model in models:
        optimizer = OPTIMIZERS[name](model.parameters())
        data = (t.to(model.coefficients.device) for t in (x, y))
        on = "cpu" if model is models[0] else backend
        pf.fit(model, pf.nn.MSELoss(), optimizer, *data, epochs=23, engine=engine, backend=on)
    near, far = (model.coefficients.detach().cpu() for model in models)
    torch.testing.assert_close(far, near, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("criterion", [pf.nn.L1Loss(), pf.nn.HuberLoss(), pf.nn.SoftMarginLoss()])
def test_small_criteria(criterion, backend):
    x, y, _ = make("own")
    y = y.sign() if isinstance(criterion, pf.nn.SoftMarginLoss) else y
    left = []
    for device, on in (("cpu", "cpu"), (DEVICE, backend)):
        model = model_of().to(device)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        result = pf.fit(model, criterion, optimizer, x.to(device), y.to(device), epochs=23,
                        tol=1e-3, record_every=2, backend=on)  # fmt: skip
        left.append(torch.cat([model.coefficients.detach(), result.loss[None]]).cpu())
    torch.testing.assert_close(*left, rtol=1e-8, atol=1e-10)


def beside_the_cpu(backend, name, x, y, dtype=torch.float64, scheduled=False, **more):
    """Runs on both sides: what they leave behind, and the results."""
    left, results = [], []
    for device, on in (("cpu", "cpu"), (DEVICE, backend)):
        model = model_of(y.shape[1], dtype=dtype).to(device)
        optimizer = OPTIMIZERS[name](model.parameters())
        if scheduled:
            more["scheduler"] = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
        result = pf.fit(model, pf.nn.MSELoss(), optimizer, x.to(device), y.to(device), backend=on,
                        **more)  # fmt: skip
        parts = model.coefficients.detach(), model.coefficients.grad, result.loss[None]
        left.append(torch.cat([part.cpu().double() for part in parts]))
        results.append(result)
    return left, results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", [None, 7])
@pytest.mark.parametrize("fits", [13, 1003])
@pytest.mark.parametrize("kind", ["shared", "gaps", "last"])
@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_small_closed_forms(name, kind, fits, every, backend):
    x, y, more = make(kind, fits=fits)
    left, results = beside_the_cpu(backend, name, x, y, epochs=10_000, record_every=every, **more)
    assert [r.engine for r in results] == ["closed_form"] * 2
    assert results[1].launches == 1 + (kind == "gaps")
    torch.testing.assert_close(*left, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(*(r.history for r in results), rtol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("engine", ["moments", "stream"])
@pytest.mark.parametrize("name", ["nesterov", "adam", "nadam"])
def test_small_schedules_and_callbacks(name, engine, backend):
    x, y, _ = make("own")
    looks = []
    left, results = beside_the_cpu(
        backend, name, x, y, scheduled=True, epochs=43, engine=engine, record_every=10,
        callback=lambda epoch, loss: looks.append(loss.cpu()),
    )  # fmt: skip
    assert results[1].launches == results[0].launches == 5
    torch.testing.assert_close(*left, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(looks[:5], looks[5:], rtol=1e-8, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "engine"), [("adam", "moments"), ("adam", "stream"), ("nesterov", "stream")]
)
def test_small_launches_of_a_long_run_are_one_run(name, engine, dtype, backend, monkeypatch):
    monkeypatch.setattr(batched_device, "SLICE_SECONDS", 0.0)  # a launch for every epoch
    x, y, _ = make("own", dtype=dtype)
    left, results = beside_the_cpu(
        backend, name, x, y, dtype, epochs=60, engine=engine, tol=1e-3, record_every=7
    )
    close = (
        {"rtol": 1e-8, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    )
    assert results[1].launches == results[1].epochs
    torch.testing.assert_close(*left, **close)
    assert torch.equal(results[1].rank.cpu(), results[0].rank)


def test_small_auto_takes_cuda():
    x, y, _ = make("own")
    model, x, y = on_device(model_of(), x, y)
    assert pf.solve(model, x, y).backend == "cuda"
