"""The base class of models: a Module whose forward is traced to a polynomial."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling

from .. import _C
from ..deferred import predict


class Module(torch.nn.Module):
    """Base class of models, to be used as `torch.nn.Module` is.

    On the first call ``forward`` is run once on a symbolic polynomial in place of x. If its output
    is a polynomial of x, the training loop runs on compiled kernels from then on; otherwise the
    module is an ordinary torch module, and a log line at INFO (logger "polyfuse") says why. The
    trace is made anew when the module changes. Numbers that forward takes from elsewhere than the
    module (globals, closures) are read once.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> class Line(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.slope = nn.Parameter(torch.tensor([2.0]))
        ...     def forward(self, x):
        ...         return self.slope * x
        >>> Line()(torch.tensor([1.0, 3.0])).tolist()
        [2.0, 6.0]
    """

    # What answers for the module; outside __dict__, which is part of what the trace watches.
    __slots__ = ("_fused", "_loop")

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__new__(cls)
        object.__setattr__(module, "_fused", None)
        object.__setattr__(module, "_loop", None)
        return module

    def __getstate__(self) -> dict:
        return self.__dict__.copy()

    @_C.fast("predict")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and not is_compiling():
            y = predict(self, args[0])
            if y is not None:
                return y
        return super().__call__(*args, **kwargs)


_C.declare_module(Module)
