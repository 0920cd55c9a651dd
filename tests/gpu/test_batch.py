"""Batches of fits on a GPU, beside the CPU (benchmarks/gpu/check.sh)."""

import polyfuse as pf
import pytest
import torch

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


def test_small_auto_takes_cuda():
    x, y, _ = make("own")
    model, x, y = on_device(model_of(), x, y)
    assert pf.solve(model, x, y).backend == "cuda"
