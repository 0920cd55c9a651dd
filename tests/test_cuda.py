"""What can be known of the CUDA module without a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import polyfuse as pf
import pytest
import torch
from polyfuse import workload

_cuda = pytest.importorskip("polyfuse._cuda", reason="built without nvcc")

H100 = _cuda.Device(132, 227 * 1024)
A100 = _cuda.Device(108, 163 * 1024)


def cuobjdump():
    found = shutil.which("cuobjdump")
    if not found:
        triton = pytest.importorskip("triton")
        found = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(found)


@pytest.fixture(scope="module")
def usage():
    """{(architecture, kernel): {resource: number}}"""
    run = subprocess.run(
        [cuobjdump(), "-res-usage", _cuda.__file__], capture_output=True, text=True, check=True
    )
    names = subprocess.run(["c++filt"], input=run.stdout, capture_output=True, text=True).stdout
    found, architecture = {}, None
    for line in names.splitlines():
        if line.startswith("arch = "):
            architecture = line.split()[-1]
        function = re.search(r"Function (?:void )?polyfuse::\(anonymous namespace\)::(.*)\(", line)
        if function:
            kernel = re.sub(r"polyfuse::(portable::)?", "", function[1])
        if "REG:" in line:
            numbers = re.findall(r"([A-Z]+)(?:\[0\])?:(\d+)", line)
            found[architecture, kernel] = {name: int(number) for name, number in numbers}
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_the_reason_is_given():
    reason = pf.backends()["cuda"]
    assert "driver" in reason or "no CUDA-capable device" in reason
    model = workload.make_model(pf.nn)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-4)
    with pytest.raises(ValueError, match="on cpu: cuda: not available: "):
        pf.fit(model, pf.nn.MSELoss(), optimizer, *workload.data(), epochs=1, backend="cuda")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_kernel_is_there_and_the_small_ones_stay_in_registers(usage, architecture):
    kernels = dict(_cuda.kernels())
    assert {kernel for found, kernel in usage if found == architecture} == set(kernels)
    for kernel, threads in kernels.items():
        used = usage[architecture, kernel]
        assert used["REG"] * threads <= 65536, kernel
        assert used["SHARED"] <= 32 * 1024, kernel  # see kSharedByDefault of launch.cuh
        bucket = re.search(r", (\d+)", kernel)
        if not bucket or int(bucket[1]) <= 5:
            assert used["STACK"] == used["LOCAL"] == 0, (kernel, used)


@pytest.mark.parametrize("device", [H100, A100], ids=["h100", "a100"])
@pytest.mark.parametrize("dtype", [0, 1], ids=["f32", "f64"])
@pytest.mark.parametrize("n", [1, 9, 1003, 8192, 8193, 10**6, 10**8, 2**31 + 1, 2**33])
@pytest.mark.parametrize("n_terms", [1, 3, 5, 13, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_stream_run_covers_the_data_and_fits_the_device(device, dtype, n, n_terms, weighted):
    grid = _cuda.geometry("stream", n, dtype, n_terms, n_terms, device, weighted)
    sample = (3 if weighted else 2) * (8 if dtype else 4)
    assert 1 <= grid.blocks <= device.processors
    assert (grid.blocks - 1) * grid.chunk < n <= grid.blocks * grid.chunk
    assert 0 < grid.resident <= grid.chunk and grid.chunk * (8 if dtype else 4) % 16 == 0
    assert grid.shared == grid.resident * sample
    assert grid.shared + 20 * 1024 <= device.shared
    assert grid.cooperative == (grid.blocks > 1)
    assert grid.threads in (32, 64, 128, 256, 512)
    bounds = dict(_cuda.kernels())
    bucket = next(b for b in (2, 3, 4, 5, 8, 16, 33) if n_terms <= b)
    kernel = f"stream<{('float', 'double')[dtype]}, {bucket}, SquaredError>"
    assert grid.threads <= bounds[kernel]
    if n == 10**6 and not dtype:  # 8 or 12 MB, of at least 16 that are there
        assert grid.resident == grid.chunk


def test_declared_shared_memory_leaves_what_the_stream_run_takes(usage):
    for (_, kernel), used in usage.items():
        if kernel.startswith("stream"):
            assert used["SHARED"] <= 20 * 1024


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_blocks_of_a_pass_are_on_the_device_at_once(usage, architecture):
    pattern = (
        r"(step|moments|project|evaluate|count_nonfinite|classes_step)<(float|double)(?:, (\d+))?"
    )
    for (of, kernel), used in usage.items():
        found = re.match(pattern, kernel)
        if not found or of != architecture:
            continue
        name, terms = found[1].replace("classes_step", "classes"), int(found[3] or 3)
        dtype = int(found[2] == "double")
        grid = _cuda.geometry(name, 2**33, dtype, terms, terms, H100)
        registers = -(-used["REG"] // 8) * 8 * grid.threads
        assert grid.blocks <= 65536 // registers * H100.processors, kernel


@pytest.mark.parametrize("kernel", ["step", "moments", "evaluate", "project", "count_nonfinite"])
@pytest.mark.parametrize("n", [1, 9, 1003, 10**6, 2**31 + 1, 2**33])
def test_passes_fill_the_device_and_no_more(kernel, n):
    grid = _cuda.geometry(kernel, n, 0, 3, 3, H100)
    assert 1 <= grid.blocks <= 2 * H100.processors and grid.threads <= 256
    most = 132 if kernel == "moments" else 264
    assert grid.blocks == (1 if n <= 8192 else min(most, -(-n // 2048)))
    partial = grid.blocks * 99 * 8
    assert 64 + partial + grid.shared <= _cuda.workspace_bytes(H100)


def test_large_closed_forms_work_in_memory():
    shared = [_cuda.geometry("epochs", 9, 0, p, p, H100).shared for p in (1, 3, 33, 64)]
    assert 0 < shared[0] < shared[1] < 48 * 1024 and shared[2:] == [0, 0]


def test_launches_come_back_in_time():
    def epochs(engine, n, n_terms=3, elementary=False):
        return _cuda.epochs_within(0.2, engine, n, 0, n_terms, elementary, H100)

    assert epochs(0, 9) >= 10_000 and 1 <= epochs(0, 2**33) <= 20
    assert epochs(1, 2**33) == epochs(1, 9) > epochs(1, 9, 33) > 10_000
    assert epochs(0, 10**8) > 2 * epochs(0, 10**8, elementary=True) > 2
    assert epochs(2, 9) >= 2**62


@pytest.mark.parametrize("device", [H100, A100], ids=["h100", "a100"])
@pytest.mark.parametrize("kernel", ["step", "stream", "moments", "epochs"])
@pytest.mark.parametrize("n", [1, 9, 1003, 10**6, 2**31 + 1, 2**33])
@pytest.mark.parametrize(
    ("columns", "outputs"),
    [*((c, 1) for c in (1, 6, 7, 15, 16, 31, 63, 64, 65)), (1, 64), (2, 64), (9, 7), (21, 3)],
)
def test_launches_of_several_variables_fit_the_device(columns, outputs, n, kernel, device):
    width = _cuda.surface_width(columns, outputs)
    assert width % 8 == 0 and columns + outputs <= width < columns + outputs + 8 <= 74
    rows = 256 if width <= 16 else 128 if width <= 32 else 64
    for closed in (False, True):
        grid = _cuda.surface_geometry(kernel, n, columns, outputs, 64, closed, device)
        assert grid.threads == 256 and grid.threads % rows == 0
        assert grid.shared >= 8 * width * rows
        assert grid.cooperative == (kernel == "stream" and grid.blocks > 1)
        at_once = -(-grid.blocks // device.processors)  # with what the kernels declare
        assert 1 <= at_once <= 2 and at_once * (grid.shared + 24 * 1024) <= device.shared
        assert grid.blocks <= -(-n // rows) and (grid.blocks == 1 or kernel != "epochs")
        if kernel in ("moments", "epochs"):
            assert grid.shared >= 8 * (width**2 + columns * (columns + 2))
        partial = grid.blocks * max(width**2, 2 * (columns * outputs + 3))
        work = 4 * 128 * 129 + 8 * 64  # of the closed form of 64 parameters
        assert _cuda.surface_workspace_bytes(grid, columns, outputs, 64) == 64 + 8 * (
            partial + work
        )


def test_small_closed_forms_of_several_variables_work_on_chip():
    def shared(n_params, closed):
        return _cuda.surface_geometry("epochs", 9, n_params, 1, n_params, closed, H100).shared

    assert shared(16, True) > shared(16, False) and shared(64, True) == shared(64, False)


def test_declared_shared_memory_of_several_variables(usage):
    found = [used["SHARED"] for (_, kernel), used in usage.items() if "surface" in kernel]
    assert len(found) == 8 and max(found) <= 24 * 1024


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="none called fit"):
        _cuda.geometry("fit", 1, 0, 1, 1, H100)
