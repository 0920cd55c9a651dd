"""Polynomial fitting with the PyTorch training API, a whole run in one compiled kernel launch."""

from . import _compile as _compile
from . import nn, optim
from .backends import backends
from .explain import explain
from .fit import fit
from .fuse import FusedStep, fuse
from .result import FitResult
from .static import static

__version__ = "0.1.0"
__all__ = [
    "FitResult",
    "FusedStep",
    "backends",
    "explain",
    "fit",
    "fuse",
    "nn",
    "optim",
    "static",
]
