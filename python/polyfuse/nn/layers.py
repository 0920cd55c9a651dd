"""Torch's modules that are models by themselves: a linear layer, and a sequence of modules."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling

from .module import Module


class Linear(Module, torch.nn.Linear):
    """`torch.nn.Linear`; with one output, a model whose training loop runs on compiled kernels.

    Shapes: x [N, in_features] gives [N, 1]. Raises what torch's does.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.Linear(3, 1)(torch.ones(5, 3)).shape
        torch.Size([5, 1])
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.out_features == 1 and not is_compiling():
            return super().__call__(*args, **kwargs)
        return torch.nn.Linear.__call__(self, *args, **kwargs)


class Sequential(Module, torch.nn.Sequential):
    """`torch.nn.Sequential`; where it computes a polynomial, fused as `Module` is.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> x = torch.linspace(-1, 1, 5)
        >>> model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0, 1))
        >>> model(x.unsqueeze(-1) ** torch.tensor([1, 2, 3])).shape
        torch.Size([5])
    """
