"""The compiled module of CUDA kernels. Addresses are ints, of device memory."""

from collections.abc import Sequence

MAX_TERMS: int
MAX_FIT_TERMS: int
MAX_PARAMS: int
HEADER: int
LOAD: int
STORE: int
STEP: int
MOMENTS: int

class Data:
    def __init__(
        self, x: int, y: int, w: int, n: int, x_stride: int, y_stride: int, w_stride: int,
        is64: bool, omit: bool, shift: float, scale: float,
    ) -> None: ...  # fmt: skip
    @property
    def n(self) -> int: ...
    @property
    def dtype(self) -> int: ...
    @property
    def weighted(self) -> bool: ...

class Schedule:
    def __init__(
        self, first_epoch: int, epochs: int, record_every: int, tol: float, previous: float
    ) -> None: ...

class Geometry:
    blocks: int
    threads: int
    shared: int
    chunk: int
    resident: int
    cooperative: bool

class Run:
    def __init__(
        self, data: Data, criterion: int, mean: bool, engine: int, schedule: Schedule, flags: int,
        n_params: int, n_coefficients: int, n_terms: int, n_slots: int, identity: bool,
        factor: int, spans: int, slots: int, rule: int, changes: int, state: int, moments: int,
        has_moments: bool, tables: int, single: int, out: int, workspace: int, device: int,
        grid: Geometry,
    ) -> None: ...  # fmt: skip
    def set_outputs(self, n_outputs: int, y_output: int, w_output: int) -> None: ...
    def set_classes(self, index: bool, weight: int) -> None: ...
    def set_basis(self, alpha: int, beta: int, gamma: int) -> None: ...

class SurfaceRun:
    def __init__(
        self, run: Run, n_variables: int, x_column: int, variable: int, frame: int, depth: int,
        columns: int, one: int,
    ) -> None: ...  # fmt: skip

class Fits:
    """Many fits in one launch; see csrc/cuda/fits.h."""

    # address, and strides between samples and between fits
    x: tuple[int, int, int]
    y: tuple[int, int, int]
    w: tuple[int, int, int]
    basis: int
    degree_by: int
    engine: int
    criterion: int
    mean: bool
    schedule: tuple[int, int, int, float]
    wide: bool
    rule: Sequence[float]
    low: int
    high: int
    params: int
    grad: int
    loss: int
    recorded: int
    determination: int
    covariance: int
    counted: int
    weight_sum: int
    previous: int
    epochs: int
    degree: int
    rank: int
    status: int
    grid: Geometry
    def __init__(
        self, n: int, count: int, n_terms: int, is64: bool, omit: bool, shift: float,
        scale: float, device: int,
    ) -> None: ...  # fmt: skip
    @property
    def on_chip(self) -> bool: ...
    @property
    def alike(self) -> bool: ...
    def keep(self, row: int, all: int) -> None: ...
    def pace(self, rates: int, paced: int) -> None: ...
    def follow(self, changes: int, rules: int) -> None: ...
    def leap(
        self, q: int, factor: int, maps: int, weight: float, rank: float,
        lengths: tuple[int, int, int], at_once: bool, buffer: bool, decay: bool,
    ) -> None: ...  # fmt: skip
    def lay_out(self, solve: bool, device: Device) -> None: ...
    def solve(self, stream: int) -> None: ...
    def descend(self, stream: int) -> None: ...

def step(run: Run, stream: int) -> None: ...
def stream(run: Run, stream: int) -> None: ...
def classes(run: Run, stream: int) -> None: ...
def moments(run: Run, stream: int) -> None: ...
def evaluate(run: Run, stream: int) -> None: ...
def project(run: Run, stream: int) -> None: ...
def count_nonfinite(run: Run, stream: int) -> None: ...
def update(run: Run, stream: int) -> None: ...
def store(run: Run, stream: int) -> None: ...
def surface_step(run: SurfaceRun, stream: int) -> None: ...
def surface_stream(run: SurfaceRun, stream: int) -> None: ...
def surface_moments(run: SurfaceRun, stream: int) -> None: ...

class Device:
    processors: int
    shared: int
    def __init__(self, processors: int, shared: int) -> None: ...

def device(index: int) -> Device: ...
def missing() -> str: ...
def kernels() -> list[tuple[str, int]]: ...
def workspace_bytes(device: Device) -> int: ...
def geometry(
    kernel: str, n: int, dtype: int, n_terms: int, n_params: int, device: Device,
    weighted: bool = False,
) -> Geometry: ...  # fmt: skip
def surface_geometry(
    kernel: str, n: int, columns: int, outputs: int, n_params: int, closed: bool, device: Device
) -> Geometry: ...
def surface_workspace_bytes(grid: Geometry, columns: int, outputs: int, n_params: int) -> int: ...
def surface_width(columns: int, outputs: int) -> int: ...
def epochs_within(
    seconds: float, engine: int, n: int, dtype: int, n_terms: int, elementary: bool, device: Device
) -> int: ...
