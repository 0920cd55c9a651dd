"""Tensors whose value waits until somebody looks: the five-line loop in one launch an iteration.

`predict` stands for model(x), `objective` for criterion(y_pred, y). ``loss.backward()`` launches
forward, loss, backward and update at once, from the parameters as they were at model(x); what it
computed is installed by ``optimizer.step()`` if nothing changed in between. A deferred tensor that
meets any other torch function becomes its value, from torch's own forward. While everything is as
it was in the iteration before, C++ answers these calls (csrc/loop.cpp) and nothing here runs.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled
from torch.nn.parallel import DistributedDataParallel

from . import _C
from .criteria import BY_FUNCTION, L1, MSE, Criterion, Kind, criterion_of, of_call
from .fused import Fused, fused, of_sample
from .records import Difference, Forward, Objective, View
from .static import columns_of

_saved_tensors_hooks = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None
)


class Deferred(torch.Tensor):
    """A tensor without values yet; `_record` knows how to get them."""

    _record: Any

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _META:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        handler = _FUSED.get(func)
        out = NotImplemented
        if (kind := BY_FUNCTION.get(func)) is not None:
            if kind is L1 and (weight := _weight_of_l1(sys._getframe(1).f_back)) is not None:
                kwargs = kwargs | {"weight": weight}
            out = _criterion(kind, args, kwargs)
        elif func in _VIEWS and not kwargs and type(args[0]) is Prediction:
            out = _viewed(func, *args)
        # What is called in other ways than these is torch's to answer, or to refuse.
        elif handler is not None and not kwargs and len(args) == handler[0]:
            out = handler[1](*args)
        if out is not NotImplemented:
            return out
        return func(*_within(_value, args), **_within(_value, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_within(_value_alone, args), **_within(_value_alone, kwargs or {}))

    is_leaf = property(lambda self: False)
    grad_fn = property(lambda self: _value(self).grad_fn)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_record":  # what the user hangs on this tensor is not for the next one
            _C.unpool(self)
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: Any) -> Any:
        return _value(self).__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _value(self).__reduce_ex__(protocol)


class Prediction(Deferred):
    _record: Forward


class Residual(Deferred):
    """y_pred - y, y - y_pred, or the square or absolute value of one."""

    _record: Difference


class Loss(Deferred):
    _record: Objective

    def item(self) -> Any:
        return self._record.item()

    __float__ = item

    def __format__(self, spec: Any) -> Any:
        return self._record.item().__format__(spec) if spec else str(self._record.item())

    @_C.fast("backward")
    def backward(
        self,
        gradient: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        inputs: Any = None,
    ) -> Any:
        record = self._record
        forward = record.forward
        if (
            gradient is None and not create_graph and inputs is None
            and record.real is None and forward.untouched()
            and record.backward(retain_graph)
        ):  # fmt: skip
            return None
        return record.value().backward(gradient, retain_graph, create_graph, inputs)


def _value(a: Any) -> Any:
    return a._record.value() if isinstance(a, Deferred) else a


def _value_alone(a: Any) -> Any:
    return _value(a).detach() if isinstance(a, Deferred) else a


def _within(f: Any, a: Any) -> Any:
    """f of what the containers of arguments hold: torch's own tree_map takes 40 us for a call."""
    if type(a) is tuple or type(a) is list:
        return type(a)([_within(f, v) for v in a])
    if type(a) is dict:
        return {k: _within(f, v) for k, v in a.items()}
    return f(a)


def _leaves(a: Any) -> Any:
    for v in a:
        if isinstance(v, (tuple, list)):
            yield from _leaves(v)
        elif isinstance(v, slice):
            yield from (v.start, v.stop, v.step)
        else:
            yield v


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
    """model(x) deferred, or its value under no_grad; None where torch's own forward must run."""
    module, x = columns_of(module, x) or (module, x)
    traces = getattr(module, "_fused", None)
    if traces and traces[0].leaves_to_torch(x):
        return None
    known = _known(module, x)
    if known is None or known.traced is None or torch.is_inference_mode_enabled():
        return None
    if not is_grad_enabled():
        return Forward(known, x).evaluate()
    if not known.trainable or DistributedDataParallel._active_ddp_module is not None:
        return None
    if not known.loop.sees(x):
        known.loop.see(x, None)
    out = _wrap(Prediction, known.traced.shape_of(x), known)
    out._record = Forward(known, x)
    known.loop.pool_prediction(out, out._record)
    return out


