"""The Triton backend without a GPU: its kernels under the interpreter, and how launches are cut."""

import os
import subprocess
import sys
from pathlib import Path

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import geometry, tuning
from polyfuse.backends.geometry import Machine

from .interpreter import INTERPRETED

HERE = Path(__file__).parent
H100 = Machine(132)
FITS = [
    "every_option_of_sgd and mean", "plain_pytorch_goes_on", "groups_and_parameters",
    "products_of", "callback_may_change", "nan_policy and not inf",
]  # fmt: skip
SLOW = [  # each is a second or more of the interpreter, and says little that is new
    "instruction_set", "300000", "loss_and_gradient and 100003 and not 4-100003",
]  # fmt: skip
SINGLE = ["-k", "not f64"]  # float64 goes the same way, less the rounding
RUNS = {
    "verbs": ["test_kernels.py", "-k", " and ".join(f"not ({slow})" for slow in SLOW)],
    "fits": ["test_fit.py", "-k", " or ".join(FITS)],
    "loop": ["test_device_loop.py", *SINGLE],
    "its own": ["only_interpreted.py"],
    "criteria": ["interpreted_criteria.py"],
    "weights": ["test_device_weights.py", *SINGLE],
    "resident": ["test_resident.py", *SINGLE],
    "bounds": ["test_bounds.py", "-k", "on_a_device"],
    "batches": ["interpreted_batch.py"],
    "epochs of batches": ["test_batch_device.py", "-k", "not ctrl_c"],
    "surfaces": ["interpreted_surface.py"],
    "classes": ["test_device_classes.py", *SINGLE],
    "outputs of surfaces": [
        "test_responses_device.py", "-k", "not (every_engine and (columns or functions))",
    ],
    "side by side": ["test_stacked_device.py", *SINGLE],
    "schedules": ["test_schedulers.py", "-k", "on_a_device"],
}  # fmt: skip


@pytest.mark.skipif(INTERPRETED, reason="runs inside itself")
@pytest.mark.parametrize("name", RUNS)
def test_under_the_interpreter(name):
    pytest.importorskip("triton")
    file, *which = RUNS[name]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / file), *which],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        cwd=HERE.parent,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


def test_import_loads_no_triton():
    code = "import polyfuse, sys; polyfuse.backends(); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(INTERPRETED, reason="the interpreter is there")
def test_says_what_is_missing():
    assert "TRITON_INTERPRET=1" in pf.backends()["triton"]
    model = workload.make_model(torch.nn)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with pytest.raises(ValueError, match=r"cannot serve .*: triton: not available: no GPU"):
        pf.fit(model, torch.nn.MSELoss(), optimizer, *workload.data(), epochs=2, backend="triton")


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("n", [1, 9, 129, 1003, 100_003, 10**7, 2**33])
def test_launches_cover_the_samples(n, itemsize):
    for terms in (1, 3, 5, 13, 33):
        for cut in (
            geometry.reduction(n, itemsize, terms, H100),
            geometry.stream(n, itemsize, terms, H100),
            geometry.elementwise(n, itemsize, H100),
        ):
            count = geometry.tiles(n, cut.tile)
            assert 1 <= cut.programs <= count < 2**31
            assert cut.rows == 32 * cut.warps and cut.vec * itemsize == 16
            assert cut.warps in (1, 2, 4, 8) and cut.tile <= 4 * n + 128
        assert geometry.elementwise(n, itemsize, H100).programs * cut.tile >= n


def test_a_barrier_is_met_by_programs_that_are_on_the_device_at_once():
    for n in (10**4, 10**6, 2**33):
        assert geometry.stream(n, 4, 3, H100).programs <= H100.processors
        assert geometry.stream(n, 4, 3, Machine(2, interpreted=True)).programs == 1
    assert geometry.stream(9, 4, 3, H100)[:4] == (1, 32, 4, 1)
    assert geometry.stream(10**6, 4, 3, H100).resident == 3
    assert [geometry.stream(10**6, 4, 3, H100, others).resident for others in range(4)] == [
        3, 2, 1, 1,
    ]  # fmt: skip


def test_epochs_of_one_launch():
    def epochs(engine, n, most, itemsize=4, elementary=False):
        return geometry.epochs_at_once(engine, n, itemsize, 3, most, elementary, H100)

    assert epochs("closed_form", 9, 10**9) == 10**9
    assert epochs("moments", 9, 100_000) == 100_000
    assert epochs("stream", 2**33, 10**6) == 2
    assert epochs("stream", 2**40, 10**6, itemsize=8) == 1
    assert epochs("stream", 10**8, 10**6) > 2 * epochs("stream", 10**8, 10**6, elementary=True) > 2


def test_what_is_fastest_is_measured_once():
    asked = []

    def seconds(choice):
        asked.append(choice)
        return abs(choice - 4)

    key, choices = ("a test", 1), tuning.OCCUPANCIES
    found = [tuning.index_of_fastest(key, choices, seconds) for _ in range(3)]
    assert found == [2, 2, 2] and asked == list(choices) and choices[2] == 4
    for occupancy in tuning.OCCUPANCIES:
        assert geometry.reduction(10**8, 4, 5, H100, occupancy).programs == 132 * occupancy


def test_nothing_is_measured_where_there_is_no_gpu():
    run = []
    assert tuning.fastest(torch.zeros(9), "a kernel", tuning.OCCUPANCIES, run.append) is None
    assert not run


def test_programs_of_every_share_are_on_the_device_at_once():
    assert geometry.shares(Machine(132, 64)) == geometry.SHARES[:1]
    for share in geometry.shares(H100):
        assert share.warps * share.programs * 32 * share.registers <= 65536
        for n in (9, 10**4, 10**6, 2**33):
            cut = geometry.stream(n, 4, 3, H100, share=share)
            assert 1 <= cut.programs <= share.programs * H100.processors
            assert cut.resident <= share.resident and cut.registers == share.registers * (
                cut.programs > 1
            ) + geometry.REGISTERS * (cut.programs == 1)


def test_workspaces_hold_every_partial_sum():
    cut = geometry.reduction(10**8, 4, 9, H100)
    assert geometry.partial_sums(cut, 9) >= cut.programs * 9
    assert geometry.matrices(3) == 5 * 7 * 7
    for size in (3, 7, 67, 511):
        assert geometry.band(size) * geometry.width(size) <= 4096
