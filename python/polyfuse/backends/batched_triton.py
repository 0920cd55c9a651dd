"""Batches of fits on a GPU: each lane of a Triton program takes one fit."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..rules import SgdOptions
from . import launch
from .batched import DEGREE_BY, Fits, Outcome, Run
from .device import device_rule, recurrence_on
from .triton import interpreted

BLOCK = 128  # fits of a program
WARPS = 4
MAX_TERMS = 16  # of which the kernel is a multiple in size
NO_CLOSED_FORM = "batches have no closed form on GPUs"


class BatchedTriton:
    name = "triton"

    def refuse(self, fits: Fits) -> str | None:
        device = fits.x.device
        if device.type != ("cpu" if interpreted() else "cuda"):
            return f"the data is on {device}"
        terms = fits.params.shape[0]
        return f"{terms} coefficients, more than {MAX_TERMS}" if terms > MAX_TERMS else None

    def launches(self) -> int:
        return launch.launches

    def refuse_engine(self, engine: str) -> str | None:
        return NO_CLOSED_FORM if engine == "closed_form" else None

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

    def descend(self, run: Run) -> Outcome:
        from ..kernels.batch import descend_fits_kernel

        fits, every, criterion = run.fits, run.record_every, run.criterion
        terms, count = fits.params.shape
        empty = partial(torch.empty, dtype=torch.float64, device=fits.x.device)
        rows = run.rows()
        keeps = max(len(rows), 2)  # of SGD, whether the buffer is filled
        kept = torch.zeros(keeps, terms, count, dtype=torch.float64, device=fits.x.device)
        for into, (_, value) in zip(kept, rows, strict=False):
            into.copy_(torch.as_tensor(value))
        if isinstance(run.options, SgdOptions):
            kept[1] = run.filled
        out = Outcome(
            params=fits.params.clone(memory_format=torch.contiguous_format), loss=empty(count),
            status=empty(count, dtype=torch.int32), rank=empty(count, dtype=torch.int32),
            grad=torch.empty_like(fits.params, memory_format=torch.contiguous_format),
            epochs=empty(count, dtype=torch.int64),
            recorded=empty(-(-run.epochs // every) if every else 0, count),
        )  # fmt: skip
        rule = device_rule((run.options,), fits.x.device)
        told = launch.criterion_arguments(criterion)
        box = (out.loss, out.loss) if run.bounds is None else run.bounds
        _launch(
            descend_fits_kernel, fits, rule.rows, run.epochs, every, run.tol,
            told.pop("weight"), told.pop("number"), out.params, kept, out.grad, out.loss,
            out.recorded, out.epochs, out.status, out.rank, *box, MEAN=run.mean,
            METHOD=rule.method, KEEPS=keeps, TOL=run.tol >= 0, RECORD=bool(every),
            BOUNDED=run.bounds is not None, MOMENTS=run.engine == "moments", **told,
        )  # fmt: skip
        longest = int(out.epochs.argmax())
        after = [
            row[0, longest].cpu() if what.scalar
            else row.to(fits.params.dtype) if isinstance(value, torch.Tensor)
            else None
            for (what, value), row in zip(rows, kept, strict=False)
        ]  # fmt: skip
        return out._replace(kept=after)


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
