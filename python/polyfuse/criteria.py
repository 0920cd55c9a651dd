"""The criteria that kernels know: torch's classes and functions, with the options they take."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _C

Options = tuple[tuple[str, Any], ...]  # numbers, bools, None; of class weights tuples


class Kind(NamedTuple):
    """One criterion: `options` are attributes of the module and arguments of the function."""

    tag: int  # CriterionKind in csrc/core/problem.h
    module: type[nn.Module]
    function: Callable[..., Tensor]
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.module.__name__

    def __reduce__(self) -> Any:
        return kind_of, (self.module,)


MSE = Kind(0, nn.MSELoss, F.mse_loss)
L1 = Kind(1, nn.L1Loss, F.l1_loss)
SMOOTH_L1 = Kind(2, nn.SmoothL1Loss, F.smooth_l1_loss, ("beta",))
HUBER = Kind(3, nn.HuberLoss, F.huber_loss, ("delta",))
SOFT_MARGIN = Kind(4, nn.SoftMarginLoss, F.soft_margin_loss)
BCE = Kind(
    5, nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, ("weight", "pos_weight")
)  # fmt: skip
POISSON = Kind(6, nn.PoissonNLLLoss, F.poisson_nll_loss, ("log_input", "full", "eps"))
KL_DIV = Kind(7, nn.KLDivLoss, F.kl_div, ("log_target",))
GAUSSIAN = Kind(8, nn.GaussianNLLLoss, F.gaussian_nll_loss, ("var", "full", "eps"))

CROSS_ENTROPY = Kind(
    9, nn.CrossEntropyLoss, F.cross_entropy, ("weight", "ignore_index", "label_smoothing")
)  # fmt: skip

# All but CROSS_ENTROPY, which is of several outputs.
KINDS = (MSE, L1, SMOOTH_L1, HUBER, SOFT_MARGIN, BCE, POISSON, KL_DIV, GAUSSIAN)
ELEMENTARY = (SOFT_MARGIN, BCE, POISSON, KL_DIV)  # of exp or log
BY_FUNCTION = {kind.function: kind for kind in (*KINDS, CROSS_ENTROPY)}
BY_NAME = {kind.name: kind for kind in KINDS}
BY_MODULE: dict[type, Kind] = {kind.module: kind for kind in (*KINDS, CROSS_ENTROPY)}
MAX_CLASSES = 512  # of those that have weights
WEIGHED = (MSE, L1, HUBER, BCE)  # whose functions take a weight for every sample
REDUCTIONS = ("mean", "sum", "batchmean")
_TENSORS = ("weight", "pos_weight")  # None or tensors
_FLAGS = ("full", "log_input", "log_target")


# The targets that a criterion is defined for.
_DOMAINS: dict[Kind, tuple[str, Callable[[Tensor], Tensor]]] = {
    SOFT_MARGIN: ("targets of 1 and -1", lambda y: y.abs() == 1),
    BCE: ("targets from 0 to 1", lambda y: (y >= 0) & (y <= 1)),
    POISSON: ("counts >= 0", lambda y: y >= 0),
    KL_DIV: ("probabilities >= 0", lambda y: y >= 0),
}


class Criterion(_C.Criterion):
    """A criterion with its options, which kernels are told; without its reduction.

    Args:
        factor: of the loss, besides that in the options.
        per_row: a mean is the sum over the number of rows, torch's ``batchmean``.
        samples: torch's weight where it has one for every sample, in the shape of x; of the
            training loop alone.
    """

    __slots__ = ("class_weight", "factor", "kind", "options", "samples", "told")

    def __init__(
        self, kind: Kind, options: Options = (), factor: float = 1.0, per_row: bool = False,
        samples: Tensor | None = None,
    ):  # fmt: skip
        told: dict[str, Any] = {k: v for k, v in options if v is not None}
        if "var" in told:  # clamped as torch does it
            told["variance"] = max(told.pop("var"), told.pop("eps"))
        if kind is CROSS_ENTROPY:
            told = {"ignore": told["ignore_index"], "smoothing": told["label_smoothing"]}
            if (weight := dict(options)["weight"]) is not None:
                self.class_weight = np.array(weight)  # kernels point to it
                told["class_weight"] = self.class_weight.ctypes.data
        told["weight"] = told.get("weight", 1.0) * factor
        super().__init__(kind.tag, per_row=per_row, **told)
        self.kind, self.options, self.factor = kind, options, factor
        self.told = told  # as _C.Criterion names them
        self.samples = samples

    def __reduce__(self) -> Any:
        return Criterion, (self.kind, self.options, self.factor, self.per_row, self.samples)

    @property
    def squared(self) -> bool:
        """Whether the loss is a function of the moments of the data."""
        return self.kind is MSE and self.samples is None

    def over_rows_of(self, x: Tensor) -> Criterion:
        """The same for a mean over all samples of x."""
        if not self.per_row:
            return self
        rows = x.shape[0] if x.ndim else 1
        return Criterion(self.kind, self.options, x.numel() / rows)

    def refuse_targets(self, y: Tensor, weight: Tensor | None = None) -> str | None:
        """None, or why these targets, of samples with these weights, are none of the criterion's.

        Those that are nan or infinite are not looked at.
        """
        if self.kind not in _DOMAINS or dict(self.options).get("log_target"):
            return None
        expected, holds = _DOMAINS[self.kind]
        bad = ~holds(y) & y.isfinite()
        if weight is not None:
            bad &= weight != 0
        if not bad.any():
            return None
        return f"expected {expected} for {self.kind.name}, got {y[bad][0].item():g}"

    def out_of_range(self, y: Tensor, n_classes: int) -> int | None:
        """The first of the classes y [N] that is none, nor ignored; of other targets None."""
        if y.is_floating_point():
            return None
        bad = ((y < 0) | (y >= n_classes)) & (y != dict(self.options)["ignore_index"])
        return int(y[bad][0]) if bad.any() else None

    def value(self, prediction: Tensor, target: Tensor, mean: bool) -> Tensor:
        """Torch's own loss; without the factor."""
        options = self._torchs_options(prediction)
        if self.kind is KL_DIV and mean and not self.per_row:  # torch warns of this reduction
            return self.values(prediction, target).mean()
        reduction = "batchmean" if self.per_row else "mean"
        return self.kind.function(
            prediction, target, reduction=reduction if mean else "sum", **options
        )

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Torch's own losses of every sample; without the factor."""
        options = self._torchs_options(prediction)
        return self.kind.function(prediction, target, reduction="none", **options)

    def _torchs_options(self, prediction: Tensor) -> dict[str, Any]:
        options: dict[str, Any] = dict(self.options)
        for name in _TENSORS:
            if options.get(name) is not None:
                options[name] = prediction.new_tensor(options[name])
        if self.samples is not None:
            options["weight"] = self.samples
        return options

    def warn(self, mean: bool) -> None:
        """What torch warns of at every call."""
        if self.kind is KL_DIV and mean and not self.per_row:
            F.kl_div(torch.zeros(0), torch.zeros(0), reduction="mean")


