import shutil

import polyfuse as pf
import pytest
import torch
from hypothesis import settings
from polyfuse import workload
from polyfuse.backends import REGISTRY

from .emulated import Emulated, build
from .interpreter import INTERPRETED, prepare_once
from .sides import Side

# The same examples in every run.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

if INTERPRETED:
    prepare_once()


@pytest.fixture(scope="session")
def backend():
    """The compiled backend; under Triton's interpreter its kernels."""
    return REGISTRY["triton" if INTERPRETED else "cpu"]


@pytest.fixture(scope="session")
def emulation():
    """The CUDA kernels, compiled for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return build()


@pytest.fixture(params=[None, 3], ids=["one block", "blocks"])
def emulated(request, emulation, monkeypatch):
    """The CUDA backend with kernels for the CPU."""
    backend = Emulated(emulation, request.param)
    monkeypatch.setitem(REGISTRY, backend.name, backend)
    yield backend
    for workspace in backend._workspaces.values():
        assert not workspace[:64].any()


@pytest.fixture(params=["triton"] if INTERPRETED else [None, 3])
def on_device(request, monkeypatch):
    """A device's backend with its kernels on the CPU: Triton's interpreted, or CUDA's emulated."""
    if INTERPRETED:
        return REGISTRY["triton"]
    backend = Emulated(request.getfixturevalue("emulation"), request.param)
    monkeypatch.setitem(REGISTRY, backend.name, backend)
    return backend


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


@pytest.fixture(params=[{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
                ids=["plain", "momentum"])  # fmt: skip
def sides(request, dtype):
    return (
        Side(pf.nn, pf.optim, dtype, **request.param),
        Side(torch.nn, torch.optim, dtype, **request.param),
    )
