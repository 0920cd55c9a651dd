"""What polyfuse's optimizers share: their step installs what backward has computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.compiler import is_compiling

from .. import _C
from ..rules import refuse_group, torchs
from .owners import register

# To type checkers; it goes before one of torch's classes, which is the Optimizer.
_Base: Any = torch.optim.Optimizer if TYPE_CHECKING else object


class FusedOptimizer(_Base):
    """Goes before one of torch's optimizers in a class's bases.

    Where backward ran fused on parameters that this optimizer alone holds, the next parameters and
    state are computed already and `step` only installs them; anything else is torch's own step.
    """

    __slots__ = ("_pending",)  # steps whose update backward has computed
    param_groups: list[dict[str, Any]]
    _torch_step: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if FusedOptimizer in cls.__bases__:
            torch_class: Any = torchs(cls)
            step = torch_class.step
            hooked = getattr(step, "hooked", False)
            cls._torch_step = step if hooked else torch.optim.Optimizer.profile_hook_step(step)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._pending: list[_C.Loop] = []
        register(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._pending = []
        register(self)

    def __getstate__(self) -> Any:
        return super().__getstate__()

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        register(self)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        register(self)

    def compiled(self) -> bool:
        """Whether the step is one that the kernels know."""
        return type(self).step is FusedOptimizer.step and not any(
            refuse_group(self, g) for g in self.param_groups
        )

    @_C.fast("zero_grad")
    def zero_grad(self, set_to_none: bool = True) -> None:
        if is_compiling() or not (set_to_none and _C.clear_grads(self.param_groups)):
            super().zero_grad(set_to_none=set_to_none)

    @_C.fast("step")
    def step(self, closure: Any = None) -> Any:
        if is_compiling():
            return self._torch_step(closure)
        pending, self._pending = self._pending, []
        if not pending or closure is not None:
            return self._torch_step(closure)
        done = [loop for loop in pending if loop.install(self)]
        if len(done) == 1 and done[0].covers_owner:
            return None
        # Several models, or something was changed: torch's step for what is not installed.
        installed = {id(t) for loop in done for t in loop.trained}
        given = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        aside = [(p, p.grad) for p in given if id(p) in installed]
        if done and len(aside) == len(given):
            return None
        for p, _ in aside:
            p.grad = None
        try:
            return self._torch_step()
        finally:
            for p, grad in aside:
                p.grad = grad

    step.hooked = True  # so that torch does not wrap it: `_torch_step` calls the hooks


_C.declare_optimizer(FusedOptimizer)
