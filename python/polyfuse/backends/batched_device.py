"""Batches of fits on a GPU: what its backends have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _C
from ..bases import recurrence_of
from ..criteria import ELEMENTARY, Criterion
from ..problem import SLICE_SECONDS
from ..rules import Kept, Options, SgdOptions, row_of
from .batched import Fits, Outcome, Run
from .batched_cpu import series
from .device import DeviceRule, device_rule, rule_with
from .native import ENGINE
from .tables import send

MOST_PACED = 1 << 16  # epochs of a launch whose rates differ: 1.5 MiB of them
TERM_SECONDS = 2e-8  # of a fit that a lane works at
LANES = 128  # of a processor, which take no longer than one
PER_UPDATE = 30  # terms of samples that take as long as the update of a parameter
PER_ELEMENTARY = 60  # and as exp or log
Rows = list[tuple[Kept, Any]]


class Pace(NamedTuple):
    """The rules of a launch's epochs, and what follows from them once for all fits."""

    rule: DeviceRule
    rates: torch.Tensor  # [P, 3] float64, of the first epochs; the last of them goes on


class Leaps(NamedTuple):
    """How fits that share their design leap over epochs; see csrc/core/leap.h."""

    q: torch.Tensor  # [N, K]
    factor: torch.Tensor  # [K, K]
    maps: torch.Tensor  # [3, 2 K, 3 K]
    weight: float
    rank: float
    lengths: tuple[int, int, int]
    at_once: bool
    buffer: bool
    decay: bool


class Step(NamedTuple):
    """One step of a training loop of fits under one loss: what a launch reads, and where it leaves
    what follows."""

    fits: Fits
    criterion: Criterion  # of a fit: its share of the loss
    options: Options | None  # None: there is no step, but a loss and its gradient
    pace: Pace
    kept: list[Any]  # [KEPT] tensors [K, B], or None
    params_to: Any  # [K, B]; it and what is kept may go to where they are read
    kept_to: list[Any]
    grad: torch.Tensor  # [K, B]
    losses: torch.Tensor  # [B] float64, before the step
    before: torch.Tensor | None  # [K, B] float64, for a copy of the parameters


class DeviceBatches(ABC):
    """Takes the epochs of all fits in one launch, or in some that end in time."""

    def refuse_engine(self, engine: str) -> str | None:
        return None

    @abstractmethod
    def processors(self, device: torch.device) -> int:
        """How many multiprocessors it has."""

    @abstractmethod
    def launch_epochs(
        self, run: Run, out: Outcome, rows: Rows, pace: Pace, leaps: Leaps | None
    ) -> None:
        """One launch, which writes to the tensors of `out` and `rows`; nobody waits for it."""

    @abstractmethod
    def launch_step(self, step: Step) -> None:
        """One launch; nobody waits for it."""

    def most_epochs(self, run: Run) -> int:
        """So many that a launch takes less than about `SLICE_SECONDS`, on the safe side."""
        (n, count), terms = run.fits.y.shape, run.fits.params.shape[0]
        rounds = max(1.0, count / (LANES * self.processors(run.fits.x.device)))
        most = SLICE_SECONDS / (TERM_SECONDS * rounds)  # terms
        if run.engine == "closed_form":
            return max(1, int(most / (6 * terms**2))) * run.record_every or run.epochs
        work = terms * (terms + PER_UPDATE)
        if run.engine == "stream":
            work = n * (terms + PER_ELEMENTARY * (run.criterion.kind in ELEMENTARY))
            work += terms * PER_UPDATE
        table = run.epochs if isinstance(run.options, SgdOptions | None) else MOST_PACED
        return min(max(1, int(most / work)), table)

    def descend(self, run: Run) -> Outcome:
        out = self._descend(run, run.rows())
        if run.engine == "closed_form" and run.fits.omit:  # gaps make a design a fit's own
            some = torch.nonzero(~out.loss.isfinite())[:, 0]
            if len(some):
                rows = [(what, _of(value, some)) for what, value in run.rows()]
                _put(out, self._descend(_only(run, some), rows), some)
        return out

    def _descend(self, run: Run, rows: Rows) -> Outcome:
        fits, before, device = run.fits, run.before, run.fits.x.device
        count = fits.params.shape[1]
        double, int32 = empties(fits)
        out = Outcome(
            params=fits.params.clone(memory_format=torch.contiguous_format), loss=double(count),
            status=int32(count), rank=int32(count), recorded=double(run.records(), count),
            epochs=torch.empty(count, dtype=torch.int64, device=device),
            grad=torch.empty_like(fits.params, memory_format=torch.contiguous_format),
            previous=double(count) if run.tol >= 0 or run.watched else None,
        )  # fmt: skip
        if before is not None:
            for name in ("rank", "epochs", "grad", "previous"):
                if (into := getattr(out, name)) is not None:
                    into.copy_(getattr(before, name))
        told = _C.Batch()
        told.rule = run.options and row_of(run.options)
        for epoch, options in run.changes:
            told.change(epoch, row_of(options))
        for row, (what, value) in enumerate(rows):
            if what.scalar:
                told.keep_once(row, value)
        if isinstance(run.options, SgdOptions):
            told.keep_once(1, run.filled)
        leaps = _leaps(told, run) if run.engine == "closed_form" else None
        self.launch_epochs(run, out, rows, _pace(told, run), leaps)
        done = int(out.epochs.max()) - run.first_epoch if run.tol >= 0 else run.epochs
        once = told.kept_after(done)
        kept = [
            once[row] if what.scalar else value if isinstance(value, torch.Tensor) else None
            for row, (what, value) in enumerate(rows)
        ]
        return out._replace(kept=kept)


