"""Batches of fits in plain PyTorch: the definition of correct."""

from __future__ import annotations

from typing import Any

import torch

from ..rules import METHODS, SgdOptions, group_of, kept_of
from .batched import Fits, Outcome, Run
from .orthogonal import LEAST_EXPLAINED, Orthogonal

CHUNK = 4096  # fits
NUMBERS = 1 << 24  # samples, or entries of matrices, of fits that are solved at once


class Reference:
    """Plain PyTorch: autograd and torch's own optimizer; the definition of correct."""

    name = "reference"

    def refuse(self, device: torch.device, n_terms: int) -> str | None:
        return None

    def refuse_engine(self, engine: str) -> str | None:
        return None

    def most_epochs(self, run: Run) -> int:
        return run.epochs

    def launches(self) -> int:
        return 0

    def solve(self, fits: Fits, covariance: bool, degree_by: str | None = None) -> Outcome:
        (n, count), terms, parts = fits.y.shape, fits.params.shape[0], []
        at_once = max(1, NUMBERS // max(n, terms**2))
        for first in range(0, count, at_once):
            part = fits.only(slice(first, first + at_once))
            parts.append(self._solve(part, covariance, degree_by))
        of_all: Any = zip(*parts, strict=True)
        columns: list[Any] = [None if of[0] is None else torch.cat(of, -1) for of in of_all]
        return Outcome(*columns)

    def _solve(self, fits: Fits, covariance: bool, degree_by: str | None) -> Outcome:
        x, y, w = _whole(fits)
        terms, dtype = fits.params.shape[0], fits.params.dtype
        found, count, total = Orthogonal.of(x, y, w, terms), (w != 0).sum(0), w.sum(0)
        series, explained, rest, degree = found.series(fits), found.explained, found.rest, None
        used = torch.ones_like(found.mean)
        if degree_by is not None:
            degree = found.degree(count.double(), degree_by == "bic")
            used = (torch.arange(terms, device=x.device)[:, None] <= degree).double()
            rest = rest + ((1 - used) * explained).sum(0)
        there = torch.where(found.rank > 0, rest - rest, torch.nan)  # nan where there is no optimum
        params = torch.einsum("kb,kjb->jb", used * found.slope, series) + there
        between = (used * explained)[1:].sum(0)
        known = rest + between > LEAST_EXPLAINED * explained[0]
        spread = None
        if covariance:
            root = series * torch.where(found.square > 0, used * found.square.rsqrt(), 0.0)[:, None]
            spread = torch.einsum("kib,kjb->ijb", root, root) + there
            spread = torch.where(found.rank < terms, torch.nan, spread)
        status = torch.where(rest.isfinite(), torch.where(found.rank < terms, 2, 0), 3)
        return Outcome(
            params.to(dtype), rest / total + there, status.int(), found.rank.int(),
            counted=count.int(), weight_sum=total, covariance=spread,
            r_squared=torch.where(known, 1 - rest / (rest + between), torch.nan) + there,
            degree=None if degree is None else degree.int(), kept=None,
        )  # fmt: skip

    def descend(self, run: Run) -> Outcome:
        fits = run.fits
        x, y, w = _whole(fits)
        columns = fits.columns((x - fits.shift) * fits.scale)
        p = fits.params.double().clone().requires_grad_()
        n_fits = p.shape[1]
        total = w.sum(0) if run.mean else torch.ones(n_fits, dtype=torch.float64)

        def loss_of(params: torch.Tensor) -> torch.Tensor:
            prediction = torch.stack([c * phi for c, phi in zip(params, columns, strict=True)]).sum(
                0
            )
            values = run.criterion.values(prediction, y) * run.criterion.factor
            return torch.where(w > 0, w * values, 0.0).sum(0) / total

        optimizer = None
        if run.options is not None:
            method = METHODS[type(run.options)]
            optimizer = method.optimizer([p], **group_of(run.options))
            there = run.before or run.optimizer.state.get(run.parameter)
            started = run.filled if isinstance(run.options, SgdOptions) else there
            for what, value in run.rows() if started else ():
                double = value.double() if isinstance(value, torch.Tensor) else torch.tensor(value)
                optimizer.state[p][what.name] = double
        last, changes = run.first_epoch + run.epochs, dict(run.changes)
        epochs, previous = torch.zeros(n_fits, dtype=torch.int64), torch.full((n_fits,), torch.nan)
        if run.before is not None:
            epochs, previous = run.before.epochs.clone(), run.before.previous
        active = epochs == run.first_epoch
        recorded, grad = [], torch.zeros_like(p)
        for epoch in range(run.first_epoch, last):
            if optimizer is not None and (change := changes.get(epoch - run.first_epoch)):
                optimizer.param_groups[0].update(group_of(change))
            loss = loss_of(p)
            if run.record_every and epoch % run.record_every == 0:
                recorded.append(loss.detach().clone())
            if run.tol >= 0:
                active &= ~((previous - loss).abs() <= run.tol * loss.abs())
            previous = loss.detach()
            (p.grad,) = torch.autograd.grad(loss.sum(), p)
            grad = torch.where(active, p.grad, grad)
            if optimizer is not None and active.any():
                held = {"p": p.data, **optimizer.state[p]}
                before = {k: v.clone() for k, v in held.items() if torch.is_tensor(v) and v.ndim}
                optimizer.step()
                if run.bounds is not None:
                    p.data.clamp_(*run.bounds)
                for name, old in before.items():
                    new = p.data if name == "p" else optimizer.state[p][name]
                    new.copy_(torch.where(active, new, old))
            epochs += active
        loss = loss_of(p).detach()
        status = torch.where(epochs < last, 0, 1)
        status[~loss.isfinite()] = 4
        status[~fits.finite()] = 3
        status[(w > 0).sum(0) == 0] = 2
        state: Any = {} if optimizer is None else optimizer.state.get(p, {})
        known = () if run.options is None else kept_of(run.options)
        kept = [None if what is None else state.get(what.name) for what in known]
        return Outcome(
            p.detach().to(fits.params.dtype), loss, status.int(),
            torch.linalg.matrix_rank(_designs(fits)[1].nan_to_num(), rtol=1e-13).int(),
            grad=grad.to(fits.params.dtype), epochs=epochs, kept=kept, previous=previous,
            recorded=torch.stack(recorded) if recorded else torch.empty(0, n_fits),
        )  # fmt: skip


def _whole(fits: Fits) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y and weights, each [N, B] in float64; what is left out has weight 0, and is 0."""
    y = fits.y.double()
    x = fits.x.double().expand_as(y)
    w = torch.ones_like(y) if fits.w is None else fits.w.double().expand_as(y)
    if fits.omit:
        w = torch.where(x.isfinite() & y.isfinite(), w, 0.0)
    return torch.where(w > 0, x, 0.0), torch.where(w > 0, y, 0.0), w


def _designs(fits: Fits) -> tuple[torch.Tensor, ...]:
    """The terms of every fit [B, N, K], the same weighted and of unit length, and by what."""
    x, _, w = _whole(fits)
    terms = torch.stack(fits.columns((x - fits.shift) * fits.scale), -1).transpose(0, 1)
    root = w.sqrt().T[..., None]
    size = (terms * root).norm(dim=1, keepdim=True).clamp(min=1e-300)
    return terms, terms * root / size, root, size


def least_norm(fits: Fits, lost: torch.Tensor) -> torch.Tensor:
    """Of the fits of these numbers [D], the optimum of least norm, in units of one over the length
    of a term's column: what numpy.polyfit gives where the points do not determine all; [K, D]."""

    found = []
    for some in map(fits.only, lost.split(CHUNK)):
        _, scaled, root, size = _designs(some)
        inverse = torch.linalg.pinv(scaled, rtol=1e-13)
        found.append((inverse @ (root * _whole(some)[1].T[..., None]) / size.mT)[..., 0].T)
    return torch.cat(found, 1).to(fits.params.dtype)


# By name, what makes them.
