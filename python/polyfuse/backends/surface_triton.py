"""Models of several variables on a GPU, as launch.py has those of one: launches of
kernels/surface.py and kernels/surface_moments.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..stacked import Stacked
from ..symbolic import Traced
from . import geometry
from .factors import Terms, terms_of
from .launch import Run, class_arguments, criterion_arguments, launch, machine, workspace

MAX_COLUMNS = 64  # of which the products stay in registers: terms, a constant and residuals
MAX_BOTH = MAX_COLUMNS - 1  # terms and outputs
MAX_TERMS = MAX_BOTH - 1
MAX_COEFFICIENTS = 64  # of several outputs
LEAST_COLUMNS = 16  # of a product on tensor cores
TILE = 4  # terms of samples in a tile for each thread: a criterion with exp takes no more


def refuse(model: Stacked) -> str | None:
    """None, or why the kernels cannot serve outputs of several variables."""
    if model.n_params > MAX_COEFFICIENTS:
        return f"{model.n_params} coefficients, more than {MAX_COEFFICIENTS}"
    both = model.n_terms + model.outputs
    return f"{both} terms and outputs, more than {MAX_BOTH}" if both > MAX_BOTH else None


@dataclass(frozen=True)
class Samples:
    """x [N, V], y and w [N] on the device, and the terms of the model; of several outputs y and w
    are [N, outputs], under cross entropy w [N] and y classes [N] or the probability of each."""

    x: torch.Tensor
    y: torch.Tensor
    terms: Terms
    omit: bool = False
    weight: torch.Tensor | None = None
    outputs: int = 0  # 0: y is [N]

    @classmethod
    def of(
        cls, model: Traced, x: torch.Tensor, y: torch.Tensor, omit: bool = False,
        weight: torch.Tensor | None = None,
    ) -> Samples:  # fmt: skip
        terms = terms_of(model.exponents, model.variables, x.device)
        outputs = model.outputs if isinstance(model, Stacked) else 0
        return cls(x, y, terms, omit, weight, outputs)

    def arguments(self) -> tuple[Any, ...]:
        x, y, w = self.x, self.y, self.x if self.weight is None else self.weight
        variable, frame, _ = self.terms
        between = x.stride(1), *(t.stride(1) if t.ndim > 1 else 0 for t in (y, w))
        return (
            x, y, w, x.shape[0], *(t.stride(0) for t in (x, y, w)), x.shape[1], *between, variable,
            frame, len(variable),
        )  # fmt: skip

    def cut(self, width: int, matrix: int = 0) -> geometry.Pass:
        """Programs that are on the device at once: of 8 warps on a processor at 255 registers;
        matrix: the columns of one of which a program has those of all threads."""
        n, there = self.x.shape[0], machine(self.x.device)
        warps = warps_of(max(width, matrix))
        rows = rows_of(width, warps)
        if there.interpreted:
            rows = max(LEAST_COLUMNS, min(geometry.width(n), 1024))
        programs = min(geometry.tiles(n, rows), 8 // warps * there.processors)
        return geometry.Pass(programs, rows, 1, warps)


def warps_of(width: int) -> int:
    return 4 if width <= 32 else 8


def rows_of(width: int, warps: int) -> int:
    """Samples of a tile."""
    return max(LEAST_COLUMNS, TILE * 32 * warps // width)


def _constants(samples: Samples, run: Run, width: int) -> dict[str, Any]:
    params, outputs = run.map.n_params, samples.outputs
    return {
        "P": params, "K": run.map.n_terms // (outputs or 1), "OUTPUTS": outputs, "W": width,
        "C": samples.terms.variable.shape[1],
        "PW": width if run.map.identity and not outputs else geometry.width(params),
        "IDENTITY": run.map.identity, "OMIT": samples.omit, "MEAN": run.mean,
        "METHOD": run.rule.method, "WEIGHTED": samples.weight is not None, **run.of_tables(),
    }  # fmt: skip


def _of_pass(samples: Samples, run: Run) -> tuple[geometry.Pass, dict[str, Any]]:
    """A pass over the losses of the samples, and what its kernels are told by name."""
    outputs, across = samples.outputs, 1
    width = geometry.width(run.map.n_terms // (outputs or 1))
    if outputs:
        width, across = (max(LEAST_COLUMNS, w) for w in (width, geometry.width(outputs)))
    cut = samples.cut(max(width, across))
    return cut, {
        "CW": across, "ROWS": cut.rows, "CHUNK": geometry.chunk(run.map.n_terms),
        **criterion_arguments(run.criterion),
        **class_arguments(run.criterion, samples.y, outputs), **_constants(samples, run, width),
    }  # fmt: skip


def _sums(run: Run) -> int:
    """Of a program: slopes, values, what counts in the mean, what cross entropy keeps."""
    return run.map.n_terms + 3


def step(samples: Samples, run: Run) -> None:
    """One epoch; the loss left behind is that of before the step."""
    from ..kernels.surface import surface_step_kernel

    cut, told = _of_pass(samples, run)
    work, counters = workspace(samples.x.device, cut.programs * _sums(run))
    launch(
        surface_step_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
        run.first_epoch, run.record_every, run.tol, work, counters, ROUND=run.rounds(samples),
        **told,
    )  # fmt: skip


def stream(samples: Samples, run: Run) -> None:
    """All epochs, from the samples."""
    from ..kernels.surface import surface_stream_kernel

    cut, told = _of_pass(samples, run)
    if machine(samples.x.device).interpreted:  # programs that run one after another cannot meet
        cut = cut._replace(programs=1)
    work, counters = workspace(samples.x.device, geometry.partial_sums(cut, _sums(run)))
    launch(
        surface_stream_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
        run.first_epoch, run.epochs, run.record_every, run.tol, work, counters,
        launch_cooperative_grid=cut.programs > 1, **run.of_changes(), **run.of_bounds(), **told,
    )  # fmt: skip


def columns_of(samples: Samples) -> int:
    """The width of the moments' matrix: the terms, and the residuals after them."""
    columns = samples.terms.variable.shape[1] + (samples.outputs or 1)
    return max(LEAST_COLUMNS, geometry.width(columns))


