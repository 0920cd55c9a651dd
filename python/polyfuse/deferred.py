"""Tensors whose value waits until somebody looks: the five-line loop in one launch an iteration.

`predict` stands for model(x), `mse` for criterion(y_pred, y). ``loss.backward()`` launches forward,
loss, backward and update at once, from the parameters as they were at model(x); what it computed
is installed by ``optimizer.step()`` if nothing changed in between. A deferred tensor that meets any
other torch function becomes its value, from torch's own forward.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from .backends import REGISTRY
from .fused import Fused, fused
from .optim.owners import bind
from .static import moments_of

_GONE = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: {} was changed after model(x) and before its result was looked at"
)
_FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been freed). Saved intermediate values of the graph are freed when you call "
    ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
    "graph a second time or if you need to access saved tensors after calling backward."
)


_GIVEN, _HOOKED, _, _HELD = range(4)  # what Step.give_grads answers


class Forward:
    """One call model(x): the data, and the parameters as they were."""

    __slots__ = ("at", "freed", "fused", "params", "plain", "real", "x", "x_version")

    def __init__(self, known: Fused):
        assert known.traced is not None
        self.fused = known
        self.params = np.empty(len(known.traced.slots))
        self.at = self.params.ctypes.data
        self.plain: torch.Tensor | None = None
        self.real: torch.Tensor | None = None

    def begin(self, x: torch.Tensor) -> None:
        self.x = x
        self.x_version = self.fused.step.snapshot(self.at, x)
        self.plain = self.real = None
        self.freed = False

    def current(self) -> bool:
        """Whether torch's own forward would still give the same."""
        now = np.empty_like(self.params)
        known = self.fused
        if not known.valid() or self.x._version != self.x_version:
            return False
        known.step.snapshot(now.ctypes.data, self.x)
        return now.tobytes() == self.params.tobytes()

    def value(self) -> torch.Tensor:
        """The prediction with its graph: torch's own where it still can be had."""
        if self.real is None:
            module = self.fused.module()
            if module is not None and self.current():
                with torch.enable_grad():
                    self.real = torch.nn.Module.__call__(module, self.x)
                if self.plain is not None and self.plain._version:
                    self.real.data.copy_(self.plain)
            else:
                self.real = _PredictionGraph.apply(self, *self.fused.tensors)
        return self.real

    def values(self) -> torch.Tensor:
        """The prediction alone."""
        if self.real is not None:
            return self.real.detach()
        if self.plain is None:
            self.plain = self.evaluate()
        return self.plain

    def evaluate(self) -> torch.Tensor:
        if self.x._version != self.x_version:
            raise RuntimeError(_GONE.format("x"))
        known = self.fused
        assert known.traced is not None
        coef = known.traced.coefficients(self.params)
        y = REGISTRY["cpu"].evaluate(known.traced, coef, self.x.reshape(-1))
        return y.reshape(self.x.shape)


class Objective:
    """One call criterion(model(x), y): its value and gradient once launched."""

    __slots__ = ("forward", "freed", "real", "reduction", "value_", "y", "y_version")

    def __init__(self, forward: Forward, y: torch.Tensor, reduction: str):
        self.forward, self.y, self.reduction = forward, y, reduction
        self.y_version = y._version
        self.value_: float | None = None
        self.real: torch.Tensor | None = None
        self.freed = False

    def launch(self, optimizer: Any = None) -> None:
        """Loss, gradient and the next parameters, in one launch."""
        forward = self.forward
        known, x, y = forward.fused, forward.x, self.y
        if x._version != forward.x_version:
            raise RuntimeError(_GONE.format("x"))
        if y._version != self.y_version:
            raise RuntimeError(_GONE.format("the target"))
        owner = bind(known, optimizer)
        mean = self.reduction == "mean"
        if known.mean is not mean:
            known.mean = known.plan.mean = mean
        moments = moments_of(known, x, y)
        if moments is not None:
            value = known.step.launch_moments(forward.at, moments, owner)
        else:
            if x is not known.x or y is not known.y:
                known.accepts(y, x)
            threads = torch.get_num_threads()
            value = known.step.launch(forward.at, known.data, threads, owner)
        known.current = self
        self.value_ = value

    def number(self) -> float:
        if self.value_ is None:
            if self.real is not None:
                return self.real.item()
            self.launch()
        assert self.value_ is not None
        return self.value_

    def value(self) -> torch.Tensor:
        """The loss with its graph."""
        if self.real is None:
            forward = self.forward
            if self.y._version == self.y_version and (
                forward.real is not None or forward.current()
            ):
                self.real = F.mse_loss(forward.value(), self.y, reduction=self.reduction)
            else:
                self.real = _LossGraph.apply(self, *forward.fused.tensors)
        return self.real

    def gradients(self) -> list[torch.Tensor]:
        known = self.forward.fused
        if known.current is not self:
            self.launch()
        return known.gather(known.step.grads())

    def backward(self, retain_graph: bool | None) -> bool:
        """Sets or adds to .grad; False where parameters have hooks, which only torch calls."""
        forward = self.forward
        known = forward.fused
        if self.freed or forward.freed:
            raise RuntimeError(_FREED)
        if known.current is not self:
            self.launch()
        given = known.step.give_grads()
        if given == _HELD:
            known.fresh_grads()
            given = known.step.give_grads()
        if given == _GIVEN:
            known.offer(self)
        elif given == _HOOKED:
            return False
        else:
            for tensor, grad in zip(known.tensors, self.gradients(), strict=True):
                if tensor.requires_grad:
                    with torch.no_grad():
                        tensor.grad = grad if tensor.grad is None else tensor.grad.add_(grad)
        if not retain_graph:
            self.freed = forward.freed = True
        return True