@lru_cache(maxsize=64)
def criterion_of(kind: Kind, options: Options = (), per_row: bool = False) -> Criterion:
    return Criterion(kind, options, per_row=per_row)


SQUARED = criterion_of(MSE)


def build(
    kind: Kind, options: Options, reduction: str, samples: Tensor | None = None
) -> tuple[Criterion, bool]:
    """The criterion, and whether its reduction is a mean."""
    if samples is not None:
        return Criterion(kind, options, samples=samples), reduction != "sum"
    return criterion_of(kind, options, reduction == "batchmean"), reduction != "sum"


def numbers_of(options: Options) -> list[float]:
    return [1.0 if value is None else float(value) for _, value in options]


def of_numbers(name: str, numbers: Sequence[float], reduction: str) -> tuple[Criterion, bool]:
    """`build` of a kind's name and of `numbers_of` its options."""
    kind = BY_NAME.get(name)
    if kind is None:
        raise ValueError(f"criterion: expected one of {', '.join(BY_NAME)}, got {name!r}")
    if len(numbers) != len(kind.options):
        expected = f"{', '.join(kind.options) or 'no numbers'} of {name}"
        raise ValueError(f"options: expected {expected}, got {len(numbers)} numbers")
    if reduction not in (known := REDUCTIONS[: 3 if kind is KL_DIV else 2]):
        raise ValueError(f"reduction: expected one of {', '.join(known)}, got {reduction!r}")
    options = [
        (option, bool(number) if option in _FLAGS else float(number))
        for option, number in zip(kind.options, numbers, strict=True)
    ]
    return build(kind, tuple(options), reduction)


