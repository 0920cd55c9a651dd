"""What deferred tensors know: one call of the model, one of the criterion, and their graphs.

`Forward` stands for model(x), `Objective` for criterion(model(x), y). Their values come from one
kernel launch, or from torch's own forward where torch's graph is asked for.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from . import _C
from ._check import GONE
from .criteria import L1, Criterion, Kind
from .fused import Fused
from .optim.owners import bind
from .static import moments_of

_FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been freed). Saved intermediate values of the graph are freed when you call "
    ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
    "graph a second time or if you need to access saved tensors after calling backward."
)
MAX_ATTEMPTS = 1000  # other threads may show the loop other data in between
_, _UNLIKE, _ACCUMULATE, _HELD, _STALE = range(5)  # what Loop.give_grads answers


class Forward(_C.Forward):
    """One call model(x): the data, and the parameters as they were."""

    __slots__ = ("before", "fused", "real_version", "versions", "view")
    view: Any  # weak, of the same in another shape

    def __init__(self, known: Fused, x: torch.Tensor):
        assert known.traced is not None
        super().__init__(known.traced.n_params if known.on_host else 0)
        self.fused, self.view = known, None
        known.loop.begin(self, x)

    def current(self) -> bool:
        """Whether torch's own forward would still give the same."""
        known = self.fused
        if not known.valid() or self.x._version != self.x_version:
            return False
        return known.loop.unchanged_since(self)

    def value(self) -> torch.Tensor:
        """The prediction with its graph: torch's own where it still can be had."""
        if self.real is None:
            self.fused.note_value()
            with torch.inference_mode(False), torch.enable_grad():
                self.real = self.graph()
            if self.plain_changed():
                self.real.data.copy_(self.plain)
            self.real_version = self.real._version
            if (view := self._viewed_as()) is not None and view.real is None:
                view.value()  # from now on, what is done to one is done to the other
        return self.real

    def graph(self) -> torch.Tensor:
        """What torch's own forward gives, or would have given."""
        module = self.fused.module()
        if module is not None and self.current():
            return torch.nn.Module.__call__(module, self.x)
        return _PredictionGraph.apply(self, *self.fused.tensors)

    def _viewed_as(self) -> Any:
        view = self.view and self.view()
        return view if view is not None and view.base is self else None

    def original(self) -> torch.Tensor:
        """The prediction with its graph, as the model gave it, whatever was done to it since."""
        if not self.plain_changed() and (
            self.real is None or self.real._version == self.real_version
        ):
            return self.value()
        with torch.inference_mode(False), torch.enable_grad():
            return _PredictionGraph.apply(self, *self.fused.tensors)

    def values(self) -> torch.Tensor:
        """The prediction alone."""
        if self.real is not None or self._viewed_as() is not None:
            return self.value().detach()
        if self.plain is None:
            self.show(self.evaluate(), self.fused.on_host)
        return self.plain

    def evaluate(self) -> torch.Tensor:
        """The values, computed from the parameters as they were."""
        if self.x._version != self.x_version:
            raise RuntimeError(GONE.format("x"))
        return self.fused.evaluate(self)


class View(Forward):
    """The prediction `base` in another shape."""

    __slots__ = ("base",)
    base: Forward | None  # None once nothing can be done to it that this had to know of

    def __init__(self, known: Fused, base: Forward):
        super().__init__(known, base.x)
        self.base, base.view = base, weakref.ref(self)
        last = known.last_view and known.last_view()
        if last is not None and last.freed:
            last.base = None  # so that it can be handed out again
        known.last_view = weakref.ref(self)

    def graph(self) -> torch.Tensor:
        assert self.fused.traced is not None
        out = super().graph() if self.base is None else self.base.value()
        return out.reshape(self.fused.traced.shape_of(self.x))


class Difference:
    """y_pred - y (sign 1) or y - y_pred (-1); or what a criterion makes of it: square or abs."""

    __slots__ = ("forward", "kind", "real", "sign", "y", "y_version")

    def __init__(
        self, forward: Forward, y: torch.Tensor, y_version: int, sign: int, kind: Kind | None
    ):
        self.forward, self.y, self.y_version, self.sign = forward, y, y_version, sign
        self.kind = kind
        self.real: torch.Tensor | None = None

    def untouched(self) -> bool:
        return self.real is None and self.forward.untouched() and self.y._version == self.y_version

    def value(self) -> torch.Tensor:
        if self.real is None:
            if self.y._version != self.y_version:
                raise RuntimeError(GONE.format("the target"))
            with torch.inference_mode(False), torch.enable_grad():
                r = (self.forward.original() - self.y) * self.sign
                self.real = r if self.kind is None else r.abs() if self.kind is L1 else r * r
        return self.real


