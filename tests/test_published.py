"""Scripts as people publish them give the same with their two import lines swapped."""

import numpy as np
import pytest
import torch

from .published import NAMES, run


@pytest.mark.parametrize("name", NAMES)
def test_swapped_imports_give_the_same(name):
    """In float64, where rounding is not blown up on the way."""
    params, losses, _ = run(name, swapped=False, dtype=torch.float64)
    found, mine, _ = run(name, swapped=True, dtype=torch.float64)
    assert len(mine) == len(losses) > 0 and len(found) == len(params)
    np.testing.assert_allclose(mine, losses, rtol=1e-8, atol=1e-14)
    for p, q in zip(found, params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-10)


def test_there_are_enough():
    assert len(NAMES) >= 15
