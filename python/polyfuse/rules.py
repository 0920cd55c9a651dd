"""The update rules that the kernels know: options and state of each of torch's optimizers.

The arithmetic is in csrc/core/optimizer.h, which names the options in the order they have here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import optim

KEPT = 4  # numbers that a rule keeps of a parameter, at most


class SgdOptions(NamedTuple):
    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


class AdamOptions(NamedTuple):
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    decoupled_weight_decay: bool


class AsgdOptions(NamedTuple):
    lr: float
    lambd: float
    alpha: float
    t0: float
    weight_decay: float
    maximize: bool
    single: bool


class RpropOptions(NamedTuple):
    lr: float
    eta_minus: float
    eta_plus: float
    step_min: float
    step_max: float
    maximize: bool


class RmsPropOptions(NamedTuple):
    lr: float
    alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool
    maximize: bool


class AdagradOptions(NamedTuple):
    lr: float
    lr_decay: float
    weight_decay: float
    eps: float
    maximize: bool


class AdadeltaOptions(NamedTuple):
    lr: float
    rho: float
    eps: float
    weight_decay: float
    maximize: bool


class AdamaxOptions(NamedTuple):
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool


class NAdamOptions(NamedTuple):
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    momentum_decay: float
    maximize: bool
    decoupled_weight_decay: bool
    single: bool


class RAdamOptions(NamedTuple):
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool
    decoupled_weight_decay: bool


Options = (
    SgdOptions | AdamOptions | AsgdOptions | RpropOptions | RmsPropOptions | AdagradOptions
    | AdadeltaOptions | AdamaxOptions | NAdamOptions | RAdamOptions
)  # fmt: skip
Rule = tuple[Options | None, ...]  # per scalar parameter; None: no optimizer holds it

# Members of tuples in torch's groups.
_PART = {
    "beta1": ("betas", 0), "beta2": ("betas", 1), "eta_minus": ("etas", 0), "eta_plus": ("etas", 1),
    "step_min": ("step_sizes", 0), "step_max": ("step_sizes", 1),
}  # fmt: skip


class Kept(NamedTuple):
    """One number that a rule keeps of a parameter: its name in torch's state."""

    name: str
    scalar: bool = False  # one for all elements of a tensor, in a tensor of shape ()
    start: Callable[[Any], float] = lambda options: 0.0  # before the first step
    used: Callable[[Any], bool] = lambda options: True


STEP = Kept("step", scalar=True)


class Method(NamedTuple):
    number: int  # in csrc/core/problem.h
    optimizer: type[optim.Optimizer]
    kept: tuple[Kept, ...]


METHODS: dict[type, Method] = {
    SgdOptions: Method(1, optim.SGD, (Kept("momentum_buffer", used=lambda o: o.momentum != 0),)),
    AdamOptions: Method(
        2,
        optim.Adam,
        (
            STEP,
            Kept("exp_avg"),
            Kept("exp_avg_sq"),
            Kept("max_exp_avg_sq", used=lambda o: o.amsgrad),
        ),
    ),
    AsgdOptions: Method(
        3,
        optim.ASGD,
        (
            STEP,
            Kept("eta", True, lambda o: stored(o.lr, o.single)),
            Kept("mu", True, lambda o: 1.0),
            Kept("ax"),
        ),
    ),
    RpropOptions: Method(
        4, optim.Rprop, (STEP, Kept("prev"), Kept("step_size", start=lambda o: o.lr))
    ),
    RmsPropOptions: Method(
        5,
        optim.RMSprop,
        (
            STEP,
            Kept("square_avg"),
            Kept("momentum_buffer", used=lambda o: o.momentum > 0),
            Kept("grad_avg", used=lambda o: o.centered),
        ),
    ),
    AdagradOptions: Method(6, optim.Adagrad, (STEP, Kept("sum"))),
    AdadeltaOptions: Method(7, optim.Adadelta, (STEP, Kept("square_avg"), Kept("acc_delta"))),
    AdamaxOptions: Method(8, optim.Adamax, (STEP, Kept("exp_avg"), Kept("exp_inf"))),
    NAdamOptions: Method(
        9,
        optim.NAdam,
        (
            STEP,
            Kept("mu_product", True, lambda o: 1.0),
            Kept("exp_avg"),
            Kept("exp_avg_sq"),
        ),
    ),
    RAdamOptions: Method(10, optim.RAdam, (STEP, Kept("exp_avg"), Kept("exp_avg_sq"))),
}

OPTIONS_OF: dict[type, type] = {m.optimizer: options for options, m in METHODS.items()}
OPTIONS_OF[optim.AdamW] = AdamOptions