def _known(module: Any, x: Any) -> Fused | None:
    """The module's trace for this x, or None."""
    if (
        type(x) is not torch.Tensor
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or x.dtype not in (torch.float32, torch.float64)
        or x.device.type not in ("cpu", "cuda")
        or x.requires_grad
        or x.layout is not torch.strided
        or x.numel() == 0
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or x.is_inference()
        or x.is_neg()
        or (x.ndim > 1 and not x.is_contiguous())
        or x.data_ptr() == 0
        or torch.is_autocast_enabled(x.device.type)
        or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        or torch.is_anomaly_enabled()
        or _saved_tensors_hooks(False) is not None
        or torch.overrides._get_current_function_mode() is not None
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    ):
        return None
    known = fused(module, x.dtype, x.device, of_sample(x))
    if known.runner is None or known.traced is None or not known.traced.takes(x):
        return None
    object.__setattr__(module, "_loop", known.loop if known.cheap else None)
    return known


def objective(
    y_pred: Prediction, y: Any, criterion: Criterion, mean: bool, module: Any = None
) -> Any:
    """criterion(y_pred, y) deferred; None where torch's own must run.

    `module` is what may be called with the like of y_pred and y again.
    """
    forward = y_pred._record
    known = forward.fused
    if not forward.untouched() or type(y) is not Tensor or not is_grad_enabled():
        return None
    y = _in_rows(y)
    if not known.accepts(y, forward.x, criterion):
        return None
    criterion.warn(mean)
    if module is not None and not known.loop.sees_criterion(module):
        known.see_criterion(module, criterion, mean)
    out = _wrap(Loss, (), known)
    out._record = Objective(forward, y, y._version, criterion, mean)
    known.loop.pool_loss(out, out._record)
    return out


def _in_rows(y: Tensor) -> Tensor:
    """A target whose numbers follow one another; a copy costs less than what else torch does."""
    apart = y.ndim > 1 and y.layout is torch.strided and not y.is_contiguous()
    return y.contiguous() if apart and not y.requires_grad else y


# -- torch functions that keep a deferred tensor deferred -----------------------------------------


def _criterion(kind: Kind, args: Any, kwargs: Any) -> Any:
    """Torch's function of a criterion."""
    call = of_call(kind, args, kwargs)
    if call is None or type(call[0]) is not Prediction:
        return NotImplemented
    out = objective(*call)
    return NotImplemented if out is None else out


def _weight_of_l1(caller: Any) -> Any:
    """The argument of F.l1_loss, which does not hand it on to subclasses of tensors."""
    if caller is None or caller.f_code is not F.l1_loss.__code__:
        return None
    return caller.f_locals.get("weight")


def _sub(a: Any, b: Any) -> Any:
    """y_pred - y or y - y_pred; the sign is kept should it be looked at."""
    y_pred, y, sign = (a, b, 1) if isinstance(a, Prediction) else (b, a, -1)
    if type(y_pred) is not Prediction or type(y) is not torch.Tensor or not is_grad_enabled():
        return NotImplemented
    forward, y = y_pred._record, _in_rows(y)
    if not forward.untouched() or not forward.fused.accepts(y, forward.x):
        return NotImplemented
    return _difference(Difference(forward, y, y._version, sign, None))


def _difference(record: Difference) -> Residual:
    forward = record.forward
    out: Residual = _wrap(Residual, record.y.shape, forward.fused)
    out._record = record
    return out


def _of_residual(a: Any, kind: Kind) -> Any:
    """What a criterion takes the mean or the sum of."""
    if type(a) is not Residual or not is_grad_enabled():
        return NotImplemented
    record = a._record
    if record.kind is not None or not record.untouched():
        return NotImplemented
    forward = record.forward
    return _difference(Difference(forward, record.y, record.y_version, record.sign, kind))


def _square(a: Any, exponent: Any = 2) -> Any:
    if type(exponent) not in (int, float) or exponent != 2:
        return NotImplemented
    return _of_residual(a, MSE)


def _abs(a: Any) -> Any:
    return _of_residual(a, L1)


