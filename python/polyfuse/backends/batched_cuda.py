"""Batches of fits on a GPU by the kernels of CUDA C++: each thread takes one fit."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..rules import SgdOptions, row_of
from .batched import DEGREE_BY, Fits, Outcome, Run
from .batched_triton import NO_CLOSED_FORM
from .cuda import Cuda
from .device import recurrence_on
from .native import ENGINE

MOST_PACED = 1 << 16  # epochs whose rates are computed once for all fits


class BatchedCuda:
    name = "cuda"

    def __init__(self, cuda: Cuda):
        self.cuda = cuda
        self._launches = 0

    def refuse(self, fits: Fits) -> str | None:
        if reason := self.cuda.missing():
            return f"not available: {reason}"
        if fits.x.device.type != self.cuda.device_type:
            return f"the data is on {fits.x.device}"
        terms, most = fits.params.shape[0], self.cuda.module.MAX_FIT_TERMS
        return f"{terms} coefficients, more than {most}" if terms > most else None

    def launches(self) -> int:
        return self._launches

    def refuse_engine(self, engine: str) -> str | None:
        return NO_CLOSED_FORM if engine == "closed_form" else None

    def solve(self, fits: Fits, covariance: bool, degree_by: str | None = None) -> Outcome:
        terms, count = fits.params.shape
        told, out = self._told(fits)
        double, int32 = _empty(fits)
        out = out._replace(
            counted=int32(count), weight_sum=double(count), r_squared=double(count),
            degree=None if degree_by is None else int32(count),
            covariance=double(terms, terms, count) if covariance else None,
        )  # fmt: skip
        told.degree_by = DEGREE_BY.index(degree_by)
        told.counted, told.weight_sum = out.counted.data_ptr(), out.weight_sum.data_ptr()
        told.determination = out.r_squared.data_ptr()
        if out.degree is not None:
            told.degree = out.degree.data_ptr()
        if out.covariance is not None:
            told.covariance = out.covariance.data_ptr()
        self._launch(told, fits.x.device, solve=True)
        return out

    def descend(self, run: Run) -> Outcome:
        fits, module = run.fits, self.cuda.module
        count, device = fits.params.shape[1], fits.x.device
        told, out = self._told(fits)
        double, _ = _empty(fits)
        recorded = -(-run.epochs // run.record_every) if run.record_every else 0
        out = out._replace(
            grad=torch.empty_like(out.params), recorded=double(recorded, count),
            epochs=torch.empty(count, dtype=torch.int64, device=device),
        )  # fmt: skip
        told.engine, told.mean = ENGINE[run.engine], run.mean
        told.criterion = run.criterion.address
        told.schedule = run.epochs, run.record_every, run.tol
        told.grad, told.recorded = out.grad.data_ptr(), out.recorded.data_ptr()
        told.epochs = out.epochs.data_ptr()
        if run.bounds is not None:
            told.low, told.high = (end.data_ptr() for end in run.bounds)
        rule = [] if run.options is None else row_of(run.options)
        rows, once = run.rows(), [0.0] * 4
        for row, (what, value) in enumerate(rows):
            if what.scalar:
                once[row] = value
            elif isinstance(value, torch.Tensor):
                told.keep(row, value.data_ptr())
        if isinstance(run.options, SgdOptions):
            once[1] = run.filled
        told.rule = rule
        paced = min(run.epochs, MOST_PACED)
        rates, after = module.pace(rule, paced, once)
        rates = torch.from_numpy(rates).to(device)
        told.keep_once(after, paced, rates.data_ptr())
        self._launch(told, device, solve=False)
        if run.tol >= 0 or run.epochs > paced:
            _, after = module.pace(rule, int(out.epochs.max()), once)
        kept = [
            after[row] if what.scalar else value if isinstance(value, torch.Tensor) else None
            for row, (what, value) in enumerate(rows)
        ]
        return out._replace(kept=kept)

    def _told(self, fits: Fits) -> tuple[Any, Outcome]:
        """The kernels' view of the fits, and where they leave what every run leaves."""
        terms, count = fits.params.shape
        double, int32 = _empty(fits)
        params = fits.params.clone(memory_format=torch.contiguous_format)
        out = Outcome(params, double(count), int32(count), int32(count))
        told = self.cuda.module.Fits(
            fits.y.shape[0], count, terms, params.dtype == torch.float64, fits.omit, fits.shift,
            fits.scale, fits.x.device.index or 0,
        )  # fmt: skip
        told.x, told.y = _series(fits.x), _series(fits.y)
        if fits.w is not None:
            told.w = _series(fits.w)
        if fits.basis != "monomial":
            told.basis = recurrence_on(fits.basis, terms, fits.x.device).data_ptr()
        told.params, told.loss = params.data_ptr(), out.loss.data_ptr()
        told.status, told.rank = out.status.data_ptr(), out.rank.data_ptr()
        return told, out

    def _launch(self, told: Any, device: torch.device, solve: bool) -> None:
        told.lay_out(solve, self.cuda.sizes(device))
        with self.cuda.on(device) as stream:
            (told.solve if solve else told.descend)(stream)
        self._launches += 1


def _empty(fits: Fits) -> tuple[Any, Any]:
    """What makes tensors of float64, and of int32, beside the data."""
    device = fits.x.device
    return (
        partial(torch.empty, dtype=torch.float64, device=device),
        partial(torch.empty, dtype=torch.int32, device=device),
    )


def _series(t: torch.Tensor) -> tuple[int, int, int]:
    """Address and strides of [N, B], or of [N, 1], which all fits share."""
    return t.data_ptr(), t.stride(0), 0 if t.shape[1] == 1 else t.stride(1)
