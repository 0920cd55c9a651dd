"""Launches of the Triton kernels: arguments in their order, workspaces, one count."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from ..criteria import CROSS_ENTROPY, ELEMENTARY, SQUARED, Criterion
from ..rules import METHODS, SgdOptions
from . import geometry, tuning
from .device import DeviceMap, DeviceRule, class_weights
from .geometry import Machine
from .tables import Tables
from .tuning import Choice

TRIAL_EPOCHS = 64
NUMBERS = ("beta", "delta", "pos_weight", "eps", "variance")  # a criterion has one at most
launches = 0


@dataclass(frozen=True)
class Samples:
    """x and y [N] on the device, and the model's variable (x - shift) * scale."""

    x: torch.Tensor
    y: torch.Tensor
    shift: float = 0.0
    scale: float = 1.0
    omit: bool = False
    weight: torch.Tensor | None = None  # [N]

    def arguments(self) -> tuple[Any, ...]:
        stride = [t.stride(0) if t.ndim else 1 for t in (self.x, self.y)]
        return self.x, self.y, self.x.numel(), *stride, self.shift, self.scale

    def of_weight(self) -> dict[str, Any]:
        w = self.x if self.weight is None else self.weight
        stride = w.stride(0) if w.ndim else 1
        return {"w_ptr": w, "w_stride": stride, "WEIGHTED": self.weight is not None}


@dataclass(frozen=True)
class Run:
    """What a run needs besides its samples; tables: where it ends, and with `load` starts."""

    map: DeviceMap
    rule: DeviceRule
    state: Any  # [7 P + 5 + M]
    tables: Tables | None = None
    load: bool = False
    mean: bool = True
    criterion: Criterion = SQUARED
    first_epoch: int = 0
    epochs: int = 1
    record_every: int = 0
    tol: float = -math.inf
    bounds: torch.Tensor | None = None  # [2, P], low and high

    def addresses(self) -> tuple[Any, ...]:
        return *model_arguments(self.map), self.rule.rows, self.state

    def constants(self, samples: Samples) -> dict[str, Any]:
        told = {"OMIT": samples.omit, "MEAN": self.mean, "METHOD": self.rule.method}
        return sizes(self.map) | samples.of_weight() | told

    def of_changes(self) -> dict[str, Any]:
        changes = self.rule.changes
        there = changes is not None
        return {"changes_ptr": changes if there else self.state, "CHANGES": there}

    def of_bounds(self) -> dict[str, Any]:
        there = self.bounds is not None
        return {"bounds_ptr": self.bounds if there else self.state, "BOUNDED": there}

    def of_tables(self) -> dict[str, Any]:
        tables = self.tables
        return {
            "tables_ptr": self.state if tables is None else tables.addresses,
            "LOAD": self.load,
            "STORE": tables is not None,
            "SINGLE": 0 if tables is None else tables.single,
        }

    def others(self, samples: Samples) -> int:
        """What takes registers besides the samples; see `geometry.stream`."""
        rich = self.rule.method > METHODS[SgdOptions].number
        return (self.criterion.kind in ELEMENTARY) + (samples.weight is not None) + rich

    def compiled_for(self, samples: Samples) -> tuple[Any, ...]:
        """What a kernel's speed rests on."""
        weighted = samples.weight is not None
        return self.map.n_terms, self.criterion.kind, self.rule.method, weighted

    def on_trial(self) -> Run:
        """A short run that leaves everything in memory of its own."""
        elsewhere = None if self.tables is None else self.tables.elsewhere()
        return replace(
            self, state=self.state.clone(), tables=elsewhere, tol=-math.inf,
            epochs=min(self.epochs, TRIAL_EPOCHS),
        )  # fmt: skip

    def rounds(self, samples: Any) -> bool:
        """Whether a step is one in float32."""
        return self.load and samples.x.dtype == torch.float32


