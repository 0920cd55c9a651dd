"""Polynomial fitting with the PyTorch training API, a whole run in one compiled kernel launch."""

from . import nn, optim
from .backends import backends
from .fit import fit
from .result import FitResult

__version__ = "0.1.0"
__all__ = ["FitResult", "backends", "fit", "nn", "optim"]
