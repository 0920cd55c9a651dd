"""Batches of fits: how the compiled kernels and plain PyTorch run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from .. import _C
from ..bases import recurrence_of, terms
from ..criteria import Criterion
from ..problem import SLICE_SECONDS
from ..rules import (
    METHODS,
    Kept,
    Options,
    SgdOptions,
    group_of,
    kept_of,
    row_of,
    scalar_place,
)
from .native import ENGINE

SLICE = 1 << 21  # terms of samples, or of an update, for each fit of a share of 64
DEGREE_BY = (None, "aicc", "bic")  # as csrc/cpu/batch.h has them


class Fits(NamedTuple):
    """B fits of N samples and K coefficients."""

    params: torch.Tensor  # [K, B], where they start
    # [N, B], or [N, 1] where all fits share them; of any strides, float32 or float64
    x: torch.Tensor
    y: torch.Tensor  # [N, B]
    w: torch.Tensor | None  # [N, B] or [N, 1]
    omit: bool
    shift: float
    scale: float
    basis: str = "monomial"

    def columns(self, u: torch.Tensor) -> list[torch.Tensor]:
        """phi_k(u) of every term."""
        return terms(self.basis, self.params.shape[0], u)

    def finite(self, some: torch.Tensor) -> torch.Tensor:
        """Whether the samples that count of the fits of these numbers are finite."""
        x, w = (t if t is None or t.shape[1] == 1 else t[:, some] for t in (self.x, self.w))
        assert x is not None
        good = x.isfinite() & self.y[:, some].isfinite()
        return (good if w is None else good | (w == 0)).all(0) | self.omit

    @property
    def shared(self) -> bool:
        """Whether fits share x and weights."""
        return self.x.shape[1] == 1 and (self.w is None or self.w.shape[1] == 1)


class Outcome(NamedTuple):
    params: torch.Tensor  # [K, B]
    loss: torch.Tensor  # [B] float64
    status: torch.Tensor  # [B] int32
    rank: torch.Tensor  # [B] int32
    grad: Any = None  # [K, B]
    epochs: Any = None  # [B] int64
    previous: Any = None  # [B] float64, loss of the last epoch, before its step
    recorded: Any = None  # [M, B]
    kept: Any = ()  # tensor [K, B], float or None, by row of the rule's state
    counted: Any = None  # [B] int32
    weight_sum: Any = None  # [B]
    r_squared: Any = None  # [B]
    degree: Any = None  # [B] int32
    covariance: Any = None  # [K, K, B], of unit variance of y


@dataclass
class Run:
    fits: Fits
    parameter: torch.Tensor  # the coefficients, as the optimizer knows them
    criterion: Criterion
    mean: bool
    options: Options | None  # None: the optimizer does not hold the coefficients
    optimizer: torch.optim.Optimizer
    engine: str
    epochs: int
    record_every: int
    tol: float
    bounds: Any = None  # low and high [K, B], float64
    changes: tuple[tuple[int, Options], ...] = ()  # (epochs from the launch's start, from then on)
    first_epoch: int = 0
    before: Outcome | None = None  # of the launch before; its parameters are those of the fits
    watched: bool = False  # whether `previous` is wanted

    def records(self) -> int:
        """How many losses are recorded."""
        every, first = self.record_every, self.first_epoch
        return -(-(first + self.epochs) // every) + -first // every if every else 0

    def rows(self) -> list[tuple[Kept, Any]]:
        """What the rule keeps, with its value now: a new tensor [K, B] or a number."""
        if self.options is None:
            return []
        rows: list[tuple[Kept, Any]] = []
        rules = {self.options, *(options for _, options in self.changes)}
        for kept, value in zip(METHODS[type(self.options)].kept, self._kept_before(), strict=True):
            start = 0.0 if kept.name == "momentum_buffer" else kept.start(self.options)
            if kept.scalar:
                rows.append((kept, start if value is None else float(value)))
            elif any(kept.used(options) for options in rules):
                rows.append((kept, self._filled(start) if value is None else self._copy(value)))
            else:
                rows.append((kept, 0.0))
        return rows

    def _kept_before(self) -> list[Any]:
        if self.before is not None:
            return list(self.before.kept)
        there = self.optimizer.state.get(self.parameter, {})
        return [there.get(kept.name) for kept in METHODS[type(self.options)].kept]

    @property
    def filled(self) -> float:
        """1 where SGD has a buffer."""
        return float(self._kept_before()[0] is not None)

    def _filled(self, value: float) -> torch.Tensor:
        return torch.full_like(self.fits.params, value, memory_format=torch.contiguous_format)

    def _copy(self, value: torch.Tensor) -> torch.Tensor:
        p = self.fits.params
        return value.detach().to(p.dtype).reshape(p.shape).clone()

    def leave(self, out: Outcome) -> None:
        """Parameters, .grad and the optimizer's state, as the training loop would leave them."""
        p = self.parameter
        with torch.no_grad():
            p.copy_(out.params.view(p.shape))
        if self.epochs and p.requires_grad:
            p.grad = out.grad.to(p.dtype).view(p.shape)
            self._keep(out)

    def _keep(self, out: Outcome) -> None:
        """Writes the optimizer's state, where a rule keeps any."""
        p = self.parameter
        known = () if self.options is None else METHODS[type(self.options)].kept
        for kept, value in zip(known, out.kept, strict=True):
            if value is None:
                continue
            state = self.optimizer.state[p]
            there = state.get(kept.name)
            new = torch.as_tensor(value)
            if kept.scalar:
                dtype, device = scalar_place(self.optimizer, p)
                new = new.to(device, dtype)
            else:
                new = new.to(p.dtype).view(p.shape)
            if there is None:
                state[kept.name] = new
            else:
                there.copy_(new)


