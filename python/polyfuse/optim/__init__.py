"""What replaces torch.optim: polyfuse's own classes on top, the rest handed on from torch."""

from __future__ import annotations

from typing import Any

import torch.optim as _torch_optim

from .._alias import hand_on
from .sgd import SGD

hand_on(__name__, "torch.optim", own=("owners", "sgd"))


def __getattr__(name: str) -> Any:
    return getattr(_torch_optim, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_optim)})


__all__ = ["SGD"]
