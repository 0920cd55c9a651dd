"""Batches of fits on a GPU by the kernels of CUDA C++: each thread takes one fit."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..rules import row_of
from .batched import DEGREE_BY, Fits, Outcome, Run
from .batched_device import DeviceBatches, Leaps, Pace, Rows, Step, empties
from .cuda import Cuda
from .device import recurrence_on
from .native import ENGINE


class BatchedCuda(DeviceBatches):
    name = "cuda"

    def __init__(self, cuda: Cuda):
        self.cuda = cuda

    def refuse(self, device: torch.device, n_terms: int) -> str | None:
        if reason := self.cuda.missing():
            return f"not available: {reason}"
        if device.type != self.cuda.device_type:
            return f"the data is on {device}"
        most = self.cuda.module.MAX_FIT_TERMS
        return f"{n_terms} coefficients, more than {most}" if n_terms > most else None

    def launches(self) -> int:
        return self.cuda.launches()

    def processors(self, device: torch.device) -> int:
        return int(self.cuda.sizes(device).processors)

    def solve(self, fits: Fits, covariance: bool, degree_by: str | None = None) -> Outcome:
        terms, count = fits.params.shape
        double, int32 = empties(fits)
        out = Outcome(
            params=torch.empty_like(fits.params, memory_format=torch.contiguous_format),
            loss=double(count), status=int32(count), rank=int32(count), counted=int32(count),
            weight_sum=double(count), r_squared=double(count),
            degree=None if degree_by is None else int32(count),
            covariance=double(terms, terms, count) if covariance else None,
        )  # fmt: skip
        told = self._told(fits, out.params, out.loss)
        told.status, told.rank = out.status.data_ptr(), out.rank.data_ptr()
        told.degree_by = DEGREE_BY.index(degree_by)
        told.counted, told.weight_sum = out.counted.data_ptr(), out.weight_sum.data_ptr()
        told.determination = out.r_squared.data_ptr()
        if out.degree is not None:
            told.degree = out.degree.data_ptr()
        if out.covariance is not None:
            told.covariance = out.covariance.data_ptr()
        self._launch(told, fits.x.device, solve=True)
        return out

    def launch_epochs(
        self, run: Run, out: Outcome, rows: Rows, pace: Pace, leaps: Leaps | None
    ) -> None:
        told = self._told(run.fits, out.params, out.loss)
        told.status, told.rank = out.status.data_ptr(), out.rank.data_ptr()
        told.start, told.wide = out.params.data_ptr(), out.params.dtype == torch.float64
        told.engine, told.mean = ENGINE[run.engine], run.mean
        told.criterion = run.criterion.address
        told.schedule = run.first_epoch, run.epochs, run.record_every, run.tol
        told.grad, told.recorded = out.grad.data_ptr(), out.recorded.data_ptr()
        told.epochs = out.epochs.data_ptr()
        if out.previous is not None:
            told.previous = out.previous.data_ptr()
        if run.bounds is not None:
            told.low, told.high = (end.data_ptr() for end in run.bounds)
        for row, (what, value) in enumerate(rows):
            if isinstance(value, torch.Tensor) and not what.scalar:
                told.keep(row, value.data_ptr(), value.data_ptr())
        told.rule = [] if run.options is None else row_of(run.options)
        told.pace(pace.rates.data_ptr(), len(pace.rates))
        if pace.rule.changes is not None:
            told.follow(pace.rule.changes.data_ptr(), pace.rule.rows.data_ptr())
        if leaps is not None:
            tables = (t.data_ptr() for t in (leaps.q, leaps.factor, leaps.maps))
            told.leap(*tables, *leaps[3:])
        self._launch(told, run.fits.x.device, solve=False)

    def launch_step(self, step: Step) -> None:
        told = self._told(step.fits, step.params_to, step.losses)
        told.step, told.mean, told.engine = True, False, ENGINE["stream"]
        told.start, told.grad = step.fits.params.data_ptr(), step.grad.data_ptr()
        told.criterion, told.schedule = step.criterion.address, (0, 1, 0, -math.inf)
        if step.before is not None:
            told.before = step.before.data_ptr()
        for row, (at, to) in enumerate(zip(step.kept, step.kept_to, strict=True)):
            if at is not None:
                told.keep(row, at.data_ptr(), to.data_ptr())
        told.rule = [] if step.options is None else row_of(step.options)
        told.pace(step.pace.rates.data_ptr(), len(step.pace.rates))
        self._launch(told, step.losses.device, solve=False)

    def _told(self, fits: Fits, params: torch.Tensor | None, loss: torch.Tensor) -> Any:
        """The kernels' view of the fits, and where they leave parameters and losses."""
        terms, count = fits.params.shape
        told = self.cuda.module.Fits(
            fits.y.shape[0], count, terms, fits.y.dtype == torch.float64, fits.omit, fits.shift,
            fits.scale, fits.x.device.index or 0,
        )  # fmt: skip
        told.x, told.y = _series(fits.x), _series(fits.y)
        if fits.w is not None:
            told.w = _series(fits.w)
        if fits.basis != "monomial":
            told.basis = recurrence_on(fits.basis, terms, fits.x.device).data_ptr()
        told.loss = loss.data_ptr()
        if params is not None:
            told.params = params.data_ptr()
        return told

    def _launch(self, told: Any, device: torch.device, solve: bool) -> None:
        told.lay_out(solve, self.cuda.sizes(device))
        with self.cuda.on(device) as stream:
            (told.solve if solve else told.descend)(stream)
        self.cuda.count_launch()


def _series(t: torch.Tensor) -> tuple[int, int, int]:
    """Address and strides of [N, B], or of [N, 1], which all fits share."""
    return t.data_ptr(), t.stride(0), 0 if t.shape[1] == 1 else t.stride(1)
