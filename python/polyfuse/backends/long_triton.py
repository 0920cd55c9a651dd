"""A few fits of many samples, or of many terms, on a GPU: all of it works at one fit after the
other, as at one of several variables, where the kernels of batches leave each to a lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..criteria import ELEMENTARY
from ..problem import Schedule, State
from ..rules import KEPT, SgdOptions
from . import geometry, launch, surface_triton
from .batched import Fits, Outcome, Run
from .batched_cpu import Cpu
from .batched_triton import MAX_TERMS, refuse_place
from .device import DeviceMap, DeviceState, n_recorded, rule_with
from .factors import terms_of

SOME = 1000  # samples, to find a rank from
SAMPLES = 100  # for each fit: in a lane they take as long as a launch


class LongTriton:
    """Takes the epochs; one launch for each fit."""

    name = "triton"

    def refuse(self, fits: Fits) -> str | None:
        if reason := refuse_place(fits.x.device):
            return reason
        (n, count), terms = fits.y.shape, fits.params.shape[0]
        if n < SAMPLES * count and terms <= MAX_TERMS:
            return f"{count} fits of {n} samples, fewer than {SAMPLES} for each fit"
        most = surface_triton.MAX_TERMS
        return f"{terms} coefficients, more than {most}" if terms > most else None

    def refuse_engine(self, engine: str) -> str | None:
        return None

    def launches(self) -> int:
        return launch.launches

    def most_epochs(self, run: Run) -> int:
        """So many that the launches of all fits take less than about `SLICE_SECONDS`."""
        (n, count), y = run.fits.y.shape, run.fits.y
        at_once = geometry.epochs_at_once(
            run.engine, n, y.element_size(), len(run.fits.params), count * run.epochs,
            run.criterion.kind in ELEMENTARY, launch.machine(y.device),
        )  # fmt: skip
        return run.epochs if run.engine == "closed_form" else max(1, at_once // count)

    def descend(self, run: Run) -> Outcome:
        params, before, last = run.fits.params, run.before, run.first_epoch + run.epochs
        terms, count = params.shape
        rows = run.rows()
        kept = np.zeros((KEPT, terms, count))
        for into, (_, value) in zip(kept, rows, strict=False):
            into[:] = torch.as_tensor(value).cpu()
        if isinstance(run.options, SgdOptions):
            kept[1] = run.filled
        at = params.double().cpu().numpy().copy()
        grad, recorded = np.zeros((terms, count)), np.zeros((run.records(), count))
        epochs, loss = np.zeros(count, dtype=np.int64), np.zeros(count)
        previous = np.full(count, np.nan)
        if before is not None:
            was = (before.grad, before.epochs, before.loss, before.previous)
            for into, value in zip((grad, epochs, loss, previous), was, strict=True):
                into[:] = value.cpu()
        recorded[:] = loss  # of fits that have settled
        for fit in np.flatnonzero(epochs == run.first_epoch).tolist():
            state = State(at[:, fit], kept[:, :, fit], np.zeros(terms))
            done, loss[fit], previous[fit], losses = _descend(run, fit, state, previous[fit])
            epochs[fit] += done
            grad[:, fit] = state.grad if done else grad[:, fit]
            recorded[:, fit] = loss[fit]  # after its last epoch, where it has settled
            recorded[: len(losses), fit] = losses
        device, dtype = run.fits.y.device, params.dtype
        on_device = [torch.from_numpy(a).to(device) for a in (loss, epochs, previous, recorded)]
        rank = _ranks(run.fits) if before is None else before.rank.cpu().numpy()
        loss[rank == 0] = np.nan
        status = np.where(np.isfinite(loss), np.where(epochs < last, 0, 1), 4)
        status[rank == 0] = 2
        longest = int(epochs.argmax())
        return Outcome(
            params=torch.from_numpy(at).to(device, dtype), loss=on_device[0],
            status=torch.from_numpy(status).to(device, torch.int32),
            rank=torch.from_numpy(rank).to(device, torch.int32),
            grad=torch.from_numpy(grad).to(device, dtype), epochs=on_device[1],
            previous=on_device[2], recorded=on_device[3],
            kept=[
                float(row[0, longest]) if what.scalar
                else torch.from_numpy(row).to(device, dtype) if isinstance(value, torch.Tensor)
                else None
                for (what, value), row in zip(rows, kept, strict=False)
            ],
        )  # fmt: skip


def _descend(run: Run, fit: int, state: State, previous: float) -> tuple[Any, ...]:
    """One fit: epochs done, its loss, that before the last step, and those recorded."""
    fits = run.fits

    def of(t: torch.Tensor) -> torch.Tensor:
        return t[:, fit % t.shape[1]]

    device, n_terms = fits.y.device, len(state.params)
    x, weight = of(fits.x), None if fits.w is None else of(fits.w)
    frame, basis, change = (fits.shift, fits.scale), fits.basis, None
    if run.engine != "stream":  # sums of products of terms that are not orthogonal lose digits
        frame = _frame_of(x, weight)
        change = torch.from_numpy(_in_legendre(fits, frame)).to(device)
        basis = "legendre"
    exponents = tuple((k,) for k in range(n_terms))
    terms = terms_of(exponents, (frame,), device, basis)
    samples = surface_triton.Samples(x[:, None], of(fits.y), terms, fits.omit, weight)
    schedule = Schedule(run.first_epoch, run.epochs, run.record_every, run.tol, previous=previous)
    held = DeviceState(state, schedule, device)
    changes = [(epoch, (later,) * n_terms) for epoch, later in run.changes]
    launched = launch.Run(
        DeviceMap.identity_of(n_terms, device),
        rule_with((run.options,) * n_terms, changes, device), held.buffer, mean=run.mean,
        criterion=run.criterion, first_epoch=run.first_epoch, epochs=run.epochs,
        record_every=run.record_every, tol=run.tol,
        bounds=None if run.bounds is None else torch.stack([of(end) for end in run.bounds]),
    )  # fmt: skip
    if run.engine == "stream":
        surface_triton.stream(samples, launched)
    else:
        surface_triton.moments(
            samples, launched, surface_triton.new_moments(samples, n_terms), given=False,
            closed=run.engine == "closed_form", change=change,
        )  # fmt: skip
    held.finish()
    outcome = held.outcome()
    done = int(outcome["epochs"])
    losses = held.recorded(n_recorded(schedule._replace(epochs=done)))
    return done, outcome["loss"], outcome["previous"], losses


def _ranks(fits: Fits) -> np.ndarray:
    """Of the data of every fit [B], which some of the samples mostly say."""
    terms, count = fits.params.shape
    rank, left = torch.zeros(count, dtype=torch.int32), torch.arange(count)
    for every in sorted({max(1, len(fits.y) // SOME), 1}, reverse=True):
        some = fits.only(left.to(fits.y.device))
        some = some._replace(
            params=some.params.cpu(), x=some.x[::every].cpu(), y=some.y[::every].cpu(),
            w=None if some.w is None else some.w[::every].cpu(),
        )  # fmt: skip
        rank[left] = Cpu().solve(some, covariance=False).rank
        left = torch.nonzero(rank < terms)[:, 0]
        if not len(left):
            break
    return rank.numpy()


def _frame_of(x: torch.Tensor, weight: torch.Tensor | None) -> tuple[float, float]:
    """Shift and scale that turn the x that count into [-1, 1]."""
    counted = x.isfinite() if weight is None else x.isfinite() & (weight != 0)
    low, high = (float(end) for end in x[counted].aminmax()) if counted.any() else (-1.0, 1.0)
    return 0.5 * low + 0.5 * high, 2.0 / (high - low) if high > low else 1.0


def _in_legendre(fits: Fits, frame: tuple[float, float]) -> np.ndarray:
    """Coefficients of Legendre's polynomials in a frame, of every term of the fits: [K, K]."""
    n_terms = len(fits.params)
    points, weights = np.polynomial.legendre.leggauss(n_terms)
    u = points * (fits.scale / frame[1]) + (frame[0] - fits.shift) * fits.scale
    terms = torch.stack(fits.columns(torch.from_numpy(u))).numpy()  # [K, points]
    legendre = np.polynomial.legendre.legvander(points, n_terms - 1).T
    norms = np.arange(n_terms)[:, None] + 0.5
    return np.triu((legendre * weights * norms) @ terms.T)
