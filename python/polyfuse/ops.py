"""Operators of the kernels, torch.ops.polyfuse.*: V c, V^T g and a loss with its gradient.

V[n, k] = u_n^k with u = (x - shift) * scale. `evaluate` and `project` are each other's adjoints,
and V'c = V (k c_k), so that each derivative of any order is made of them. Under torch.func and in
forward mode the functions here are right; the bare torch.ops.polyfuse.* are for reverse mode alone,
as all operators registered from Python: torch.func.grad refuses them, a jvp of theirs is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.func import vjp
from torch.library import custom_op

from . import _check
from .backends import Backend, backend_of, choose
from .criteria import Criterion, numbers_of, of_numbers
from .problem import Problem
from .recognise import read_options
from .symbolic import power_series

__all__ = ["evaluate", "loss", "project"]


def evaluate(x: Tensor, coef: Tensor, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """The polynomial sum_k coef[k] u^k of u = (x - shift) scale, as torch.ops.polyfuse.evaluate.

    Differentiable in x and coef, as often as wanted, in reverse and in forward mode, and under
    `torch.func` and `torch.compile`. The arithmetic is float64, the result has the dtype of x.

    Args:
        x: of any shape and strides, float32 or float64. A nan or inf stays with its sample.
        coef: [K], ascending degree, 1 to 33 coefficients of x's dtype and device.
        shift, scale: of the variable; numbers, not differentiated.

    Returns:
        A new contiguous tensor in the shape of x.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, polyfuse as pf
        >>> pf.ops.evaluate(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 3.0]))
        tensor([ 1.,  4., 13.])
    """
    if _plain():
        return _horner(x, coef, shift, scale)
    return (Evaluate.apply if _transformed() else _evaluate)(x, coef, shift, scale)


def project(x: Tensor, g: Tensor, terms: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """The sums over samples of g u^k for k < terms, as torch.ops.polyfuse.project.

    Of ones they are the power sums of x, of y the cross moments of a least-squares fit.
    Differentiable in x and g as `evaluate` is in its own. Summed in float64, in a fixed order.

    Args:
        x: of any shape and strides, float32 or float64; no samples give zeros.
        g: in the shape of x, of its dtype and device.
        terms: K, 1 to 33.
        shift, scale: of the variable u = (x - shift) scale; numbers, not differentiated.

    Returns:
        [K] in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, polyfuse as pf
        >>> pf.ops.project(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3), terms=3)
        tensor([3., 3., 5.])
    """
    if _plain():
        return _power_sums(x, g, terms, shift, scale)
    return (Project.apply if _transformed() else _project)(x, g, terms, shift, scale)


def loss(
    x: Tensor, y: Tensor, coef: Tensor, criterion: Any, shift: float = 0.0, scale: float = 1.0
) -> Tensor:
    """criterion(evaluate(x, coef, shift, scale), y) from one read of the data.

    Loss and gradient come from one launch, torch.ops.polyfuse.objective; under `torch.func` and in
    forward mode from `evaluate` and torch's own criterion. Differentiable in x, y and coef as often
    as torch's criterion is.

    Args:
        x, y: of one shape, any strides, float32 or float64, at least one sample.
        coef: [K], ascending degree, 1 to 33 coefficients of x's dtype and device.
        criterion: a module of `torch.nn` or `polyfuse.nn` such as MSELoss, of reduction mean, sum
            or batchmean.
        shift, scale: of the variable u = (x - shift) scale; numbers, not differentiated.

    Returns:
        [] in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, polyfuse as pf
        >>> x, coef = torch.tensor([0.0, 1.0, 2.0]), torch.zeros(2, requires_grad=True)
        >>> value = pf.ops.loss(x, torch.ones(3), coef, torch.nn.MSELoss())
        >>> value.backward()
        >>> value.item(), coef.grad
        (1.0, tensor([-2., -2.]))
    """
    if is_compiling() and any(b is not None for b in getattr(criterion, "_buffers", {}).values()):
        return criterion(evaluate(x, coef, shift, scale), y)  # a graph has no numbers of tensors
    found = read_options(criterion, x)
    if isinstance(found, str):
        raise TypeError(f"criterion: {found}")
    kind, options, reduction = found
    if _transformed() or _forward_mode():
        return criterion(evaluate(x, coef, shift, scale), y)
    numbers = numbers_of(options)
    return objective(x, y, coef, kind.name, numbers, reduction, shift, scale)[0]


def _transformed() -> bool:
    """Whether torch.func is at work, to which operators cannot give their derivatives."""
    return torch._C._are_functorch_transforms_active()


def _forward_mode() -> bool:
    """Whether derivatives are pushed forward, which no function of ours can do more than once."""
    return forward_ad._current_level >= 0


def _plain() -> bool:
    """Whether torch's own operations must do: torch.compile cannot trace ours in torch.func."""
    return _forward_mode() or (is_compiling() and _transformed())


