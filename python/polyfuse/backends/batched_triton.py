"""Batches of fits on a GPU: each lane of a Triton program takes one fit."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from ..rules import KEPT
from . import launch
from .batched import DEGREE_BY, Fits, Outcome, Run
from .batched_device import DeviceBatches, Leaps, Pace, Rows, Step
from .device import recurrence_on
from .triton import interpreted

BLOCK = 128  # fits of a program
WARPS = 4
MAX_TERMS = 16  # of which the kernel is a multiple in size


def refuse_place(device: torch.device) -> str | None:
    """None, or why Triton's kernels cannot run there."""
    if find_spec("triton") is None:
        return "triton is not installed"
    there = device.type == ("cpu" if interpreted() else "cuda")
    return None if there else f"the data is on {device}"


class BatchedTriton(DeviceBatches):
    name = "triton"

    def refuse(self, device: torch.device, n_terms: int) -> str | None:
        if reason := refuse_place(device):
            return reason
        return f"{n_terms} coefficients, more than {MAX_TERMS}" if n_terms > MAX_TERMS else None

    def launches(self) -> int:
        return launch.launches

    def processors(self, device: torch.device) -> int:
        return launch.machine(device).processors

    def solve(self, fits: Fits, covariance: bool, degree_by: str | None = None) -> Outcome:
        from ..kernels.batch import solve_fits_kernel

        terms, count = fits.params.shape
        empty = partial(torch.empty, dtype=torch.float64, device=fits.x.device)
        out = Outcome(
            params=empty(terms, count, dtype=fits.params.dtype), loss=empty(count),
            status=empty(count, dtype=torch.int32), rank=empty(count, dtype=torch.int32),
            counted=empty(count, dtype=torch.int32), weight_sum=empty(count),
            r_squared=empty(count),
            degree=empty(count, dtype=torch.int32) if degree_by else None,
        )  # fmt: skip
        root = empty(terms, terms, count) if covariance else out.loss
        _launch(
            solve_fits_kernel, fits, out.params, out.loss, out.counted, out.weight_sum,
            out.r_squared, root, out.status, out.rank,
            out.rank if out.degree is None else out.degree, DEGREE=DEGREE_BY.index(degree_by),
            ROOT=covariance,
        )  # fmt: skip
        if covariance:
            out = out._replace(covariance=torch.einsum("kib,kjb->ijb", root, root))
        return out

    def launch_epochs(
        self, run: Run, out: Outcome, rows: Rows, pace: Pace, leaps: Leaps | None
    ) -> None:
        from ..kernels.epochs import descend_fits_kernel, leap_fits_kernel

        fits, every, criterion = run.fits, run.record_every, run.criterion
        kept, kept_bits = [out.loss] * KEPT, 0
        for row, (what, value) in enumerate(rows):
            if isinstance(value, torch.Tensor) and not what.scalar:
                kept[row], kept_bits = value, kept_bits | 1 << row
        told = launch.criterion_arguments(criterion)
        weight, number = told.pop("weight"), told.pop("number")
        left = out.params, out.loss, out.status, out.rank
        rule, rates = pace
        changes = rule.rows if rule.changes is None else rule.changes
        constants = {"METHOD": rule.method, "RECORD": bool(every)}
        if leaps is not None:
            weight /= leaps.weight if run.mean else 1.0
            _launch(
                leap_fits_kernel, fits, rule.rows, rates, len(rates), run.first_epoch, run.epochs,
                every, weight, int(leaps.rank), leaps.q, leaps.factor, leaps.maps,
                int(leaps.at_once), leaps.lengths[0], *left, kept[0], out.grad, out.recorded,
                out.epochs, BUFFER=leaps.buffer, DECAY=leaps.decay, **constants,
            )  # fmt: skip
            return
        box = (out.loss, out.loss) if run.bounds is None else run.bounds
        previous = out.loss if out.previous is None else out.previous
        _launch(
            descend_fits_kernel, fits, rule.rows, changes, rates, len(rates), run.first_epoch,
            run.epochs, every, run.tol, weight, number, *left, *kept, out.grad, out.recorded,
            out.epochs, previous, *box, MEAN=run.mean, KEPT=kept_bits,
            CHANGES=rule.changes is not None, TOL=run.tol >= 0,
            PREVIOUS=out.previous is not None, BOUNDED=run.bounds is not None,
            MOMENTS=run.engine == "moments", **told, **constants,
        )  # fmt: skip

    def launch_step(self, step: Step) -> None:
        from ..kernels.epochs import step_fits_kernel

        told = launch.criterion_arguments(step.criterion)
        weight, number = told.pop("weight"), told.pop("number")
        (rule, rates), start = step.pace, step.fits.params
        kept, to = (
            [start if t is None else t for t in row]
            for row in ((start, *step.kept), (step.params_to, *step.kept_to))
        )
        _launch(
            step_fits_kernel, step.fits, rule.rows, rates, weight, number, *kept, *to,
            step.losses if step.before is None else step.before, step.losses, step.grad,
            METHOD=rule.method, KEPT=sum((t is not None) << r for r, t in enumerate(step.kept)),
            BEFORE=step.before is not None, **told,
        )  # fmt: skip


def _launch(kernel: Any, fits: Fits, *arguments: Any, **constants: Any) -> None:
    terms, count = fits.params.shape
    samples = [fits.x, fits.y, fits.x if fits.w is None else fits.w]
    launch.launch(
        kernel, -(-count // BLOCK), WARPS, *samples, fits.y.shape[0], count,
        *(t.stride(0) for t in samples),
        *(0 if t.shape[1] == 1 else t.stride(1) for t in samples),
        fits.shift, fits.scale, recurrence_on(fits.basis, terms, fits.x.device), *arguments,
        K=terms, BLOCK=BLOCK, OMIT=fits.omit, WEIGHTED=fits.w is not None, **constants,
    )  # fmt: skip
