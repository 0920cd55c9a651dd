"""Batches of fits: what their backends are given and give back, and which there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from ..bases import terms
from ..criteria import Criterion
from ..rules import (
    METHODS,
    Kept,
    Options,
    scalar_place,
)
from . import AUTO

DEGREE_BY = (None, "aicc", "bic")  # as csrc/core/batch.h has them


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

    def only(self, some: torch.Tensor | slice) -> Fits:
        """Those of these numbers."""

        def of(t: Any) -> Any:
            return t if t is None or t.shape[1] == 1 else t[:, some]

        return self._replace(
            params=self.params[:, some], x=of(self.x), y=self.y[:, some], w=of(self.w)
        )

    def finite(self) -> torch.Tensor:
        """Whether the samples that count of every fit are finite."""
        good = self.x.isfinite() & self.y.isfinite()
        return (good if self.w is None else good | (self.w == 0)).all(0) | self.omit

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


def _cpu() -> Any:
    from .batched_cpu import Cpu

    return Cpu()


def _cuda() -> Any:
    from . import REGISTRY
    from .batched_cuda import BatchedCuda

    return BatchedCuda(REGISTRY["cuda"])  # type: ignore[arg-type]


def _triton() -> Any:
    from .batched_triton import BatchedTriton

    return BatchedTriton()


def _reference() -> Any:
    from .batched_reference import Reference

    return Reference()


# By name, what makes them.
HOMES = {"cpu": _cpu, "cuda": _cuda, "triton": _triton, "reference": _reference}


def backend_of_fits(device: torch.device, n_terms: int) -> Any:
    """The backend of the training loop of fits on a GPU; None where there is none."""
    for runner in map(backend_called, AUTO.get(device.type, ())):
        if not runner.refuse(device, n_terms):
            return runner
    return None


@cache
def backend_called(name: str) -> Any:
    """The backend of batches called so."""
    return HOMES[name]()