def read(
    kind: Kind, values: dict[str, Any], reduction: Any, like: Tensor | None
) -> tuple[Kind, Options, str] | str:
    """What `build` takes for these options; or why they are not fused.

    Args:
        like: prediction or target, whose dtype the options that are tensors must have.
    """
    if reduction not in REDUCTIONS[: 3 if kind is KL_DIV else 2]:
        return f"reduction {reduction!r} gives no scalar loss; expected mean or sum"
    if kind is CROSS_ENTROPY:
        found = _classes(values["weight"], values["ignore_index"], values["label_smoothing"], like)
        return found if isinstance(found, str) else (kind, found, reduction)
    options: dict[str, float | bool | None] = {}
    for name in kind.options:
        value = values[name]
        if name in _FLAGS:
            if type(value) is not bool:
                return f"{name}: expected a bool, got {value!r}"
            options[name] = value
        elif isinstance(value, Tensor) and name not in ("beta", "delta", "eps"):
            if (reason := _refuse_tensor(value, like)) is not None:
                return f"{name}: {reason}"
            options[name] = value.item()
        elif type(value) in (int, float) and name not in _TENSORS:
            options[name] = float(value)
        elif value is None and name in _TENSORS:
            options[name] = None
        else:
            return f"{name}: expected a number, got {type(value).__name__}"
    if not options.get("beta", 0.0) >= 0 or not options.get("delta", 1.0) > 0:  # type: ignore[operator]
        return "beta, delta: expected a positive number"
    if kind is GAUSSIAN:
        of_rows = isinstance(values["var"], Tensor) and like is not None and like.ndim > 1
        if of_rows or type(values["var"]) is int:
            return "var: expected a float, or a tensor of one element for samples [N]"
        if not 0 <= options["var"] < math.inf:  # type: ignore[operator]
            return "var: expected a finite number >= 0"
    if kind is SMOOTH_L1 and options["beta"] == 0:
        kind, options = L1, {}
    return kind, tuple(options.items()), reduction


def _classes(weight: Any, ignore: Any, smoothing: Any, like: Any) -> Options | str:
    """The options of cross entropy; or why they are not fused."""
    if weight is not None:
        if type(weight) is not Tensor or weight.requires_grad or weight.device.type == "meta":
            return "weight: expected a plain tensor that needs no gradient"
        if like is not None and weight.device != like.device:
            return f"weight: expected the device {like.device}, got {weight.device}"
        if weight.ndim != 1 or not 0 < len(weight) <= MAX_CLASSES or not weight.is_contiguous():
            return f"weight: expected one of each class, got shape {tuple(weight.shape)}"
        if like is not None and weight.dtype != like.dtype:
            return f"weight: expected the dtype {like.dtype}, got {weight.dtype}"
        weight = tuple(weight.tolist())
    if type(ignore) is not int:
        return f"ignore_index: expected an int, got {ignore!r}"
    if type(smoothing) not in (int, float) or not 0 <= smoothing <= 1:
        return f"label_smoothing: expected a number from 0 to 1, got {smoothing!r}"
    return tuple(zip(CROSS_ENTROPY.options, (weight, ignore, float(smoothing)), strict=True))


