"""The single step, for people who keep their own loop."""

from __future__ import annotations

from typing import Any

import torch

from ._C import clear_grads
from .backends import choose
from .fit import prepare
from .fused import Fused
from .records import Forward, Objective


class FusedStep:
    """``step(x, y)``: forward, loss, backward and update in one launch. Made by `fuse`."""

    def __init__(self, model: Any, criterion: Any, optimizer: Any):
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self._known: Fused | None = None
        self._criterion: Any = None

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One training step; returns the loss before it, a detached scalar tensor."""
        known = self._known
        if (
            known is None
            or not known.loop.sees(x)
            or not known.loop.sees_target(y)
            or not known.valid()
            or self._criterion != (self.criterion, self.criterion.reduction)
        ):
            known, problem = prepare(self.model, self.criterion, self.optimizer, x, y)
            choose("auto", problem)
            if not known.accepts(y, x):
                raise ValueError("y: expected a tensor that needs no gradient")
            self._known = known
            self._criterion = (self.criterion, self.criterion.reduction)
        optimizer = self.optimizer
        objective = Objective(Forward(known, x), y, y._version, self.criterion.reduction == "mean")
        objective.launch(optimizer)
        clear_grads(optimizer.param_groups)
        if not objective.backward():
            raise ValueError("model: its parameters have gradient hooks, which a fused step skips")
        if not known.loop.install(optimizer):
            optimizer.step()
        return torch.tensor(objective.item(), dtype=known.dtype)


def fuse(model: Any, criterion: Any, optimizer: Any) -> FusedStep:
    """Compile one training step of a polynomial model.

    Args:
        model, criterion, optimizer: as for `polyfuse.fit`.

    Returns:
        FusedStep: call it as ``loss = step(x, y)``. It leaves parameters, ``.grad`` and optimizer
        state as zero_grad, forward, backward and step of a loop would.

    Raises:
        TypeError, ValueError: at the call, naming the argument; nothing is changed.

    Example:
        >>> import torch, polyfuse as pf, polyfuse.nn as nn, polyfuse.optim as optim
        >>> model = nn.Polynomial(1)
        >>> step = pf.fuse(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))
        >>> step(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])).item()
        2.5
    """
    return FusedStep(model, criterion, optimizer)