class Objective(_C.Objective):
    """One call criterion(model(x), y): its number and gradient once launched."""

    __slots__ = ("in_step", "state")
    forward: Forward
    criterion: Criterion
    in_step: bool  # whether zero_grad, backward and step follow the launch at once
    state: torch.Tensor  # what a launch on a device left there

    def launch(self, optimizer: Any = None) -> bool:
        """Loss, gradient and the next parameters, in one launch; False for data of another kind."""
        self.in_step = optimizer is not None
        forward = self.forward
        known, x, y = forward.fused, forward.x, self.y
        if x._version != forward.x_version or x.data_ptr() == 0:
            raise RuntimeError(GONE.format("x"))
        if y._version != self.y_version or y.data_ptr() == 0:
            raise RuntimeError(GONE.format("the target"))
        w = self.criterion.samples
        if w is not None and w._version != self.weight_version:
            raise RuntimeError(GONE.format("the weight"))
        for _ in range(MAX_ATTEMPTS):
            if not known.accepts(y, x, self.criterion):
                break
            bind(known, optimizer)
            if self.criterion.squared and self.weight is None:
                known.loop.settle(moments_of(known, x, y), x._version, y._version)
            if known.loop.launch(self, torch.get_num_threads()):
                return True  # otherwise another thread has shown it other data
        return False

    def item(self) -> float:
        if self.real is not None:
            return self.real.item()
        if not self.launched() and not self.launch():
            return self.value().item()
        return self.plain().item() if self.number is None else self.number

    def launched(self) -> bool:
        return self.number is not None or hasattr(self, "state")

    def plain(self) -> torch.Tensor:
        """The loss alone, as a tensor; on a device without waiting for it."""
        known = self.forward.fused
        if self.real is not None:
            return self.real.detach()
        if not self.launched() and not self.launch():
            return self.value().detach()
        if self.number is not None:
            return torch.tensor(self.number, dtype=known.dtype)
        return known.loop.loss_of(self).to(known.dtype, copy=True)

    def value(self) -> torch.Tensor:
        """The loss with its graph."""
        if self.real is None:
            forward = self.forward
            with torch.inference_mode(False), torch.enable_grad():
                if self.y._version == self.y_version and (
                    forward.real is not None or forward.current()
                ):
                    self.real = self.criterion.value(forward.original(), self.y, self.mean)
                else:
                    self.real = _LossGraph.apply(self, *forward.fused.tensors)
        return self.real

    def gradients(self) -> list[torch.Tensor]:
        known = self.forward.fused
        if not known.loop.holds(self):
            self.launch()
        return known.gradients()

    def backward(self, retain_graph: bool | None = None) -> bool:
        """Sets or adds to .grad; False where only torch can: for hooks, or parameters exchanged."""
        forward = self.forward
        known = forward.fused
        if self.freed or forward.freed:
            raise RuntimeError(_FREED)
        given = _STALE
        while given in (_STALE, _HELD):
            if not known.loop.as_trainable():
                known.retire()
                return False
            if not (known.loop.holds(self) or self.launch()):
                return False
            if given == _HELD:
                known.fresh_grads()
            given = known.loop.give_grads(self)
        if given == _UNLIKE:
            return False
        if given == _ACCUMULATE:
            for tensor, grad in zip(known.tensors, self.gradients(), strict=True):
                if tensor.requires_grad:
                    with torch.no_grad():
                        tensor.grad = grad if tensor.grad is None else tensor.grad.add_(grad)
        known.loop.offer()
        if not retain_graph:
            self.freed = forward.freed = True
        return True


class _PredictionGraph(torch.autograd.Function):
    """The prediction of parameters that have changed since."""

    @staticmethod
    def forward(ctx: Any, forward: Any, *tensors: Any) -> Any:
        ctx.record = forward
        ctx.save_for_backward(forward.x)  # what torch frees, and whose version it checks
        return forward.evaluate()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        _ = ctx.saved_tensors  # raises where they are freed, or changed
        return None, *ctx.record.fused.project(ctx.record, grad)


class _LossGraph(torch.autograd.Function):
    """The loss of parameters that have changed since."""

    @staticmethod
    def forward(ctx: Any, objective: Any, *tensors: Any) -> Any:
        ctx.record = objective
        ctx.save_for_backward(objective.forward.x, objective.y)
        return objective.plain()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        _ = ctx.saved_tensors  # raises where they are freed, or changed
        return None, *(grad * g for g in ctx.record.gradients())