def _refuse_tensor(value: Tensor, like: Tensor | None) -> str | None:
    if type(value) is not Tensor or value.requires_grad or value.device.type != "cpu":
        return "expected a plain tensor on the CPU that needs no gradient"
    if value.numel() != 1 or value.ndim > (1 if like is None else min(like.ndim, 1)):
        return f"expected one element, got shape {tuple(value.shape)}"
    if like is not None and value.dtype != like.dtype:
        return f"expected the dtype {like.dtype}, got {value.dtype}"
    return None


def of_module(module: Any, like: Tensor, *extra: Any) -> tuple[Criterion, bool] | str:
    """`build` of a module of torch.nn, called in the training loop with a prediction, a target and
    `extra`; or why it is not fused."""
    found = _values_of(module, *extra)
    return found if isinstance(found, str) else _in_loop(*found, like)


def options_of(
    module: Any, like: Tensor | None = None, *extra: Any
) -> tuple[Kind, Options, str] | str:
    """`read` of the same."""
    found = _values_of(module, *extra)
    if isinstance(found, str):
        return found
    kind, values = found
    return read(kind, values, values["reduction"], like)


def _values_of(module: Any, *extra: Any) -> tuple[Kind, dict[str, Any]] | str:
    kind = kind_of(type(module))
    assert kind is not None
    values = module.__dict__ | module._buffers
    if kind is GAUSSIAN:
        if len(extra) != 1:
            return (
                "its variance comes with every call; fit takes sigma=, and fuse of one power series"
            )
        values["var"] = extra[0]
    elif extra:
        return f"expected a prediction and a target, got {len(extra)} more"
    if any(name not in values for name in (*kind.options, "reduction")):
        return "its options are not attributes of its own"
    return kind, values


def _in_loop(kind: Kind, values: dict[str, Any], like: Tensor) -> tuple[Criterion, bool] | str:
    """`build` of these options, which may hold a weight for every sample."""
    weight = values.get("weight") if kind in WEIGHED else None
    of_all = kind is BCE and isinstance(weight, Tensor) and weight.numel() == 1
    if weight is None or of_all:
        found = read(kind, values, values["reduction"], like)
        return found if isinstance(found, str) else build(*found)
    if type(weight) is not Tensor or weight.requires_grad or weight.shape != like.shape:
        return f"weight: expected one of each sample, got {type(weight).__name__}"
    found = read(kind, values | {"weight": None}, values["reduction"], like)
    return found if isinstance(found, str) else build(*found, weight)


def kind_of(module: type) -> Kind | None:
    """That of torch's class which `module` is, or derives from."""
    return next((BY_MODULE[c] for c in module.__mro__ if c in BY_MODULE), None)


@cache
def _signature(function: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    parameters = inspect.signature(function).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    return tuple(parameters), defaults


def of_call(
    kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any, Criterion, bool] | None:
    """Prediction, target and what `build` gives for a call of torch's function; None: torch's."""
    names, defaults = _signature(kind.function)
    values = defaults | dict(zip(names, args, strict=False)) | kwargs
    if len(values) != len(names) or len(args) + len(kwargs) > len(names):
        return None  # arguments are missing, or are none of torch's
    if any(k in kwargs for k in names[: len(args)]):
        return None
    known = (*names[:2], *kind.options, "reduction", *(("weight",) if kind in WEIGHED else ()))
    if any(v is not None for k, v in values.items() if k not in known):
        return None
    like = values[names[0 if kind is CROSS_ENTROPY else 1]]  # targets may be classes
    found = _in_loop(kind, values, like)
    if isinstance(found, str):
        return None
    return values[names[0]], values[names[1]], *found
