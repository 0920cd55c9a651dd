"""What replaces torch.nn: polyfuse's own classes on top, everything else handed on from torch."""

from __future__ import annotations

import sys
from typing import Any

import torch.nn as _torch_nn

from .criterion import MSELoss
from .module import Module, Polynomial

for _name in ("functional", "init", "utils", "parameter", "parallel", "modules"):
    sys.modules[f"{__name__}.{_name}"] = getattr(_torch_nn, _name)


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})


__all__ = ["MSELoss", "Module", "Polynomial"]
