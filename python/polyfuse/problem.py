"""What is to be computed: the model's polynomial, the criterion, the update rule and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .criteria import SQUARED, Criterion
from .rules import KEPT, Rule
from .symbolic import Traced


class Problem(NamedTuple):
    model: Traced
    reduction: str  # mean or sum
    rule: Rule
    x: torch.Tensor  # [N]
    y: torch.Tensor  # [N]
    omit: bool = False  # leave out samples with a nan or inf
    # (epochs from the launch's start, the rule from then on), where the backend follows them
    changes: tuple[tuple[int, Rule], ...] = ()
    criterion: Criterion = SQUARED
    weight: torch.Tensor | None = None  # [N] >= 0 in the dtype of x; 0 leaves a sample out
    # float64 [P] each, low <= high, infinite where there is none: updates are projected onto them
    bounds: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class State:
    """Scalar parameters and what goes with them, float64 [P]; a run updates it in place."""

    params: np.ndarray
    kept: np.ndarray  # [KEPT, P], what the update rules keep; see `rules.METHODS`
    grad: np.ndarray  # of the last step taken

    @classmethod
    def of(cls, params: np.ndarray) -> State:
        """Before the first step of SGD."""
        return cls(params, np.zeros((KEPT, len(params))), np.zeros(len(params)))

    def copy(self) -> State:
        return State(self.params.copy(), self.kept.copy(), self.grad.copy())

    # What SGD keeps: the buffer, and 1 where it has been filled.
    momentum = property(lambda self: self.kept[0])
    has_momentum = property(lambda self: self.kept[1])


class Wanted(NamedTuple):
    """What `fit` was asked for besides its objects and data, checked as far as that goes alone."""

    epochs: int
    engine: str
    backend: str
    record_every: int  # 0: record nothing
    tol: float  # -inf: never stop early
    nan_policy: str
    weights: tuple[Any, Any, Any]  # sample_weight, mask, sigma
    bounds: Any = None


SLICE_SECONDS = 0.2  # a launch comes back this often, so that Ctrl-C is heard


class Schedule(NamedTuple):
    first_epoch: int
    epochs: int
    record_every: int = 0  # 0: record nothing
    tol: float = -math.inf  # -inf: never stop early
    seconds: float = 0.0  # come back after the first epoch past this; 0: no limit
    previous: float = math.nan  # loss of the epoch before the first


class Report(NamedTuple):
    """What a run reports: epochs done, whether `tol` stopped it, final and recorded losses."""

    epochs: int
    converged: bool
    loss: float  # at the parameters left behind
    recorded: np.ndarray
    moments: Any  # what the engine computed from the data, to go on with
    previous: float  # loss of the last epoch, before its step


class Moments(NamedTuple):
    """Weighted sums over the data about a reference polynomial: u = (x - shift) * scale,
    r = V c - y."""

    shift: float
    scale: float
    reference: np.ndarray  # [K] coefficients in u
    power: np.ndarray  # [2 K - 1] sums of w u^k
    cross: np.ndarray  # [K] sums of w u^k r
    square: float  # sum of w r^2
