"""SGD: torch's own, whose step installs what backward has computed."""

from __future__ import annotations

from typing import Any

import torch

from .. import _C
from .owners import register

_torch_step: Any = torch.optim.SGD.step
if not getattr(_torch_step, "hooked", False):
    _torch_step = torch.optim.Optimizer.profile_hook_step(_torch_step)


class SGD(torch.optim.SGD):
    """Stochastic gradient descent, with the arguments, state and results of `torch.optim.SGD`.

    Where backward ran fused on parameters that this optimizer alone holds, the next parameters are
    computed already and `step` only installs them; anything else is torch's own step.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.

    Raises:
        ValueError: as torch does, for a negative lr or momentum, or nesterov without momentum.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> model = nn.Polynomial(2)
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    """

    __slots__ = ("_pending",)  # steps whose update backward has computed

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._pending: list[_C.Loop] = []
        register(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._pending = []
        register(self)

    def __getstate__(self) -> dict:
        return super().__getstate__()

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        register(self)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        register(self)

    def compiled(self) -> bool:
        """Whether the step is one that the kernels know."""
        return type(self).step is SGD.step and not any(
            g["differentiable"] for g in self.param_groups
        )

    @_C.fast("zero_grad")
    def zero_grad(self, set_to_none: bool = True) -> None:
        if not (set_to_none and _C.clear_grads(self.param_groups)):
            super().zero_grad(set_to_none=set_to_none)

    @_C.fast("step")
    def step(self, closure: Any = None) -> Any:
        pending, self._pending = self._pending, []
        if not pending or closure is not None:
            return _torch_step(self, closure)
        done = [loop for loop in pending if loop.install(self)]
        if len(done) == 1 and done[0].covers_owner:
            return None
        # Several models, or something was changed: torch's step for what is not installed.
        installed = {id(t) for loop in done for t in loop.tensors}
        aside = [
            (p, p.grad)
            for g in self.param_groups
            for p in g["params"]
            if id(p) in installed and p.grad is not None
        ]
        if sum(len(g["params"]) for g in self.param_groups) == len(aside):
            return None
        for p, _ in aside:
            p.grad = None
        try:
            return _torch_step(self)
        finally:
            for p, grad in aside:
                p.grad = grad

    step.hooked = True  # so that torch does not wrap it: `_torch_step` calls the hooks


_C.declare_optimizer(SGD)