def stored(value: float, single: bool) -> float:
    """The number as torch keeps it, in a tensor of the default dtype."""
    return torch.tensor(value, dtype=torch.float32).item() if single else value


def torchs(optimizer: type) -> type | None:
    """The class of torch that an optimizer's class is, or is the fused version of."""
    return next((c for c in optimizer.__mro__ if c in OPTIONS_OF), None)


def options_of(optimizer: optim.Optimizer, group: dict[str, Any], p: torch.Tensor) -> Options:
    """The options of a parameter of this group."""
    torch_class: Any = torchs(type(optimizer))
    cls: Any = OPTIONS_OF[torch_class]
    values: list[float | bool] = []
    for name in cls._fields:
        if (value := _value(group, name)) is not None:
            values.append(value if type(value) is bool else float(value))
        elif name == "single":
            # Numbers that torch keeps in tensors: new ones, or those of a state that was loaded.
            scalar = next(k.name for k in METHODS[cls].kept if k.scalar and k is not STEP)
            held = optimizer.state.get(p, {}).get(scalar)
            new = held is None or cls is AsgdOptions  # ASGD makes new ones in every step
            dtype = torch.get_default_dtype() if new else held.dtype
            values.append(dtype != torch.float64)
        else:
            assert name == "decoupled_weight_decay", name
            values.append(torch_class is optim.AdamW)
    return cls(*values)


def _value(group: dict[str, Any], name: str) -> Any:
    key, i = _PART.get(name, (name, None))
    return group.get(name) if i is None else group[key][i]


def options_held(p: torch.Tensor, optimizer: optim.Optimizer) -> Options | None:
    """The options that an optimizer updates p with; None where it does not."""
    for group in optimizer.param_groups:
        if any(q is p for q in group["params"]):
            return options_of(optimizer, group, p) if p.requires_grad else None
    return None


def group_of(options: Options) -> dict[str, Any]:
    """The options as torch's parameter groups have them."""
    group: dict[str, Any] = {}
    for name, value in options._asdict().items():
        if name in _PART:
            key, i = _PART[name]
            group[key] = (*group.get(key, ())[:i], value)
        elif name != "single":
            group[name] = value
    return group


def options_in(
    optimizer: optim.Optimizer, group: dict[str, Any]
) -> Callable[[torch.Tensor], Options]:
    """`options_of` the group's parameters; most optimizers have the same for all of them."""
    torch_class: Any = torchs(type(optimizer))
    fields: Any = OPTIONS_OF[torch_class]
    if "single" in fields._fields or not group["params"]:
        return lambda p: options_of(optimizer, group, p)
    options = options_of(optimizer, group, group["params"][0])
    return lambda p: options


def refuse_group(optimizer: optim.Optimizer, group: dict[str, Any]) -> str | None:
    """None, or why torch's step with these options is not one that is compiled."""
    for name in ("differentiable", "capturable"):
        if group.get(name):
            return f"{name}=True is not fused"
    if group.get("foreach") and isinstance(optimizer, optim.ASGD):
        return "foreach=True computes in another way"
    torch_class: Any = torchs(type(optimizer))
    fields: Any = OPTIONS_OF[torch_class]
    for name in fields._fields:
        value = _value(group, name)
        number = isinstance(value, (int, float)) or (
            isinstance(value, torch.Tensor) and value.numel() == 1
        )
        if not number and name not in ("single", "decoupled_weight_decay"):
            return f"{name}: expected a number, got {value!r}"
    return None


@lru_cache(maxsize=256, typed=True)  # tuples of two classes may be equal
def row_of(options: Options) -> tuple[float, ...]:
    """What the kernels are told: the method's number, and the options."""
    return (METHODS[type(options)].number, *options)


def rows_of(rule: Rule) -> list[tuple[float, ...] | None]:
    return [o and row_of(o) for o in rule]


@lru_cache(maxsize=256, typed=True)  # tuples of two classes may be equal
def kept_of(options: Options) -> tuple[Kept | None, ...]:
    """The numbers that are kept with these options, None where one is not."""
    return tuple(k if k.used(options) else None for k in METHODS[type(options)].kept)


def scalar_place(
    optimizer: optim.Optimizer, p: torch.Tensor
) -> tuple[torch.dtype, torch.device]:  # fmt: skip
    """Where torch keeps the numbers that it keeps once for a tensor."""
    fused = any(g.get("fused") and any(q is p for q in g["params"]) for g in optimizer.param_groups)
    dtype = torch.float32 if fused else torch.get_default_dtype()
    near = fused or isinstance(optimizer, optim.ASGD)
    return dtype, p.device if near else torch.device("cpu")


def is_sgd(rule: Rule) -> bool:
    return all(o is None or isinstance(o, SgdOptions) for o in rule)
