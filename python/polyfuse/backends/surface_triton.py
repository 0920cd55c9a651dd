"""Launches of kernels/surface.py: models of several variables on a GPU, as launch.py has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..symbolic import Traced
from . import geometry
from .factors import Terms, terms_of
from .launch import Run, criterion_arguments, launch, machine, workspace

MAX_TERMS = 62  # with a constant and the residual: 64 columns, whose products stay in registers
LEAST_COLUMNS = 16  # of a product on tensor cores
TILE = 512  # terms of samples in a tile, 4 for each thread: a criterion with exp takes no more


@dataclass(frozen=True)
class Samples:
    """x [N, V], y [N] and w [N] on the device, and the terms of the model."""

    x: torch.Tensor
    y: torch.Tensor
    terms: Terms
    omit: bool = False
    weight: torch.Tensor | None = None

    @classmethod
    def of(
        cls, model: Traced, x: torch.Tensor, y: torch.Tensor, omit: bool = False,
        weight: torch.Tensor | None = None,
    ) -> Samples:  # fmt: skip
        terms = terms_of(model.exponents, model.variables, x.device)
        return cls(x, y, terms, omit, weight)

    def arguments(self) -> tuple[Any, ...]:
        x, y, w = self.x, self.y, self.y if self.weight is None else self.weight
        variable, frame, _ = self.terms
        strides = *x.stride(), y.stride(0), w.stride(0)
        return x, y, w, x.shape[0], *strides, x.shape[1], variable, frame, len(variable)

    def cut(self, width: int) -> geometry.Pass:
        """Programs that are on the device at once: of 8 warps on a processor at 255 registers."""
        n, there = self.x.shape[0], machine(self.x.device)
        rows, warps = rows_of(width), 4 if width <= 32 else 8
        if there.interpreted:
            rows = max(LEAST_COLUMNS, min(geometry.width(n), 1024))
        programs = min(geometry.tiles(n, rows), 8 // warps * there.processors)
        return geometry.Pass(programs, rows, 1, warps)


def rows_of(width: int) -> int:
    """Samples of a tile."""
    return max(LEAST_COLUMNS, TILE // width)


def _constants(samples: Samples, run: Run, width: int) -> dict[str, Any]:
    params = run.map.n_params
    return {
        "P": params, "K": run.map.n_terms, "C": samples.terms.variable.shape[1], "W": width,
        "PW": width if run.map.identity else geometry.width(params),
        "IDENTITY": run.map.identity, "OMIT": samples.omit, "MEAN": run.mean,
        "METHOD": run.rule.method, "WEIGHTED": samples.weight is not None, **run.of_tables(),
    }  # fmt: skip


def step(samples: Samples, run: Run) -> None:
    """One epoch; the loss left behind is that of before the step."""
    from ..kernels.surface import surface_step_kernel

    sums, width = run.map.n_terms + 2, geometry.width(run.map.n_terms)
    cut = samples.cut(width)
    work, counters = workspace(samples.x.device, cut.programs * sums)
    launch(
        surface_step_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
        run.first_epoch, run.record_every, run.tol, work, counters, ROWS=cut.rows,
        CHUNK=geometry.chunk(width), ROUND=run.rounds(samples),
        **criterion_arguments(run.criterion), **_constants(samples, run, width),
    )  # fmt: skip


def stream(samples: Samples, run: Run) -> None:
    """All epochs, from the samples."""
    from ..kernels.surface import surface_stream_kernel

    sums, width = run.map.n_terms + 2, geometry.width(run.map.n_terms)
    cut = samples.cut(width)
    if machine(samples.x.device).interpreted:  # programs that run one after another cannot meet
        cut = cut._replace(programs=1)
    work, counters = workspace(samples.x.device, geometry.partial_sums(cut, sums))
    launch(
        surface_stream_kernel, cut.programs, cut.warps, *samples.arguments(), *run.addresses(),
        run.first_epoch, run.epochs, run.record_every, run.tol, work, counters, ROWS=cut.rows,
        CHUNK=geometry.chunk(width), launch_cooperative_grid=cut.programs > 1,
        **criterion_arguments(run.criterion), **run.of_changes(), **run.of_bounds(),
        **_constants(samples, run, width),
    )  # fmt: skip


def columns_of(samples: Samples) -> int:
    """The width of the moments' matrix: the terms, and the residual after them."""
    return max(LEAST_COLUMNS, geometry.width(samples.terms.variable.shape[1] + 1))


def new_moments(samples: Samples, n_terms: int) -> torch.Tensor:
    """The sums [W, W] of products of columns, and the reference [W]."""
    width = columns_of(samples)
    return torch.empty(width * (width + 1), dtype=torch.float64, device=samples.x.device)


def square_in(buffer: torch.Tensor, samples: Samples) -> float:
    """Sum w r^2 among the moments."""
    residual = samples.terms.variable.shape[1]
    return float(buffer[residual * (columns_of(samples) + 1)])


def moments(
    samples: Samples, run: Run, buffer: torch.Tensor, *, given: bool, run_epochs: bool = True,
    closed: bool = False, step: bool = False, change: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """The moments into the buffer, unless given, and all epochs from them.

    change [K, K]: what turns coefficients of the model into those of the samples' terms.
    """
    from ..kernels.surface import surface_moments_kernel

    width, params = columns_of(samples), run.map.n_params
    cut = samples.cut(width)
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
