import pytest
import torch
from polyfuse import workload


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request):
    return request.param


@pytest.fixture
def nine(dtype):
    return workload.data(dtype)


@pytest.fixture
def threads():
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
