"""Batches of fits on a GPU, beside the CPU (benchmarks/gpu/check.sh)."""

import polyfuse as pf
import pytest
import torch

from ..test_batch import DATA, OPTIMIZERS, make, model_of
from .test_backends import DEVICE, pytestmark  # noqa: F401


def on_device(model, *tensors):
    far = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in tensors]
    return model.to(DEVICE), *far


@pytest.mark.parametrize("fits", [13, 1003])
@pytest.mark.parametrize("kind", DATA)
def test_small_solutions(kind, fits):
    x, y, more = make(kind, fits=fits)
    near, far = model_of(fits), model_of(fits)
    w, policy = more.get("sample_weight"), more.get("nan_policy", "raise")
    truth = pf.solve(near, x, y, weight=w, nan_policy=policy, covariance=True)
    far, x, y, w = on_device(far, x, y, w)
    found = pf.solve(far, x, y, weight=w, nan_policy=policy, covariance=True, backend="triton")
    assert found.launches == 1 and found.loss.device == x.device
    torch.testing.assert_close(
        far.coefficients.cpu(), near.coefficients.detach(), rtol=1e-8, atol=1e-10
    )
    for name in ("loss", "covariance", "rank", "status"):
        value, wanted = getattr(found, name).cpu(), getattr(truth, name)
        torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_small_runs(name):
    x, y, _ = make("own")
    models = model_of(), model_of().to(DEVICE)
    for model in models:
        optimizer = OPTIMIZERS[name](model.parameters())
        data = (t.to(model.coefficients.device) for t in (x, y))
        backend = "cpu" if model is models[0] else "triton"
        pf.fit(
            model, pf.nn.MSELoss(), optimizer, *data, epochs=23, engine="stream", backend=backend
        )
    near, far = (model.coefficients.detach().cpu() for model in models)
    torch.testing.assert_close(far, near, rtol=1e-8, atol=1e-10)