def _backend(x: Tensor, n_terms: int) -> Backend:
    found = backend_of(x.device, n_terms)
    if found is None:
        raise ValueError(f"x: no backend serves {x.device}; polyfuse.backends() says why")
    return found


def _as(x: Tensor, values: Any) -> Tensor:
    """What a backend computed, as a new tensor of x's dtype."""
    return torch.as_tensor(values, dtype=torch.float64, device=x.device).to(x.dtype, copy=True)


# -- operators: what runs, and the shapes of what comes out ----------------------------------------


@custom_op("polyfuse::evaluate", mutates_args=())
def _evaluate(x: Tensor, coef: Tensor, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    _check.operands(x, coef=coef)
    if not x.numel():
        return x.new_empty(x.shape)
    model = power_series(len(coef), shift, scale)
    return _backend(x, len(coef)).evaluate(model, _check.flat(coef), _check.flat(x)).view(x.shape)


@_evaluate.register_fake
def _(x: Tensor, coef: Tensor, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    _check.operands(x, coef=coef)
    return x.new_empty(x.shape)


@custom_op("polyfuse::project", mutates_args=())
def _project(x: Tensor, g: Tensor, terms: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    _check.operands(x, g=g)
    _check.n_terms("terms", terms)
    if not x.numel():
        return x.new_zeros(terms)
    model = power_series(terms, shift, scale)
    return _as(x, _backend(x, terms).project(model, _check.flat(x), _check.flat(g)))


@_project.register_fake
def _(x: Tensor, g: Tensor, terms: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    _check.operands(x, g=g)
    _check.n_terms("terms", terms)
    return x.new_empty(terms)


@custom_op("polyfuse::objective", mutates_args=())
def objective(
    x: Tensor, y: Tensor, coef: Tensor, criterion: str, options: Sequence[float],
    reduction: str, shift: float = 0.0, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss [] and its gradient [K]; criterion and options as `criteria.Kind` names and orders."""
    _check.operands(x, y=y, coef=coef)
    found, mean = of_numbers(criterion, options, reduction)
    if not x.numel():
        raise ValueError(f"x: expected at least one sample, got shape {tuple(x.shape)}")
    found.warn(mean)
    problem = Problem(
        power_series(len(coef), shift, scale), "mean" if mean else "sum", (None,) * len(coef),
        _check.flat(x), _check.flat(y), criterion=found.over_rows_of(x),
    )  # fmt: skip
    value, gradient = choose("auto", problem).loss_and_gradient(problem, _check.flat(coef))
    return _as(x, value), _as(x, gradient)


@objective.register_fake
def _(
    x: Tensor, y: Tensor, coef: Tensor, criterion: str, options: Sequence[float],
    reduction: str, shift: float = 0.0, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check.operands(x, y=y, coef=coef)
    of_numbers(criterion, options, reduction)
    return x.new_empty(()), x.new_empty(coef.shape)


# -- derivatives -----------------------------------------------------------------------------------


def _slope(x: Tensor, coef: Tensor, shift: float, scale: float) -> Tensor:
    """The derivative of `evaluate` by x."""
    terms = coef.shape[0]
    if terms == 1:
        return torch.zeros_like(x)
    degrees = torch.arange(1, terms, dtype=coef.dtype, device=coef.device)
    return evaluate(x, coef[1:] * degrees, shift, scale) * scale


def _horner(x: Tensor, coef: Tensor, shift: float, scale: float) -> Tensor:
    """`evaluate` in torch's own operations."""
    _check.operands(x, coef=coef)
    u = (x - shift) * scale
    value = coef[-1].expand(x.shape)
    for k in range(coef.shape[0] - 2, -1, -1):
        value = value * u + coef[k]
    return value.clone()


def _power_sums(x: Tensor, g: Tensor, terms: int, shift: float, scale: float) -> Tensor:
    """`project` in torch's own operations."""
    _check.operands(x, g=g)
    _check.n_terms("terms", terms)
    u = (x - shift) * scale
    sums = []
    for _ in range(terms):
        sums.append(g.sum())
        g = g * u
    return torch.stack(sums)


def _stacked(rule: Any) -> Any:
    """A rule of vmap: the batch one by one, since a kernel computes one polynomial."""

    def batched(info: Any, in_dims: Any, *args: Any) -> Any:
        dims = list(zip(args, in_dims, strict=True))
        rows = [
            rule(*(a.select(d, i) if isinstance(d, int) else a for a, d in dims))
            for i in range(info.batch_size)
        ]
        if isinstance(rows[0], tuple):
            return tuple(map(torch.stack, zip(*rows, strict=True))), (0,) * len(rows[0])
        return torch.stack(rows), 0

    return batched


def _elementwise(rule: Any) -> Any:
    """A rule of vmap: a batch of x is more samples, unless it has coefficients of its own."""

    def batched(info: Any, in_dims: Any, x: Tensor, coef: Tensor, *variable: float) -> Any:
        if in_dims[1] is None:
            return rule(x, coef, *variable), in_dims[0]
        return _stacked(rule)(info, in_dims, x, coef, *variable)

    return batched


class Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, coef: Tensor, shift: float, scale: float) -> Tensor:
        return _evaluate(x, coef, shift, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, coef, *ctx.variable = inputs
        ctx.save_for_backward(x, coef)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, coef = ctx.saved_tensors
        of_x, of_coef, *_ = ctx.needs_input_grad
        return (
            grad * _slope(x, coef, *ctx.variable) if of_x else None,
            project(x, grad, coef.shape[0], *ctx.variable) if of_coef else None,
            None,
            None,
        )

    vmap = staticmethod(_elementwise(evaluate))


class Project(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, g: Tensor, terms: int, shift: float, scale: float) -> Tensor:
        return _project(x, g, terms, shift, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, g, ctx.terms, *ctx.variable = inputs
        ctx.save_for_backward(x, g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, g = ctx.saved_tensors
        of_x, of_g, *_ = ctx.needs_input_grad
        return (
            g * _slope(x, grad, *ctx.variable) if of_x else None,
            evaluate(x, grad, *ctx.variable) if of_g else None,
            None,
            None,
            None,
        )

    vmap = staticmethod(_stacked(project))


for _operator, _function in ((_evaluate, Evaluate), (_project, Project)):
    _operator.register_autograd(_function.backward, setup_context=_function.setup_context)
_evaluate.register_vmap(_elementwise(_evaluate))
_project.register_vmap(_stacked(_project))


def _composed(
    criterion: Criterion, mean: bool, shift: float, scale: float, x: Tensor, y: Tensor, coef: Tensor
) -> tuple[Tensor, Tensor]:
    """What `objective` computes, of parts that have derivatives of every order."""
    y_pred = evaluate(x, coef, shift, scale)
    value, pull = vjp(lambda p: criterion.value(p, y, mean), y_pred)  # type: ignore[misc]
    (slope,) = pull(torch.ones_like(value))
    return value, project(x, slope, coef.shape[0], shift, scale)


def _save_objective(ctx: Any, inputs: Any, output: Any) -> None:
    x, y, coef, criterion, options, reduction, *variable = inputs
    ctx.compose = partial(_composed, *of_numbers(criterion, options, reduction), *variable)
    ctx.save_for_backward(x, y, coef, output[1])
    ctx.set_materialize_grads(False)


def _objective_backward(ctx: Any, grad: Tensor | None, grad_of_gradient: Tensor | None) -> Any:
    *inputs, gradient = ctx.saved_tensors
    wanted = [i for i in range(3) if ctx.needs_input_grad[i]]
    grads: list[Tensor | None] = [None] * 8
    if grad is None and grad_of_gradient is None:
        return tuple(grads)
    if grad_of_gradient is None and wanted == [2]:
        grads[2] = grad * gradient
        return tuple(grads)

    def of_wanted(*some: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(wanted, some, strict=True))
        return ctx.compose(*(given.get(i, inputs[i]) for i in range(3)))

    (value, found), pull = vjp(of_wanted, *(inputs[i] for i in wanted))  # type: ignore[misc]
    cotangents = (
        torch.zeros_like(value) if grad is None else grad,
        torch.zeros_like(found) if grad_of_gradient is None else grad_of_gradient,
    )
    for i, of_one in zip(wanted, pull(cotangents), strict=True):
        grads[i] = of_one
    return tuple(grads)


objective.register_autograd(_objective_backward, setup_context=_save_objective)
objective.register_vmap(_stacked(objective))
