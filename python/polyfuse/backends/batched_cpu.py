"""Batches of fits on the compiled kernels of CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _C
from ..bases import recurrence_of
from ..problem import SLICE_SECONDS
from ..rules import SgdOptions, row_of
from .batched import DEGREE_BY, Fits, Outcome, Run
from .native import ENGINE

SLICE = 1 << 21  # terms of samples, or of an update, for each fit of a share of 64


class Cpu:
    name = "cpu"
    launches: Callable[[], int] = staticmethod(_C.launches)

    def refuse(self, device: torch.device, n_terms: int) -> str | None:
        return None if device.type == "cpu" else f"the data is on {device}"

    def refuse_engine(self, engine: str) -> str | None:
        return None

    def most_epochs(self, run: Run) -> int:
        """So many that a share of the fits takes less than about `SLICE_SECONDS`."""
        terms = run.fits.params.shape[0]
        if run.engine == "closed_form":
            return SLICE // terms**2 * run.record_every or run.epochs
        each = len(run.fits.y) * terms if run.engine == "stream" else terms * (terms + 8)
        return max(1, SLICE // each)

    def solve(self, fits: Fits, covariance: bool, degree_by: str | None = None) -> Outcome:
        terms, n_fits = fits.params.shape
        batch, out = _told(
            fits, torch.empty_like(fits.params, memory_format=torch.contiguous_format)
        )
        if degree_by is not None:
            out = out._replace(degree=torch.empty(n_fits, dtype=torch.int32))
            batch.degree_by, batch.degree = DEGREE_BY.index(degree_by), out.degree.data_ptr()
        out = out._replace(
            counted=torch.empty(n_fits, dtype=torch.int32),
            weight_sum=torch.empty(n_fits, dtype=torch.float64),
            r_squared=torch.empty(n_fits, dtype=torch.float64),
        )
        if covariance:
            out = out._replace(covariance=torch.empty(terms, terms, n_fits, dtype=torch.float64))
            batch.covariance = out.covariance.data_ptr()
        batch.solve = True
        batch.counted, batch.weight_sum = out.counted.data_ptr(), out.weight_sum.data_ptr()
        batch.determination = out.r_squared.data_ptr()
        _run(batch, n_fits)
        return out

    def descend(self, run: Run) -> Outcome:
        fits = run.fits
        n_fits = fits.params.shape[1]
        params = fits.params.clone(memory_format=torch.contiguous_format)
        batch, out = _told(fits, params)
        last = run.first_epoch + run.epochs
        out = out._replace(
            grad=torch.empty_like(out.params),
            recorded=torch.empty(run.records(), n_fits, dtype=torch.float64),
        )
        before = run.before
        if before is not None:
            out.rank.copy_(before.rank)
            out.grad.copy_(before.grad)
        if run.tol >= 0:  # or each fit does all
            none = torch.zeros(n_fits, dtype=torch.int64)
            out = out._replace(epochs=none if before is None else before.epochs.clone())
            batch.epochs = out.epochs.data_ptr()
        if run.tol >= 0 or run.watched:
            none = torch.full((n_fits,), torch.nan, dtype=torch.float64)
            out = out._replace(previous=none if before is None else before.previous.clone())
            batch.previous = out.previous.data_ptr()
        batch.criterion, batch.mean, batch.engine = run.criterion, run.mean, ENGINE[run.engine]
        batch.schedule = run.first_epoch, run.epochs, run.record_every, run.tol
        batch.rule = run.options and row_of(run.options)
        for epoch, options in run.changes:
            batch.change(epoch, row_of(options))
        batch.grad, batch.recorded = out.grad.data_ptr(), out.recorded.data_ptr()
        if run.bounds is not None:
            batch.low, batch.high = (end.data_ptr() for end in run.bounds)
        rows = run.rows()
        for row, (what, value) in enumerate(rows):
            if what.scalar:
                batch.keep_once(row, value)
            elif isinstance(value, torch.Tensor):
                batch.keep(row, value.data_ptr())
        if isinstance(run.options, SgdOptions):
            batch.keep_once(1, run.filled)
        _run(batch, n_fits)
        if run.tol >= 0:
            last = int(out.epochs.max())
        else:
            out = out._replace(epochs=torch.full((), last).expand(n_fits))
        once = batch.kept_after(last - run.first_epoch)
        kept = [
            once[row] if what.scalar else value if isinstance(value, torch.Tensor) else None
            for row, (what, value) in enumerate(rows)
        ]
        return out._replace(kept=kept)


def _told(fits: Fits, params: torch.Tensor) -> tuple[Any, Outcome]:
    """The kernels' view of the fits, and where they leave what every run leaves."""
    terms, n_fits = fits.params.shape
    out = Outcome(
        params,
        torch.empty(n_fits, dtype=torch.float64),
        torch.empty(n_fits, dtype=torch.int32),
        torch.empty(n_fits, dtype=torch.int32),
    )
    batch = _C.Batch()
    batch.x, batch.y = series(fits.x), series(fits.y)
    batch.w = None if fits.w is None else series(fits.w)
    batch.n, batch.fits, batch.n_terms = fits.y.shape[0], n_fits, terms
    batch.float64, batch.omit = fits.params.dtype == torch.float64, fits.omit
    batch.shift, batch.scale = fits.shift, fits.scale
    if fits.basis != "monomial":
        rows = recurrence_of(fits.basis, terms)
        batch.basis = tuple(row.ctypes.data for row in rows)
    batch.params, batch.loss = out.params.data_ptr(), out.loss.data_ptr()
    batch.status, batch.rank = out.status.data_ptr(), out.rank.data_ptr()
    return batch, out


def series(t: torch.Tensor) -> tuple[int, int, int, bool]:
    """Address, strides and dtype of [N, B], or of [N, 1], which all fits share."""
    return (
        t.data_ptr(),
        t.stride(0),
        0 if t.shape[1] == 1 else t.stride(1),
        t.dtype is torch.float64,
    )


def _run(batch: Any, n_fits: int) -> None:
    done = 0
    while done < n_fits:
        done = batch.run(done, SLICE_SECONDS, torch.get_num_threads())
