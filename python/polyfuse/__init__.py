"""Polynomial fitting with the PyTorch training API, a whole run in one compiled kernel launch."""

import gc
from importlib import import_module
from typing import Any

_collects = gc.isenabled()
gc.disable()  # amid an import, a collection walks all objects of torch and finds nothing
try:
    from . import _compile as _compile
    from . import nn, optim
    from .backends import backends
    from .batch_result import BatchResult, FitStatus
    from .degree import DegreeSelection, select_degree
    from .explain import explain
    from .fit import fit
    from .fuse import FusedStep, fuse
    from .polyfit import Polynomial, polyfit
    from .result import FitResult
    from .solve import Solution, solve
    from .static import static
finally:
    if _collects:
        gc.enable()

__version__ = "0.1.0"
__all__ = [
    "BatchResult",
    "DegreeSelection",
    "FitResult",
    "FitStatus",
    "FusedStep",
    "Polynomial",
    "Solution",
    "backends",
    "explain",
    "fit",
    "fuse",
    "nn",
    "optim",
    "polyfit",
    "select_degree",
    "solve",
    "static",
]


def __getattr__(name: str) -> Any:
    if name == "ops":  # which registers its operators when it is imported
        return import_module(".ops", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
