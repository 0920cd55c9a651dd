"""The CUDA backend with its kernels compiled for the CPU, against tests/emulation."""

import ctypes
import fcntl
import hashlib
import importlib.util
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pybind11
from polyfuse.backends.cuda import Cuda

ROOT = Path(__file__).parent.parent
SOURCES = ("bindings_cuda.cpp", "bindings_cuda_fits.cpp", "cuda/fits.cpp", "cuda/geometry.cpp",
           "cuda/surface.cpp", "cuda/classes.cu", "cuda/descend_fits.cu", "cuda/device.cu",
           "cuda/leap_fits.cu", "cuda/moments.cu", "cuda/solve_fits.cu", "cuda/step.cu",
           "cuda/stream.cu", "cuda/surface.cu", "cuda/verbs.cu")  # fmt: skip
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wno-unknown-pragmas", "-fPIC", "-fvisibility=hidden",
         "-pthread", "-U_FORTIFY_SOURCE", "-Werror")  # fmt: skip


def build():
    """The module of kernels for the CPU, compiled anew only where a source has changed."""
    inputs = [
        p for d in ("csrc/core", "csrc/cuda", "tests/emulation") for p in (ROOT / d).iterdir()
    ]
    digest = hashlib.sha256("".join(FLAGS).encode())
    for path in sorted([*inputs, *(ROOT / "csrc").glob("bindings_cuda*")]):
        digest.update(path.read_bytes())
    folder = ROOT / "build/emulation" / digest.hexdigest()[:16]
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:  # closing it gives it up
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_into(library)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_into(library):
    folder = library.parent
    includes = (ROOT / "tests/emulation", pybind11.get_include(), sysconfig.get_path("include"))

    def compile(source):
        target = folder / f"{Path(source).name}.o"
        command = ["g++", *FLAGS, *(f"-I{i}" for i in includes), "-x", "c++", "-c"]
        subprocess.run([*command, str(ROOT / "csrc" / source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile, SOURCES))
    partial = library.with_suffix(".partial")
    subprocess.run(["g++", "-shared", "-pthread", *objects, "-o", str(partial)], check=True)
    partial.rename(library)


class Emulated(Cuda):
    name = "emulated"
    device_type = "cpu"

    def __init__(self, module, blocks=None):
        super().__init__()
        self.emulation = module
        self.blocks = blocks  # of every pass over the data; None: as the backend chooses

    def missing(self):
        return None

    @property
    def module(self):
        return self.emulation

    def workspace(self, device, stream, least=0):
        """Beyond the counters, what no launch has written yet is nan."""
        held = super().workspace(device, stream, least)
        header = self.module.HEADER
        ctypes.memset(held.data_ptr() + header, 255, held.numel() - header)
        return held

    def sizes(self, device):
        return self.emulation.device(0)

    def on(self, device):
        return nullcontext(0)

    def geometry(self, kernel, data, map, device, model=None, closed=False):
        grid = super().geometry(kernel, data, map, device, model, closed)
        if self.blocks is None or kernel in ("epochs", "update", "store"):
            return grid
        grid.blocks = self.blocks
        grid.cooperative = kernel == "classes"
        if model is not None and model.exponents:
            grid.cooperative = kernel == "stream"
        elif kernel == "stream":
            # half of a block's chunk on chip where it fits, the rest in memory
            width = 2 if data.dtype else 4
            grid.chunk = -(-data.n // (self.blocks * width)) * width
            grid.blocks = -(-data.n // grid.chunk)
            grid.resident = min(grid.resident, grid.chunk // 2 // width * width)
            grid.cooperative = grid.blocks > 1
        return grid
