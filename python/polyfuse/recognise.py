"""Which criteria and optimizers the kernels know; each answer is None, or the reason why not."""

from __future__ import annotations

from typing import Any

import torch

from .criteria import (
    BY_MODULE,
    CROSS_ENTROPY,
    KINDS,
    Criterion,
    Kind,
    Options,
    build,
    kind_of,
    options_of,
)  # fmt: skip
from .nn.criterion import CRITERIA, is_torchs
from .nn.polynomial import Polynomial
from .optim.classes import FUSED
from .optim.owners import GLOBAL_HOOKS
from .rules import OPTIONS_OF, refuse_group
from .symbolic import Traced
from .watching import has_hooks

BOUNDED = ("chebyshev", "legendre")  # bases, within their window
_CRITERIA = frozenset(c for c in (*CRITERIA, *BY_MODULE) if kind_of(c) is not CROSS_ENTROPY)


def refuse_optimizer(optimizer: Any) -> str | None:
    """None, or why this optimizer's step is not one that is compiled."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
    if not (type(optimizer) in OPTIONS_OF or type(optimizer) in FUSED):
        names = ", ".join(c.__name__ for c in FUSED)
        return f"{type(optimizer).__name__} has no compiled update rule; fused: {names}"
    for group in optimizer.param_groups:
        if reason := refuse_group(optimizer, group):
            return reason
    if any(
        (*GLOBAL_HOOKS, optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    ):
        return "the optimizer has step hooks, which a fused run would pass over"
    return None


def read_criterion(
    criterion: Any, like: torch.Tensor | None = None, *extra: Any
) -> tuple[Criterion, bool] | str:
    """What this criterion, of targets like `like`, is, and whether its reduction is a mean; or why
    it is not one that is compiled. extra: what a call takes besides a prediction and a target."""
    found = read_options(criterion, like, *extra)
    return found if isinstance(found, str) else build(*found)


def read_objects(
    criterion: Any, optimizer: Any, like: torch.Tensor, *extra: Any
) -> tuple[Criterion, bool]:
    """What `read_criterion` gives; raises where criterion or optimizer is not compiled."""
    read = read_criterion(criterion, like, *extra)
    if isinstance(read, str):
        raise ValueError(f"criterion: {read}")
    if reason := refuse_optimizer(optimizer):
        raise ValueError(f"optimizer: {reason}")
    return read


def read_options(
    criterion: Any, like: torch.Tensor | None = None, *extra: Any
) -> tuple[Kind, Options, str] | str:
    """The same as what `build` makes it of."""
    if not isinstance(criterion, torch.nn.Module):
        return f"expected a criterion module such as nn.MSELoss(), got {type(criterion).__name__}"
    name = type(criterion).__name__
    if type(criterion) not in _CRITERIA:
        return f"{name} is not fused; fused: {', '.join(kind.name for kind in KINDS)}"
    if not is_torchs(criterion):
        return f"{name} has hooks or a forward of its own"
    return options_of(criterion, like, *extra)


def refuse_criterion(criterion: Any) -> str | None:
    """None, or why this criterion is not one that is compiled."""
    found = read_criterion(criterion)
    return found if isinstance(found, str) else None


def refuse_own(model: Polynomial) -> str | None:
    """None, or why the kernels would not do what calling this model does."""
    if has_hooks(model):
        return f"{type(model).__name__} has hooks"
    if type(model).forward is not Polynomial.forward:
        return f"{type(model).__name__} has a forward of its own"
    if "coefficients" not in model._parameters:
        return "its coefficients are no parameter of its own (parametrized?)"
    return refuse_parameters([model.coefficients])


def check_domain(model: Any, x: Any, weights: Any) -> None:
    """Raises where samples that count lie outside the domain that a model in a bounded basis has:
    its columns grow without bound there."""
    if not isinstance(model, Polynomial) or model.domain is None or model.basis not in BOUNDED:
        return
    if not isinstance(x, torch.Tensor) or x.layout is not torch.strided or x.is_complex():
        return  # which others find out
    columns = x.unbind(-1) if model.variables > 1 and x.ndim else (x,)
    if len(columns) != model.variables:
        return
    for column, domain in zip(columns, model.domain, strict=True):
        _check_within(column, domain, weights)


def _check_within(x: torch.Tensor, domain: tuple[float, float], weights: Any) -> None:
    low, high = domain
    slack = 4 * torch.finfo(x.dtype).eps * max(abs(low), abs(high))
    bad = ((x < low - slack) | (x > high + slack)) & x.isfinite()
    for w in weights:
        if isinstance(w, torch.Tensor) and w.shape[: x.ndim] == x.shape:
            bad &= (w != 0).reshape(*x.shape, -1).any(-1)
        elif isinstance(w, torch.Tensor) and w.shape == x.shape[:1]:
            bad &= (w != 0).reshape(-1, *(1 for _ in x.shape[1:]))
    if bad.any():
        raise ValueError(
            f"x: expected values within the domain of the model, ({low:g}, {high:g}), got "
            f"{x[bad][0].item():g}"
        )


def refuse_parameters(tensors: Any) -> str | None:
    """None, or why a run over these parameters is not what a loop would do."""
    if any(t._backward_hooks or t._post_accumulate_grad_hooks for t in tensors):
        return "its parameters have gradient hooks, which a fused run would pass over"
    return None


def refuse_shape(traced: Traced, x: torch.Tensor) -> str | None:
    """None, or why the model's output has not the shape of x."""
    if traced.ndim > x.ndim:
        return (
            f"its parameters have {traced.ndim} dimensions, x has {x.ndim}; "
            "the output would not have the shape of x"
        )
    return None