def criterion_arguments(criterion: Criterion) -> dict[str, Any]:
    told = criterion.told
    return {
        "weight": told["weight"],
        "number": next((told[k] for k in NUMBERS if k in told), 1.0),
        "KIND": criterion.kind.tag,
        "LOG": told.get("log_input", told.get("log_target", False)),
        "FULL": told.get("full", False),
    }


def class_arguments(criterion: Criterion, y: torch.Tensor, classes: int) -> dict[str, Any]:
    """What cross entropy is told of its targets; nobody reads that of other criteria."""
    weight, ignored, smoothing = None, 0, 0.0
    if criterion.kind is CROSS_ENTROPY:
        weight, ignored, smoothing = (value for _, value in criterion.options)
    return {
        "class_ptr": class_weights(weight, classes, y.device),
        "ignored": ignored,
        "smoothing": smoothing,
        "INDEX": y.dtype == torch.int64,
        "SMOOTH": smoothing != 0,
    }


def model_arguments(map: DeviceMap) -> tuple[Any, ...]:
    return map.factor, map.span, map.slots, map.factor.numel()


def sizes(map: DeviceMap) -> dict[str, Any]:
    p, k = map.n_params, map.n_terms
    return {
        "P": p,
        "K": k,
        "PW": geometry.width(p),
        "KW": geometry.width(k),
        "IDENTITY": map.identity,
    }


@cache
def machine(device: torch.device) -> Machine:
    if device.type == "cpu":
        return Machine(2, interpreted=True)
    found = torch.cuda.get_device_properties(device)
    return Machine(found.multi_processor_count, found.warp_size)


_workspaces: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}