def new_moments(samples: Samples, n_terms: int) -> torch.Tensor:
    """The sums [W, W] of products of columns, and the reference [W], or of outputs [K, outputs]."""
    width = columns_of(samples)
    size = width * width + max(width, n_terms * samples.outputs)
    return torch.empty(size, dtype=torch.float64, device=samples.x.device)


def square_in(buffer: torch.Tensor, samples: Samples) -> float:
    """Sum w r^2 among the moments."""
    step = columns_of(samples) + 1
    residuals = buffer[samples.terms.variable.shape[1] * step :: step]
    return float(residuals[: samples.outputs or 1].sum())


def moments(
    samples: Samples, run: Run, buffer: torch.Tensor, *, given: bool, run_epochs: bool = True,
    closed: bool = False, step: bool = False, change: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """The moments into the buffer, unless given, and all epochs from them.

    change [K, K]: what turns coefficients of the model into those of the samples' terms.
    """
    from ..kernels.surface_moments import surface_moments_kernel

    width, params = columns_of(samples), run.map.n_params
    cut = samples.cut(width, params if samples.outputs else 0)
    cut = cut._replace(programs=1) if given else cut
    jump, partial = 2 * params + 1, cut.programs * width * width
    work, counters = workspace(samples.x.device, partial + geometry.matrices(params) * closed)
    launch(
        surface_moments_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
        run.first_epoch, run.epochs, run.record_every, run.tol, buffer,
        work[partial:], work, counters, ONE=samples.terms.one, ROWS=cut.rows,
        CHUNK=geometry.chunk(width * width), BAND=geometry.band(jump), JUMP=geometry.width(jump),
        GIVEN=given, RUN=run_epochs, CLOSED=closed, STEP=step,
        ROUND=step and run.rounds(samples), weight=run.criterion.told["weight"],
        change_ptr=buffer if change is None else change, CHANGE=change is not None,
        **run.of_changes(), **run.of_bounds(), **_constants(samples, run, width),
    )  # fmt: skip
