"""What is to be computed: the model's polynomial, the criterion, the update rule and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .criteria import SQUARED, Criterion
from .symbolic import Traced


class SgdOptions(NamedTuple):
    """Hyper-parameters of one parameter, named as in `torch.optim.SGD`."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


Rule = tuple["SgdOptions | None", ...]  # per scalar parameter; None: no optimizer holds it


@dataclass(frozen=True)
class Problem:
    model: Traced
    reduction: str  # mean or sum
    rule: Rule
    x: torch.Tensor  # [N]
    y: torch.Tensor  # [N]
    omit: bool = False  # leave out samples with a nan or inf
    criterion: Criterion = SQUARED


@dataclass
class State:
    """Scalar parameters and what goes with them, float64 [P]; a run updates it in place."""

    params: np.ndarray
    momentum: np.ndarray
    has_momentum: np.ndarray  # bool
    grad: np.ndarray = None  # type: ignore[assignment]  # of the last step taken

    def __post_init__(self) -> None:
        if self.grad is None:
            self.grad = np.zeros(len(self.params))

    def copy(self) -> State:
        return State(
            self.params.copy(), self.momentum.copy(), self.has_momentum.copy(), self.grad.copy()
        )


class Schedule(NamedTuple):
    first_epoch: int
    epochs: int
    record_every: int = 0  # 0: record nothing
    tol: float = -math.inf  # -inf: never stop early
    seconds: float = 0.0  # come back after the first epoch past this; 0: no limit
    previous: float = math.nan  # loss of the epoch before the first


class Trace(NamedTuple):
    """What a run reports: epochs done, whether `tol` stopped it, final and recorded losses."""

    epochs: int
    converged: bool
    loss: float  # at the parameters left behind
    recorded: np.ndarray
    moments: Any  # what the engine computed from the data, to go on with
    previous: float  # loss of the last epoch, before its step


class Moments(NamedTuple):
    """Sums over the data about a reference polynomial: u = (x - shift) * scale, r = V c - y."""

    shift: float
    scale: float
    reference: np.ndarray  # [K] coefficients in u
    power: np.ndarray  # [2 K - 1] sums of u^k
    cross: np.ndarray  # [K] sums of u^k r
    square: float  # sum of r^2
