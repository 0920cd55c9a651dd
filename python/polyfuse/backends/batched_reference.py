"""Batches of fits in plain PyTorch: the definition of correct."""

from __future__ import annotations

from typing import Any

import torch

from ..rules import METHODS, SgdOptions, group_of, kept_of
from .batched import Fits, Outcome, Run

CHUNK = 4096  # fits


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
        if degree_by is not None:
            raise ValueError("backend: reference cannot serve this batch: it chooses no degree")
        _, y, w = _whole(fits)
        terms = fits.params.shape[0]
        powers, scaled, root, size = _designs(fits)
        inverse = torch.linalg.pinv(scaled, rtol=1e-13)
        params = (inverse @ (root * y.T[..., None]) / size.mT)[..., 0].T
        residual = y - (powers @ params.T[..., None])[..., 0].T
        square, total = (w * residual**2).sum(0), w.sum(0)
        mean = (w * y).sum(0) / total
        rank = torch.linalg.matrix_rank(scaled, rtol=1e-13)
        status = torch.where(rank < terms, 2, 0)
        status[~fits.finite()] = 3
        spread = None
        if covariance:
            spread = (inverse / size.mT) @ (inverse / size.mT).mT
            spread = torch.where(rank[:, None, None] < terms, torch.nan, spread).permute(1, 2, 0)
        return Outcome(
            params.to(fits.params.dtype), square / total, status.int(), rank.int(),
            counted=(w > 0).sum(0).int(), weight_sum=total, covariance=spread,
            r_squared=1 - square / (w * (y - mean) ** 2).sum(0),
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

    found = [
        Reference().solve(fits.only(some), covariance=False).params for some in lost.split(CHUNK)
    ]
    return torch.cat(found, 1)


# By name, what makes them.
