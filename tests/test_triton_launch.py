"""What the launchers have Triton compile: for a GPU that is not there, and nothing is launched."""

import polyfuse as pf
import pytest
import torch
from polyfuse.backends import launch
from polyfuse.backends.device import DeviceMap, device_rule
from polyfuse.backends.geometry import Machine
from polyfuse.backends.tables import Tables
from polyfuse.fused import fused
from polyfuse.rules import METHODS, SgdOptions

from .interpreter import INTERPRETED

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
CPU, N = torch.device("cpu"), 5000
WIDE = "ld.global.v4.b32"


class Absent:
    """A driver of a device, as far as compiling asks for one."""

    def get_current_device(self):
        return id(self)

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch):
    """The kernel of every launch."""
    found = []

    def compile_for(kernel, grid):
        def run(*arguments, **options):
            found.append(kernel.run(*arguments, grid=grid, warmup=True, **options))

        return run

    monkeypatch.setattr(triton.runtime.driver, "_active", Absent())
    monkeypatch.setattr(triton.runtime.JITFunction, "__getitem__", compile_for)
    monkeypatch.setattr(launch, "machine", lambda _: Machine(100))
    return found


def zeros(count):
    return torch.zeros(count, dtype=torch.float64)


def samples(n=N, first=0, step=1, weighted=False):
    x = torch.zeros(first + n * step)[first::step]
    return launch.Samples(x, x, weight=x if weighted else None)


def run_of(**more):
    model = fused(pf.nn.Polynomial(2), torch.float32, CPU).traced
    rule = device_rule((SgdOptions(0.1, 0.0, 0.0, 0.0, False, False),) * 3, CPU)
    return launch.Run(DeviceMap.of(model, CPU), rule, zeros(100), **more)


PASSES = {
    "step": lambda s: launch.step(s, run_of()),
    "stream": lambda s: launch.stream(s, run_of()),
    "moments": lambda s: launch.moments(s, run_of(), zeros(14), given=False),
    "project": lambda s: launch.project(s, run_of().map, zeros(3)),
    "evaluate": lambda s: launch.evaluate(s, run_of().map, zeros(3)),
    "nonfinite": launch.nonfinite,
}


@pytest.mark.parametrize("name", PASSES)
def test_neighbours_are_read_in_16_bytes_where_they_are_neighbours(name, compiled):
    PASSES[name](samples())
    PASSES[name](samples(first=1))
    PASSES[name](samples(step=3))
    assert [WIDE in kernel.asm["ptx"] for kernel in compiled] == [True, False, False]


@pytest.mark.parametrize("name", ["step", "stream", "moments"])
def test_weights_are_read_in_16_bytes(name, compiled):
    PASSES[name](samples())
    PASSES[name](samples(weighted=True))
    plain, weighted = (kernel.asm["ptx"].count(WIDE) for kernel in compiled)
    assert weighted > plain > 0


def test_numbers_that_change_from_launch_to_launch_compile_nothing_anew(compiled):
    for schedule in ((0, 1, 0), (1, 16, 1), (16, 25, 7)):
        names = ("first_epoch", "epochs", "record_every")
        run = run_of(**dict(zip(names, schedule, strict=True)))
        for n in (4999, 5000, 5008):
            launch.stream(samples(n), run)
            launch.moments(samples(n), run, zeros(14), given=False)
    assert len(compiled) == 18 and len({id(kernel) for kernel in compiled}) == 2


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_updates_of_float32_divide_to_the_last_bit(kind, compiled):
    rule = device_rule((kind(*(0.0 for _ in kind._fields)),), CPU)
    table = Tables(torch.zeros(11, 1, dtype=torch.int64), 15)
    launch.update(table, rule, torch.float32)
    ptx = compiled[0].asm["ptx"]
    assert "div.full" not in ptx and "div.approx" not in ptx
