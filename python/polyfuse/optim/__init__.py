"""What replaces torch.optim: polyfuse's own classes on top, the rest handed on from torch."""

from __future__ import annotations

from typing import Any

import torch.optim as _torch_optim

from .._alias import hand_on
from .classes import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

hand_on(__name__, "torch.optim", own=("owners", "step", "classes"))


def __getattr__(name: str) -> Any:
    return getattr(_torch_optim, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_optim)})


__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
]
