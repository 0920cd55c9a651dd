"""What a batch of fits reports: how each of them ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch

from .backends.batched import Fits
from .result import Ran


class FitStatus(IntEnum):
    """How one fit of a batch ended."""

    CONVERGED = 0  # solved, or the loss settled within tol
    STEP_LIMIT = 1  # all epochs done
    RANK_DEFICIENT = 2  # fewer distinct points than coefficients
    NON_FINITE = 3  # nan or inf among its data
    DIVERGED = 4


@dataclass(kw_only=True)
class BatchResult(Ran):
    """The outcome of many fits in one launch; numbers of each fit are tensors ``[*batch_shape]``.

    Attributes:
        loss: the criterion of every fit at its parameters, float64; of a solution, the mean squared
            error.
        status: `FitStatus` of every fit, int32.
        rank: how many coefficients the data of every fit determines, int32.
        fit_epochs: epochs done by every fit; None for a solution.
        epochs: those of the fit that took most.
        converged: whether every fit has converged.
        history: the losses ``[M, *batch_shape]`` after history_epochs [M] steps.
        r_squared: of every fit of a solution, otherwise None.
        covariance: of the coefficients of every fit, ``[K, K, *batch_shape]``, where it was asked
            for; scaled by the residual variance, except with sigma.
        degree: of every fit, int32, where it was to be chosen; terms above it are 0.
        stop_reason, engine, backend, launches, seconds: as in `FitResult`.
        statistics: a `polyfuse.each.Each` of those of every fit, or of every output, from the
            data, which it keeps alive.
    """

    loss: torch.Tensor = field(repr=False)
    status: torch.Tensor = field(repr=False)
    rank: torch.Tensor = field(repr=False)
    fit_epochs: torch.Tensor | None = field(default=None, repr=False)
    r_squared: torch.Tensor | None = field(default=None, repr=False)
    covariance: torch.Tensor | None = field(default=None, repr=False)
    degree: torch.Tensor | None = field(default=None, repr=False)

    def counts(self) -> dict[str, int]:
        """How many fits ended in which way."""
        return {s.name.lower(): n for s, n in ways_of(self.status, "propagate").items()}

    def __str__(self) -> str:
        ways = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in self.counts().items())
        return f"{self.status.numel():,} fits: {ways}; {self._by}"


def ways_of(
    status: torch.Tensor, nan_policy: str, fits: Fits | None = None
) -> dict[FitStatus, int]:
    """How many fits ended in which way; raises where nan_policy says so. With fits: of those
    that ended in nan, the ones whose data is finite have diverged, and the others have not."""
    if fits is not None and int(status.max()) >= FitStatus.NON_FINITE:
        called = torch.nonzero(status >= FitStatus.NON_FINITE)[:, 0]
        finite = fits.only(called).finite()
        status[called[finite]] = FitStatus.DIVERGED
        status[called[~finite]] = FitStatus.NON_FINITE
    low, high = (int(end) for end in status.aminmax())
    if low == high:
        counts = {FitStatus(low): status.numel()}
    else:
        numbers = torch.bincount(status.reshape(-1), minlength=len(FitStatus)).tolist()
        counts = {s: n for s, n in zip(FitStatus, numbers, strict=True) if n}
    if nan_policy == "raise" and (bad := counts.get(FitStatus.NON_FINITE)):
        raise ValueError(
            f"x, y: the data of {bad} of {status.numel()} fits holds nan or inf; expected finite "
            "data, or nan_policy='omit' (leave out such samples) or 'propagate' (that fit is nan)"
        )
    return counts
