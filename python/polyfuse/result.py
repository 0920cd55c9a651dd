"""What a fit reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .report import Reported


@dataclass(kw_only=True)
class Ran(Reported):
    """What ran, how long, and how it ended."""

    loss: Any
    epochs: int
    converged: bool
    stop_reason: str
    engine: str
    backend: str
    launches: int
    seconds: float
    history_epochs: np.ndarray = field(repr=False)
    history: np.ndarray = field(repr=False)
    _evidence: Any = field(repr=False)

    @property
    def _by(self) -> str:
        return (
            f"engine {self.engine} on {self.backend}, {self.launches} launch"
            f"{'' if self.launches == 1 else 'es'}, {self.seconds * 1e3:.3g} ms"
        )


@dataclass(kw_only=True)
class FitResult(Ran):
    """The outcome of `polyfuse.fit`.

    Attributes:
        loss: the criterion at the parameters that the fit left behind.
        epochs: epochs done.
        history_epochs, history: epochs [M] and the loss [M] after that many steps; the last entry
            is the end of the run.
        converged: whether `tol` was reached.
        stop_reason: "epochs", "converged", "callback", "interrupted" or "diverged".
        engine, backend: what computed the run; launches: kernel launches it took.
        seconds: wall time of the call.
        statistics: covariance, errors, tests and bands at the parameters that the fit left, from
            its data, which it keeps alive; of several outputs a `polyfuse.each.Each` of them.
    """

    loss: float

    def __str__(self) -> str:
        ended = f"after {self.epochs:,} epochs ({self.stop_reason})"
        return f"loss {self.loss:.7g} {ended}; {self._by}"