class Cpu:
    name = "cpu"
    launches: Callable[[], int] = staticmethod(_C.launches)

    def refuse(self, fits: Fits) -> str | None:
        device = fits.x.device
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
        batch, out = _told(fits)
        if degree_by is not None:
            out = out._replace(degree=torch.empty(n_fits, dtype=torch.int32))
            batch.degree_by, batch.degree = DEGREE_BY.index(degree_by), out.degree.data_ptr()
        out = out._replace(
            counted=torch.empty(n_fits, dtype=torch.int32),
            weight_sum=torch.empty(n_fits, dtype=torch.float64),
            r_squared=torch.empty(n_fits, dtype=torch.float64),
        )
        if covariance:
            spread = torch.empty(terms, terms, n_fits, dtype=torch.float64)
            out = out._replace(covariance=spread)
            batch.covariance = spread.data_ptr()
        batch.solve = True
        batch.counted, batch.weight_sum = out.counted.data_ptr(), out.weight_sum.data_ptr()
        batch.determination = out.r_squared.data_ptr()
        _run(batch, n_fits)
        return out

    def descend(self, run: Run) -> Outcome:
        fits = run.fits
        n_fits = fits.params.shape[1]
        batch, out = _told(fits)
        last = run.first_epoch + run.epochs
        out = out._replace(
            grad=torch.empty_like(out.params),
            recorded=torch.empty(run.records(), n_fits, dtype=torch.float64),
        )
        before = run.before
        if before is not None:
            out.rank.copy_(before.rank)
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


def _told(fits: Fits) -> tuple[Any, Outcome]:
    """The kernels' view of the fits, and where they leave what every run leaves."""
    terms, n_fits = fits.params.shape
    out = Outcome(
        fits.params.clone(memory_format=torch.contiguous_format),
        torch.empty(n_fits, dtype=torch.float64),
        torch.empty(n_fits, dtype=torch.int32),
        torch.empty(n_fits, dtype=torch.int32),
    )
    batch = _C.Batch()
    batch.x, batch.y = _series(fits.x), _series(fits.y)
    batch.w = None if fits.w is None else _series(fits.w)
    batch.n, batch.fits, batch.n_terms = fits.y.shape[0], n_fits, terms
    batch.float64, batch.omit = fits.params.dtype == torch.float64, fits.omit
    batch.shift, batch.scale = fits.shift, fits.scale
    if fits.basis != "monomial":
        rows = recurrence_of(fits.basis, terms)
        batch.basis = tuple(row.ctypes.data for row in rows)
    batch.params, batch.loss = out.params.data_ptr(), out.loss.data_ptr()
    batch.status, batch.rank = out.status.data_ptr(), out.rank.data_ptr()
    return batch, out


def _series(t: torch.Tensor) -> tuple[int, int, int, bool]:
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


class Reference:
    """Plain PyTorch: autograd and torch's own optimizer; the definition of correct."""

    name = "reference"

    def refuse(self, fits: Fits) -> str | None:
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
        status[~fits.finite(torch.arange(len(status)))] = 3
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
        status[~fits.finite(torch.arange(n_fits))] = 3
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


def _cuda() -> Any:
    from . import REGISTRY
    from .batched_cuda import BatchedCuda

    return BatchedCuda(REGISTRY["cuda"])  # type: ignore[arg-type]


def _triton() -> Any:
    from .batched_triton import BatchedTriton

    return BatchedTriton()


CHUNK = 4096  # fits


def least_norm(fits: Fits, lost: torch.Tensor) -> torch.Tensor:
    """Of the fits of these numbers [D], the optimum of least norm, in units of one over the length
    of a term's column: what numpy.polyfit gives where the points do not determine all; [K, D]."""

    def of(t: torch.Tensor | None, some: torch.Tensor) -> Any:
        return t if t is None or t.shape[1] == 1 else t[:, some]

    found = [
        Reference().solve(
            fits._replace(
                params=fits.params[:, some], x=of(fits.x, some), y=fits.y[:, some],
                w=of(fits.w, some),
            ),
            covariance=False,
        ).params
        for some in lost.split(CHUNK)
    ]  # fmt: skip
    return torch.cat(found, 1)


# By name, what makes them.
HOMES = {"cpu": Cpu, "cuda": _cuda, "triton": _triton, "reference": Reference}


@cache
def backend_called(name: str) -> Any:
    """The backend of batches called so."""
    return HOMES[name]()
