"""The rule: error of a backend <= 2 x error of plain torch at that dtype + eps x scale."""

import numpy as np
import torch


def assert_close(found, plain, truth, scale):
    """found, and plain torch, against truth in float64; scale: size of what was summed."""
    found, plain = torch.as_tensor(found), torch.as_tensor(plain)
    eps = torch.finfo(plain.dtype).eps
    truth = torch.as_tensor(truth).double()
    error = (found.double() - truth).abs()
    allowed = 2 * (plain.double() - truth).abs() + 4 * eps * torch.as_tensor(scale)
    assert (error <= allowed).all(), f"error {error}, allowed {allowed}"


def assert_relative(found, truth, rtol):
    np.testing.assert_allclose(np.asarray(found), np.asarray(truth), rtol=rtol)


def assert_like_torch(found, truth, dtype=None):
    """What a few steps in dtype (that of truth) leave behind, against plain torch's."""
    found, truth = torch.as_tensor(found), torch.as_tensor(truth)
    bound = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype or truth.dtype, 0)
    torch.testing.assert_close(found, truth, rtol=bound, atol=bound, equal_nan=True)