def _mul(a: Any, b: Any) -> Any:
    return _square(a) if a is b else NotImplemented


def _reduce(mean: bool) -> Any:
    def handler(a: Any) -> Any:
        if type(a) is not Residual or not is_grad_enabled():
            return NotImplemented
        record = a._record
        if record.kind is None or not record.untouched():
            return NotImplemented
        out = _wrap(Loss, (), record.forward.fused)
        criterion = criterion_of(record.kind)
        out._record = Objective(record.forward, record.y, record.y_version, criterion, mean)
        return out

    return handler


_reshaped_to: dict[Any, torch.Size | None] = {}  # by function, shape before, other arguments


def _viewed(func: Any, a: Any, *how: Any) -> Any:
    """The prediction with its samples in the same order, as `how` shapes them."""
    forward = a._record
    known, x = forward.fused, forward.x
    if (
        not is_grad_enabled()
        or not known.on_host
        or x.numel() < 2
        or not forward.untouched()
        or not _PLAIN.issuperset(map(type, _leaves(how)))
    ):
        return NotImplemented
    shape = known.traced.shape_of(x)
    key = func, shape, repr(how)
    if key not in _reshaped_to:
        if len(_reshaped_to) > 1000:
            _reshaped_to.clear()
        _reshaped_to[key] = _shape_after(func, shape, how)
    after = _reshaped_to[key]
    if after is None or not forward.current():
        return NotImplemented
    if after == shape:
        return a
    view_of = known.reshaped(x, after)
    if view_of is None:
        return NotImplemented
    if not view_of.loop.sees(x):
        view_of.loop.see(x, None)
    out = _wrap(Prediction, after, view_of)
    out._record = View(view_of, forward)
    view_of.loop.pool_prediction(out, out._record)
    return out


def _shape_after(func: Any, shape: torch.Size, how: Any) -> torch.Size | None:
    """None where torch must say more than the shape: of an error, or of less than all samples."""
    before = torch.empty(shape, device="meta")
    try:
        after = func(before, *how)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None
    same = after.numel() == before.numel() and after.is_contiguous() and not after.storage_offset()
    rows = shape[0] > 1 and after.shape[:1] == shape[:1]
    return after.shape if same and rows else None


def _detach(a: Any) -> Any:
    if type(a) is Prediction:
        return a._record.values()
    if type(a) is Loss:
        return a._record.plain()
    return NotImplemented


T: Any = torch.Tensor
# How many arguments, all positional, and what answers them.
_FUSED: dict[Any, tuple[int, Any]] = {
    **dict.fromkeys((T.sub, T.__sub__, torch.sub, T.subtract, torch.subtract), (2, _sub)),
    T.__rsub__: (2, lambda a, b: _sub(b, a)),
    **dict.fromkeys((T.pow, T.__pow__, torch.pow), (2, _square)),
    **dict.fromkeys((T.square, torch.square), (1, _square)),
    **dict.fromkeys((T.abs, T.__abs__, T.absolute, torch.abs, torch.absolute), (1, _abs)),
    **dict.fromkeys((T.mul, T.__mul__, torch.mul), (2, _mul)),
    **dict.fromkeys((T.mean, torch.mean), (1, _reduce(True))),
    **dict.fromkeys((T.sum, torch.sum), (1, _reduce(False))),
    **dict.fromkeys((T.detach, torch.detach, T.data.__get__), (1, _detach)),
}
_VIEWS = {
    T.squeeze, torch.squeeze, T.unsqueeze, torch.unsqueeze, T.view, T.reshape, torch.reshape,
    T.flatten, torch.flatten, T.ravel, torch.ravel, T.__getitem__,
}  # fmt: skip
_PLAIN = {int, type(None), type(...)}  # what says how, of which repr tells all
_META = {
    T.shape.__get__, T.dtype.__get__, T.device.__get__, T.layout.__get__, T.ndim.__get__,
    T.requires_grad.__get__, T.size, T.dim, T.numel, T.nelement, T.is_floating_point,
    T.is_complex, T._version.__get__, T.is_contiguous, T.stride, T.__len__, T.ndimension,
    T.register_post_accumulate_grad_hook, T.is_sparse.__get__, T.is_quantized.__get__,
}  # fmt: skip