def empties(fits: Fits) -> tuple[Any, Any]:
    """What makes tensors of float64, and of int32, beside the data."""
    device = fits.x.device
    return (
        partial(torch.empty, dtype=torch.float64, device=device),
        partial(torch.empty, dtype=torch.int32, device=device),
    )


def pace_of_step(options: Options | None, kept: tuple[float, ...], device: torch.device) -> Pace:
    """Of a step, before which these are what the rule keeps once for all parameters."""
    rule = device_rule((options,), device)
    if isinstance(options, SgdOptions | None):  # which keeps no count of its steps
        return Pace(rule, _rates_of_steps(options, kept, device))
    return Pace(rule, send(_rates(options, kept), device))


@lru_cache(maxsize=64)
def _rates_of_steps(
    options: SgdOptions | None, kept: tuple[float, ...], device: torch.device
) -> torch.Tensor:
    return _rates(options, kept).to(device)


def _rates(options: Options | None, kept: tuple[float, ...]) -> torch.Tensor:
    """[1, 3] float64"""
    told = _C.Batch()
    told.rule = options and row_of(options)
    for row, value in enumerate(kept):
        told.keep_once(row, value)
    return torch.from_numpy(told.rates(1))


def _pace(told: Any, run: Run) -> Pace:
    device, changes = run.fits.x.device, run.changes
    paced = run.epochs
    if isinstance(run.options, SgdOptions | None):  # an epoch fills the buffers, if any does
        paced = min(paced, 2 + (changes[-1][0] if changes else 0))
    rule = rule_with((run.options,), [(epoch, (later,)) for epoch, later in changes], device)
    return Pace(rule, send(torch.from_numpy(told.rates(paced)), device))


def _leaps(told: Any, run: Run) -> Leaps:
    """The host computes the design and the powers of its map: it waits for x and the weights."""
    fits, device = run.fits, run.fits.x.device
    x, w = fits.x.cpu(), None if fits.w is None else fits.w.cpu()
    told.x, told.w = series(x), None if w is None else series(w)
    told.n, told.n_terms = len(x), len(fits.params)
    told.shift, told.scale = fits.shift, fits.scale
    if fits.basis != "monomial":
        recurrence = recurrence_of(fits.basis, told.n_terms)
        told.basis = tuple(row.ctypes.data for row in recurrence)
    told.criterion, told.mean, told.engine = run.criterion, run.mean, ENGINE[run.engine]
    told.schedule = run.first_epoch, run.epochs, run.record_every, run.tol
    *arrays, weight, rank, lengths, at_once, buffer, decay = told.leaps()
    table = torch.from_numpy(np.concatenate(arrays)).to(device)
    q, factor, maps = table.split([len(array) for array in arrays])
    return Leaps(q, factor, maps, weight, rank, lengths, at_once, buffer, decay)


def _of(value: Any, some: torch.Tensor) -> Any:
    return value[..., some] if isinstance(value, torch.Tensor) else value


def _only(run: Run, some: torch.Tensor) -> Run:
    """Some fits alone, by an engine that gives each a design."""
    before = run.before
    if before is not None:
        before = before._replace(
            **{name: _of(getattr(before, name), some) for name in ("rank", "epochs", "grad")}
        )
    return replace(run, fits=run.fits.only(some), before=before, engine="moments")


def _put(out: Outcome, part: Outcome, some: torch.Tensor) -> None:
    """Writes what some fits have left among what all have."""
    for into, value in zip((*out, *out.kept), (*part, *part.kept), strict=True):
        if isinstance(into, torch.Tensor):
            into[..., some] = value