def workspace(device: torch.device, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 numbers and counters [2] that are 0, of the current stream."""
    if device.type == "cpu":
        key: Any = "cpu"
    elif torch.cuda.is_current_stream_capturing():
        key = None  # the graph keeps its own
    else:
        key = (device, torch.cuda.current_stream(device).cuda_stream)
    held = _workspaces.get(key)
    if held is None or held[0].numel() < count:
        size = max(4096, geometry.width(count))
        held = (
            torch.empty(size, dtype=torch.float64, device=device),
            torch.zeros(2, dtype=torch.int64, device=device),
        )
        if key is not None:
            _workspaces[key] = held
    return held


def fastest(
    samples: Samples, kernel: Hashable, choices: Sequence[Choice], run: Callable[[Choice], None],
    enough: int, epochs: int = 1,
) -> Choice | None:  # fmt: skip
    """See `tuning.fastest`; None where the samples of all epochs are less than `enough` bytes.

    Launches to measure do not count as such.
    """
    global launches
    before = launches
    if 2 * samples.x.nbytes * epochs < enough:
        return None
    found = tuning.fastest(samples.x, kernel, choices, run)
    launches = before
    return found


def launch(
    kernel: Any, programs: int, warps: int, *arguments: Any,
    registers: int = geometry.REGISTERS, **options: Any,
) -> None:  # fmt: skip
    global launches
    launches += 1
    device = arguments[0].device
    options |= {"num_warps": warps, "enable_fp_fusion": True}
    if device.type == "cpu":
        with np.errstate(all="ignore"):  # a GPU computes with inf and nan in silence
            kernel[(programs,)](*arguments, **options)
        return
    if torch.version.hip is None:
        options["maxnreg"] = registers
    with torch.cuda.device(device):
        kernel[(programs,)](*arguments, **options)


def step(samples: Samples, run: Run) -> None:
    """One epoch; the loss left behind is that of before the step."""
    from ..kernels.stream import step_kernel

    x, sums = samples.x, run.map.n_terms + 2

    def once(run: Run, occupancy: int | None) -> None:
        cut = geometry.reduction(
            x.numel(), x.element_size(), sums, machine(x.device), occupancy
        )  # fmt: skip
        work, counters = workspace(x.device, geometry.partial_sums(cut, sums))
        launch(
            step_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
            run.first_epoch, run.record_every, run.tol, work, counters,
            SW=geometry.width(sums), ROWS=cut.rows, VEC=cut.vec, CHUNK=geometry.chunk(sums),
            ROUND=run.rounds(samples), **criterion_arguments(run.criterion), **run.of_tables(),
            **run.constants(samples),
        )  # fmt: skip

    kernel = ("step", run.map.n_terms, run.criterion.kind, samples.weight is not None)

    def trial(occupancy: int) -> None:
        once(run.on_trial(), occupancy)

    once(run, fastest(samples, kernel, tuning.OCCUPANCIES, trial, tuning.LARGE))


def stream(samples: Samples, run: Run) -> None:
    """All epochs, from the samples."""
    from ..kernels.stream import stream_kernel

    x, terms, sums = samples.x, run.map.n_terms, run.map.n_terms + 2
    on = machine(x.device)

    def once(run: Run, share: geometry.Share) -> None:
        cut = geometry.stream(
            x.numel(), x.element_size(), terms, on, run.others(samples), share
        )  # fmt: skip
        work, counters = workspace(x.device, geometry.partial_sums(cut, sums))
        alone = cut.programs == 1
        launch(
            stream_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
            run.first_epoch, run.epochs, run.record_every, run.tol, work, counters,
            SW=geometry.width(sums), ROWS=cut.rows, VEC=cut.vec, CHUNK=geometry.chunk(sums),
            RESIDENT=cut.resident, ALONE=alone, launch_cooperative_grid=not alone,
            registers=cut.registers, **criterion_arguments(run.criterion), **run.of_tables(),
            **run.of_changes(), **run.of_bounds(), **run.constants(samples),
        )  # fmt: skip

    def trial(share: geometry.Share) -> None:
        once(run.on_trial(), share)

    kernel = ("stream", x.numel().bit_length(), run.compiled_for(samples))
    shares = geometry.shares(on)
    once(run, fastest(samples, kernel, shares, trial, tuning.LONG, run.epochs) or shares[0])


def new_moments(samples: Samples, n_terms: int) -> torch.Tensor:
    """As `device` lays them out."""
    return torch.empty(4 * n_terms + 2, dtype=torch.float64, device=samples.x.device)


def square_in(buffer: torch.Tensor, samples: Samples) -> float:
    """Sum w r^2 among the moments."""
    return float(buffer[2])


def moments(
    samples: Samples, run: Run, buffer: torch.Tensor, *, given: bool, run_epochs: bool = True,
    closed: bool = False, step: bool = False, occupancy: int | None = None,
) -> None:  # fmt: skip
    """The moments into buffer [4 K + 2], unless given, and all epochs from them.

    occupancy: programs of one processor; None: those that read the samples fastest.
    """
    from ..kernels.fit import moments_kernel

    x, device, map = samples.x, samples.x.device, run.map
    sums = 3 * map.n_terms

    def read(occupancy: int) -> None:
        scratch = torch.empty_like(buffer)
        moments(samples, run, scratch, given=False, run_epochs=False, occupancy=occupancy)

    if not given and occupancy is None:
        kernel = ("moments", map.n_terms, samples.weight is not None)
        occupancy = fastest(samples, kernel, tuning.OCCUPANCIES, read, tuning.LARGE)
    cut = geometry.reduction(x.numel(), x.element_size(), sums, machine(device), occupancy)
    warps = max(cut.warps, geometry.vector_warps(map.n_terms, map.n_params))
    if given:
        warps = geometry.vector_warps(map.n_terms, map.n_params)
        cut = cut._replace(programs=1)
    jump = 2 * map.n_params + 1
    partial = geometry.partial_sums(cut, sums)
    work, counters = workspace(device, partial + geometry.matrices(map.n_params) * closed)
    launch(
        moments_kernel, cut.programs, warps, *samples.arguments(), *run.addresses(),
        run.first_epoch, run.epochs, run.record_every, run.tol, buffer, work[partial:], work,
        counters, SW=geometry.width(sums), ROWS=cut.rows, VEC=cut.vec,
        CHUNK=geometry.chunk(sums), BAND=geometry.band(jump), JUMP=geometry.width(jump),
        GIVEN=given, RUN=run_epochs, CLOSED=closed, STEP=step,
        ROUND=step and run.rounds(samples), **run.of_tables(), **run.of_changes(),
        **run.of_bounds(), **run.constants(samples),
    )  # fmt: skip


def evaluate(samples: Samples, map: DeviceMap, params: torch.Tensor) -> torch.Tensor:
    """V c [N], contiguous, for params [P] float64."""
    from ..kernels.verbs import evaluate_kernel

    x = samples.x
    out = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    cut = geometry.elementwise(x.numel(), x.element_size(), machine(x.device))
    _, _, n, stride, _, shift, scale = samples.arguments()
    launch(
        evaluate_kernel, cut.programs, cut.warps, x, out, n, stride, shift, scale,
        *model_arguments(map), params, ROWS=cut.rows, VEC=cut.vec, **sizes(map),
    )  # fmt: skip
    return out


def project(samples: Samples, map: DeviceMap, params: torch.Tensor) -> torch.Tensor:
    """V^T g, pulled back at params [P] float64: [P], for g as the samples' y."""
    from ..kernels.verbs import project_kernel

    x, sums = samples.x, map.n_terms
    out = torch.empty(map.n_params, dtype=torch.float64, device=x.device)
    cut = geometry.reduction(x.numel(), x.element_size(), sums, machine(x.device))
    work, counters = workspace(x.device, geometry.partial_sums(cut, sums))
    launch(
        project_kernel, cut.programs, cut.warps, *samples.arguments(), *model_arguments(map),
        params, out, work, counters, ROWS=cut.rows, VEC=cut.vec, CHUNK=geometry.chunk(sums),
        **sizes(map),
    )  # fmt: skip
    return out


def nonfinite(samples: Samples) -> torch.Tensor:
    """How many samples hold a nan or inf: int64 [1]."""
    from ..kernels.verbs import nonfinite_kernel

    x = samples.x
    out = torch.empty(1, dtype=torch.int64, device=x.device)
    cut = geometry.reduction(x.numel(), x.element_size(), 1, machine(x.device))
    work, counters = workspace(x.device, geometry.partial_sums(cut, 1))
    launch(
        nonfinite_kernel, cut.programs, cut.warps, *samples.arguments()[:5], out, work, counters,
        ROWS=cut.rows, VEC=cut.vec, CHUNK=geometry.chunk(1), **samples.of_weight(),
    )  # fmt: skip
    return out


def update(tables: Tables, rule: DeviceRule, dtype: torch.dtype) -> None:
    """The ordinary update, from what lies at the tables' addresses."""
    from ..kernels.verbs import update_kernel

    launch(
        update_kernel, 1, 1, tables.addresses, rule.rows, METHOD=rule.method,
        **_vector(tables, rule, dtype),
    )  # fmt: skip


def store(state: torch.Tensor, tables: Tables, rule: DeviceRule, dtype: torch.dtype) -> None:
    """Writes the state's parameters, and what is kept of them, to where the next ones go."""
    from ..kernels.verbs import store_kernel

    launch(
        store_kernel, 1, 1, state, tables.addresses, rule.rows, **_vector(tables, rule, dtype)
    )  # fmt: skip


def _vector(tables: Tables, rule: DeviceRule, dtype: torch.dtype) -> dict[str, Any]:
    import triton.language as tl

    count = rule.rows.shape[1]
    element = tl.float32 if dtype == torch.float32 else tl.float64
    return {"P": count, "PW": geometry.width(count), "T": element, "SINGLE": tables.single}