class _PredictionGraph(torch.autograd.Function):
    """The prediction of parameters that have changed since."""

    @staticmethod
    def forward(ctx, forward, *tensors):
        ctx.record = forward
        return forward.values()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        forward: Forward = ctx.record
        known = forward.fused
        assert known.traced is not None
        if forward.x._version != forward.x_version:
            raise RuntimeError(_GONE.format("x"))
        cpu = REGISTRY["cpu"]
        g = grad.reshape(-1).contiguous()
        grad_coef = cpu.project(known.traced, forward.x.reshape(-1), g)
        grads = known.traced.pull_back(forward.params, grad_coef)
        return None, *known.gather(grads)


class _LossGraph(torch.autograd.Function):
    """The loss of parameters that have changed since."""

    @staticmethod
    def forward(ctx, objective, *tensors):
        ctx.record = objective
        return torch.tensor(objective.number(), dtype=objective.forward.fused.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return None, *(grad * g for g in ctx.record.gradients())


class Deferred(torch.Tensor):
    """A tensor without values yet; `_record` knows how to get them."""

    _record: Any

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _META:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        handler = _FUSED.get(func)
        if handler is not None:
            out = handler(*args, **kwargs)
            if out is not NotImplemented:
                return out
        args, kwargs = tree_map(_value, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        args, kwargs = tree_map(_value_alone, (args, kwargs or {}))
        return func(*args, **kwargs)

    is_leaf = property(lambda self: False)  # type: ignore[assignment]
    grad_fn = property(lambda self: _value(self).grad_fn)  # type: ignore[assignment]

    def __deepcopy__(self, memo):
        return _value(self).__deepcopy__(memo)

    def __reduce_ex__(self, protocol):
        return _value(self).__reduce_ex__(protocol)


class Prediction(Deferred):
    _record: Forward


class Residual(Deferred):
    """y_pred - y (sign 1), y - y_pred (-1) or the square (0)."""

    _record: tuple[Forward, torch.Tensor, int, int]  # forward, y, version of y, sign


class Loss(Deferred):
    _record: Objective

    def item(self):
        return self._record.number()

    def __float__(self):
        return self._record.number()

    def __format__(self, spec):
        return self._record.number().__format__(spec) if spec else str(self._record.number())

    def backward(self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
        record = self._record
        forward = record.forward
        if (
            gradient is None and not create_graph and inputs is None
            and record.real is None and forward.real is None
            and (forward.plain is None or not forward.plain._version)
            and record.backward(retain_graph)
        ):  # fmt: skip
            return None
        return record.value().backward(gradient, retain_graph, create_graph, inputs)


def _value(a: Any) -> Any:
    if isinstance(a, Residual):
        forward, y, y_version, sign = a._record
        if y._version != y_version:
            raise RuntimeError(_GONE.format("the target"))
        r = forward.value() - y
        return r * sign if sign else r * r
    return a._record.value() if isinstance(a, Deferred) else a


def _value_alone(a: Any) -> Any:
    return _value(a).detach() if isinstance(a, Deferred) else a


def _engine_reached(wrapper: torch.Tensor) -> None:
    """torch.autograd.backward came in past __torch_function__: pass the gradient on."""
    with torch._C.DisableTorchFunctionSubclass():
        grad, wrapper.grad = wrapper.grad, None
    _value(wrapper).backward(grad)


def _wrap(cls: type, shape: Any, known: Fused) -> Any:
    out: Any = torch.Tensor._make_wrapper_subclass(
        cls, shape, dtype=known.dtype, device=known.device, requires_grad=True
    )
    with torch._C.DisableTorchFunctionSubclass():
        out._post_accumulate_grad_hooks = OrderedDict({0: _engine_reached})
    return out


def predict(module: Any, x: Any) -> Any:
    """model(x) deferred; None where torch's own forward must run."""
    known = module._fused
    if (
        known is not None
        and known.deferrable
        and DistributedDataParallel._active_ddp_module is None
    ):
        out = known.step.predict(x, known.predictions)
        if out is not None:
            return out
    known = _prepare(module, x)
    if known is None:
        return None
    if (
        not is_grad_enabled()
        or not known.trainable
        or DistributedDataParallel._active_ddp_module is not None
    ):
        return _eager(known, x)
    out = _wrap(Prediction, x.shape, known)
    out._record = record = Forward(known)
    record.begin(x)
    if len(known.predictions) < 10:
        known.predictions += (out, record)
    return out


def _eager(known: Fused, x: torch.Tensor) -> Any:
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return None
    record = Forward(known)
    record.begin(x)
    return record.evaluate()


def _prepare(module: Any, x: Any) -> Fused | None:
    """The module's trace for this x, or None."""
    if (
        type(x) is not torch.Tensor
        or x.dtype not in (torch.float32, torch.float64)
        or x.device.type != "cpu"
        or x.requires_grad
        or x.layout is not torch.strided
        or x.numel() == 0
        or torch.compiler.is_compiling()
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or x.is_inference()
        or (x.ndim > 1 and not x.is_contiguous())
        or torch.is_autocast_enabled("cpu")
        or torch.overrides._get_current_function_mode() is not None
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    ):
        return None
    known = fused(module, x.dtype, x.device)
    module._fused = known
    if known.traced is None or known.traced.ndim > x.ndim:
        return None
    if x is not known.x or not known.step.matches(x):
        known.x, known.y = x, None
        known.step.see(x, None)
    return known


def mse(y_pred: Prediction, y: Any, reduction: str) -> Any:
    """criterion(y_pred, y) deferred; None where torch's own must run."""
    forward = y_pred._record
    known = forward.fused
    if (
        forward.real is not None
        or (forward.plain is not None and forward.plain._version)
        or (reduction != "mean" and reduction != "sum")
    ):
        return None
    if known.x is forward.x:
        out = known.step.objective(y, forward, reduction, known.losses)
        if out is not None:
            return out
    if type(y) is not Tensor or not is_grad_enabled() or not known.accepts(y, forward.x):
        return None
    out = _wrap(Loss, (), known)
    out._record = record = Objective(forward, y, reduction)
    if len(known.losses) < 10:
        known.losses += (out, record)
    return out


# -- torch functions that keep a deferred tensor deferred -----------------------------------------


def _mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    if type(input) is Prediction and size_average is None and reduce is None and weight is None:
        out = mse(input, target, reduction)
        return NotImplemented if out is None else out
    return NotImplemented


def _sub(a, b, *, alpha=1):
    """y_pred - y or y - y_pred; the sign is lost in the square, and kept should it be looked at."""
    y_pred, y, sign = (a, b, 1) if isinstance(a, Prediction) else (b, a, -1)
    if type(y_pred) is not Prediction or type(y) is not torch.Tensor or alpha != 1:
        return NotImplemented
    forward = y_pred._record
    if (
        forward.real is not None
        or not torch.is_grad_enabled()
        or not forward.fused.accepts(y, forward.x)
    ):
        return NotImplemented
    return _residual(forward, y, y._version, sign)


def _residual(forward: Forward, y: torch.Tensor, y_version: int, sign: int) -> Residual:
    out: Residual = _wrap(Residual, forward.x.shape, forward.fused)
    out._record = (forward, y, y_version, sign)
    return out


def _square(a, exponent=2):
    """The residual's square, marked by the sign 0."""
    if type(a) is not Residual or not a._record[3] or exponent != 2:
        return NotImplemented
    return _residual(*a._record[:3], 0)


def _mul(a, b):
    return _square(a) if a is b else NotImplemented


def _reduce(reduction):
    def handler(a):
        if type(a) is not Residual or a._record[3] or a._record[0].real is not None:
            return NotImplemented
        forward, y, y_version, _ = a._record
        out = _wrap(Loss, (), forward.fused)
        out._record = Objective(forward, y, reduction)
        out._record.y_version = y_version
        return out

    return handler


def _detach(a):
    if type(a) is Prediction:
        return a._record.values()
    if type(a) is Loss:
        return torch.tensor(a._record.number(), dtype=a._record.forward.fused.dtype)
    return NotImplemented


T: Any = torch.Tensor
_FUSED: dict[Any, Any] = {
    F.mse_loss: _mse_loss,
    **dict.fromkeys((T.sub, T.__sub__, torch.sub, T.subtract, torch.subtract), _sub),
    T.__rsub__: lambda a, b: _sub(b, a),
    **dict.fromkeys((T.pow, T.__pow__, torch.pow, T.square, torch.square), _square),
    **dict.fromkeys((T.mul, T.__mul__, torch.mul), _mul),
    **dict.fromkeys((T.mean, torch.mean), _reduce("mean")),
    **dict.fromkeys((T.sum, torch.sum), _reduce("sum")),
    **dict.fromkeys((T.detach, torch.detach, T.data.__get__), _detach),
}
_META = {
    T.shape.__get__, T.dtype.__get__, T.device.__get__, T.layout.__get__, T.ndim.__get__,
    T.requires_grad.__get__, T.size, T.dim, T.numel, T.nelement, T.is_floating_point,
    T.is_complex, T._version.__get__, T.is_contiguous, T.stride, T.__len__, T.ndimension,
    T.register_post_accumulate_grad_hook, T.is_sparse.__get__, T.is_quantized.__get__,
    
}  # fmt: skip
