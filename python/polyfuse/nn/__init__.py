"""What replaces torch.nn: polyfuse's own classes on top, everything else handed on from torch."""

from __future__ import annotations

from typing import Any

import torch.nn as _torch_nn

from .._alias import hand_on
from .criterion import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    GaussianNLLLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    PoissonNLLLoss,
    SmoothL1Loss,
    SoftMarginLoss,
)
from .layers import Linear, Sequential
from .module import Module
from .polynomial import Polynomial

hand_on(__name__, "torch.nn", own=("criterion", "layers", "module", "polynomial"))


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})


__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "Linear",
    "MSELoss",
    "Module",
    "PoissonNLLLoss",
    "Polynomial",
    "Sequential",
    "SmoothL1Loss",
    "SoftMarginLoss",
]
