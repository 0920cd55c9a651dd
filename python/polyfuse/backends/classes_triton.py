"""Cross entropy of polynomial logits on a GPU: launches of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..stacked import Stacked
from . import geometry
from .device import recurrence_on
from .geometry import Machine, Pass
from .launch import Run, class_arguments, launch, machine, workspace

MAX_COEFFICIENTS = 1024  # padded, of one program
MAX_TERMS = 16  # of which the kernels are a multiple in size


def refuse(model: Stacked) -> str | None:
    """None, or why the kernels cannot serve outputs of one variable."""
    terms = model.n_terms
    if terms > MAX_TERMS:
        return f"{terms} coefficients of a class, more than {MAX_TERMS}"
    if (padded := _padded(model)) > MAX_COEFFICIENTS:
        return f"{padded} coefficients, padded to powers of two, more than {MAX_COEFFICIENTS}"
    return None


@dataclass(frozen=True)
class Samples:
    """x [N] and its targets on the device: classes [N], or the probability of each [N, C]."""

    x: torch.Tensor
    y: torch.Tensor
    model: Stacked
    weight: torch.Tensor | None = None  # [N]

    def arguments(self) -> tuple[Any, ...]:
        """Of both kernels, up to the recurrence of the basis."""
        x, y, model = self.x, self.y, self.model
        w = x if self.weight is None else self.weight
        return (
            x, y, w, len(x), x.stride(0), y.stride(0), y.stride(-1), w.stride(0), model.shift,
            model.scale, recurrence_on(model.basis, model.n_terms, x.device),
        )  # fmt: skip

    def cut(self, most: int, on: Machine) -> Pass:
        return geometry.classes(len(self.x), self.model.n_terms, self.model.outputs, on, most)

    def workspace(self, cut: Pass) -> tuple[torch.Tensor, torch.Tensor]:
        return workspace(self.x.device, geometry.partial_sums(cut, _padded(self.model) + 4))


def step(samples: Samples, run: Run) -> None:
    """One epoch; the loss left behind is that of before the step."""
    from ..kernels.classes import classes_step_kernel

    on = machine(samples.x.device)
    cut = samples.cut(2 * on.processors, on)
    launch(
        classes_step_kernel, cut.programs, cut.warps, *samples.arguments(),
        run.rule.rows, run.state, run.first_epoch, run.record_every, run.tol,
        *samples.workspace(cut), ROUND=run.rounds(samples), **_constants(samples, run, cut),
    )  # fmt: skip


def stream(samples: Samples, run: Run) -> None:
    """All epochs, from the samples."""
    from ..kernels.classes import classes_stream_kernel

    on = machine(samples.x.device)
    cut = samples.cut(on.processors, on)
    alone = cut.programs == 1
    launch(
        classes_stream_kernel, cut.programs, cut.warps, *samples.arguments(),
        run.rule.rows, run.state, run.first_epoch, run.epochs, run.record_every, run.tol,
        *samples.workspace(cut), ALONE=alone, launch_cooperative_grid=not alone,
        **run.of_changes(), **run.of_bounds(), **_constants(samples, run, cut),
    )  # fmt: skip


def _padded(model: Stacked) -> int:
    return geometry.width(model.n_terms) * geometry.width(model.outputs)


def _constants(samples: Samples, run: Run, cut: Pass) -> dict[str, Any]:
    terms, outputs = samples.model.n_terms, samples.model.outputs
    return {
        "K": terms, "C": outputs, "KW": geometry.width(terms), "CW": geometry.width(outputs),
        "ROWS": cut.rows, "CHUNK": geometry.class_chunk(_padded(samples.model)),
        "MEAN": run.mean, "METHOD": run.rule.method, "WEIGHTED": samples.weight is not None,
        **class_arguments(run.criterion, samples.y, outputs), **run.of_tables(),
    }  # fmt: skip
