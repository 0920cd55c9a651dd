"""What replaces torch.optim: polyfuse's own classes on top, the rest handed on from torch."""

from __future__ import annotations

import sys
from typing import Any

import torch.optim as _torch_optim

from .sgd import SGD

for _name in ("lr_scheduler", "swa_utils"):
    sys.modules[f"{__name__}.{_name}"] = getattr(_torch_optim, _name)


def __getattr__(name: str) -> Any:
    return getattr(_torch_optim, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_optim)})


__all__ = ["SGD"]
