"""Criteria: torch's own, subclassed so that the loss of a deferred prediction is deferred."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling

from .. import _C
from ..deferred import Prediction, mse
from ..watching import has_hooks


def is_torchs(criterion: torch.nn.Module) -> bool:
    """Whether calling the criterion does what torch's MSELoss does, and nothing besides."""
    return (
        type(criterion).forward is torch.nn.MSELoss.forward
        and "forward" not in criterion.__dict__
        and not has_hooks(criterion)
    )


class MSELoss(torch.nn.MSELoss):
    """Squared error, as `torch.nn.MSELoss`; mean and sum of a deferred prediction are fused.

    Args:
        reduction: "mean", "sum" or "none".

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.MSELoss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        2.0
    """

    @_C.fast("objective")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return super().__call__(*args, **kwargs)
        if len(args) == 2 and type(args[0]) is Prediction and is_torchs(self):
            loss = mse(args[0], args[1], self.reduction, self)
            if loss is not None:
                return loss
        return super().__call__(*args, **kwargs)
