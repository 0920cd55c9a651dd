"""A few fits of many samples on a GPU: all of it works at one fit after the other, as at one of
several variables, where the kernels of batches would leave each to a lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..problem import Schedule, State
from ..rules import KEPT, SgdOptions
from . import launch, surface_triton
from .batched import Fits, Outcome, Run
from .device import DeviceMap, DeviceState, device_rule, n_recorded
from .factors import terms_of
from .triton import interpreted

SAMPLES = 100  # for each fit: in a lane they take as long as a launch


class LongTriton:
    """Takes the epochs; one launch for each fit."""

    name = "triton"

    def refuse(self, fits: Fits) -> str | None:
        device, (n, count) = fits.x.device, fits.y.shape
        if device.type != ("cpu" if interpreted() else "cuda"):
            return f"the data is on {device}"
        if n < SAMPLES * count:
            return f"{count} fits of {n} samples, fewer than {SAMPLES} for each fit"
        terms, most = fits.params.shape[0], surface_triton.MAX_TERMS
        return f"{terms} coefficients, more than {most}" if terms > most else None

    def refuse_engine(self, engine: str) -> str | None:
        return None

    def launches(self) -> int:
        return launch.launches

    def descend(self, run: Run) -> Outcome:
        terms, count = run.fits.params.shape
        rows = run.rows()
        start = np.zeros((KEPT, terms, count))
        for into, (_, value) in zip(start, rows, strict=False):
            into[:] = torch.as_tensor(value).cpu()
        if isinstance(run.options, SgdOptions):
            start[1] = run.filled
        params = run.fits.params.double().cpu().numpy()
        states, found = [], []
        for fit in range(count):
            states.append(State(params[:, fit].copy(), start[:, :, fit].copy(), np.zeros(terms)))
            found.append(_descend(run, fit, states[-1]))

        def side_by_side(arrays: Any) -> torch.Tensor:
            return torch.from_numpy(np.stack(arrays, axis=-1)).to(run.fits.y.device)

        dtype = run.fits.params.dtype
        epochs, loss, recorded = (side_by_side(part) for part in zip(*found, strict=True))
        kept = side_by_side([s.kept for s in states])
        longest = int(epochs.argmax())
        status = torch.where(epochs < run.epochs, 0, 1)
        return Outcome(
            params=side_by_side([s.params for s in states]).to(dtype), loss=loss,
            status=torch.where(loss.isfinite(), status, 4).int(),
            rank=torch.full_like(epochs, terms, dtype=torch.int32),
            grad=side_by_side([s.grad for s in states]).to(dtype), epochs=epochs,
            recorded=recorded,
            kept=[
                row[0, longest].cpu() if what.scalar
                else row.to(dtype) if isinstance(value, torch.Tensor)
                else None
                for (what, value), row in zip(rows, kept, strict=False)
            ],
        )  # fmt: skip


def _descend(run: Run, fit: int, state: State) -> tuple[Any, ...]:
    """One fit: epochs done, its loss, and those recorded."""
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
    schedule = Schedule(0, run.epochs, run.record_every, run.tol)
    held = DeviceState(state, schedule, device)
    launched = launch.Run(
        DeviceMap.identity_of(n_terms, device), device_rule((run.options,) * n_terms, device),
        held.buffer, mean=run.mean, criterion=run.criterion, epochs=run.epochs,
        record_every=run.record_every, tol=run.tol,
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
    recorded = held.recorded(n_recorded(schedule))
    done = int(outcome["epochs"])
    if run.record_every:  # what follows the last epoch of a fit that has settled
        recorded[-(-done // run.record_every) :] = outcome["loss"]
    return done, outcome["loss"], recorded


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
