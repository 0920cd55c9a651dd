"""Every check of shape, dtype, device and value, and its message."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch

from .polynomials import MAX_DEGREE

# Where numpy has it: since 2.0, and before.
RankWarning: Any = getattr(np.exceptions, "RankWarning", None) or vars(np)["RankWarning"]
ENGINES = ("auto", "stream", "moments", "closed_form")
MAX_EPOCHS = 2**62
GONE = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: {} was changed after model(x) and before its result was looked at"
)
OR_ELSE = ", or nan_policy='omit' or 'propagate'"
NAN_POLICIES = ("raise", "omit", "propagate")


def data(x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y as tensors of one dtype, device and size, flattened to [N]."""
    alike(x, y=y)
    memory(x=x, y=y)
    if x.numel() == 0:
        raise ValueError(f"x: expected at least one sample, got shape {tuple(x.shape)}")
    if x.shape != y.shape:
        if x.numel() == y.numel() and {x.ndim, y.ndim} == {1, 2}:
            warn_broadcast(tuple(x.shape), tuple(y.shape), stacklevel=4)
        raise ValueError(f"y: expected the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    return flat(x), flat(y)


def memory(**values: Any) -> None:
    """Dense tensors whose memory the kernels can read."""
    for name, value in values.items():
        if not _has_memory(value):
            raise TypeError(
                f"{name}: expected a dense tensor with memory, got {type(value).__name__} "
                f"({value.layout}) on {value.device}"
            )


def columns(x: Any, y: Any, variables: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., variables] and y [...] as [N, variables] and [N], of one dtype and device."""
    alike(x, y=y)
    memory(x=x, y=y)
    if x.ndim == 0 or x.shape[-1] != variables:
        raise ValueError(f"x: expected shape (..., {variables}), got {tuple(x.shape)}")
    if y.shape != x.shape[:-1]:
        raise ValueError(f"y: expected shape {tuple(x.shape[:-1])}, got {tuple(y.shape)}")
    if y.numel() == 0:
        raise ValueError(f"y: expected at least one sample, got shape {tuple(y.shape)}")
    return x.detach().resolve_neg().reshape(-1, variables), flat(y)


def weight(
    x: torch.Tensor, sample_weight: Any, mask: Any, sigma: Any, name: str = "sample_weight"
) -> torch.Tensor | None:
    """The weights of the samples, [N] in the dtype of x; None where all count alike."""
    given = {name: sample_weight, "sigma": sigma, "mask": mask}
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        return None
    for key, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{key}: expected a torch.Tensor, got {type(value).__name__}")
        allowed = (torch.bool,) if key == "mask" else (torch.float32, torch.float64)
        if value.dtype not in allowed:
            kind = "bool" if key == "mask" else "float32 or float64"
            raise TypeError(f"{key}: expected dtype {kind}, got {value.dtype}")
        if value.shape != x.shape:
            raise ValueError(
                f"{key}: expected the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
            )
        if value.device != x.device:
            raise ValueError(f"{key}: expected the device of x, {x.device}, got {value.device}")
        if not _has_memory(value):
            raise TypeError(f"{key}: expected a dense tensor with memory, got {value.layout}")
    if not (sample_weight is None or ((sample_weight >= 0) & sample_weight.isfinite()).all()):
        raise ValueError(f"{name}: expected finite numbers >= 0")
    if not (sigma is None or ((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError("sigma: expected finite standard deviations > 0")
    weights = torch.ones(x.numel(), dtype=torch.float64, device=x.device)
    if sample_weight is not None:
        weights = flat(sample_weight)
    counted = weights > 0
    if sigma is not None:
        weights = weights * flat(sigma).double() ** -2
    if mask is not None:
        counted = counted & flat(mask)
    weights, names = torch.where(counted, weights, 0.0).to(x.dtype), ", ".join(given)
    if not counted.any():
        raise ValueError(f"{names}: expected a sample with weight, got none")
    normal = (weights >= torch.finfo(x.dtype).tiny) & weights.isfinite()
    if not (normal | ~counted).all():
        raise ValueError(f"{names}: the weights leave the range of {x.dtype}")
    return weights


def as_tensor(value: Any) -> Any:
    """A numpy array of numbers as a tensor, on its memory where torch can; else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "bf":
        return value
    if not (value.flags.writeable and value.dtype.isnative and min(value.strides, default=0) >= 0):
        value = value.astype(value.dtype.newbyteorder("="))
    return torch.from_numpy(value)


def alike(x: Any, **others: Any) -> None:
    """x a tensor of float32 or float64, and the others of its dtype and device."""
    for name, value in {"x": x, **others}.items():
        if not isinstance(value, torch.Tensor):
            of = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}{of}")
        if value.dtype is not torch.float32 and value.dtype is not torch.float64:
            raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
    for name, value in others.items():
        if x.dtype is not value.dtype:
            raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {value.dtype}")
        if x.device != value.device:
            raise ValueError(f"{name}: expected the device of x, {x.device}, got {value.device}")


def operands(x: torch.Tensor, **others: torch.Tensor) -> None:
    """`alike`, and with the layout and the shape that operators take: coef [K], any other as x."""
    alike(x, **others)
    for name, value in {"x": x, **others}.items():
        if value.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
        if name != "coef" and value.shape != x.shape:
            raise ValueError(
                f"{name}: expected the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
            )
    if "coef" in others:
        coef = others["coef"]
        if coef.ndim != 1:
            raise ValueError(f"coef: expected shape [K], got {tuple(coef.shape)}")
        n_terms("coef", coef.shape[0])


def n_terms(name: str, value: int) -> None:
    if not 1 <= value <= MAX_DEGREE + 1:
        raise ValueError(f"{name}: expected 1 to {MAX_DEGREE + 1} coefficients, got {value}")


def _has_memory(t: torch.Tensor) -> bool:
    try:
        return t.layout is torch.strided and (t.data_ptr() != 0 or t.numel() == 0)
    except RuntimeError:
        return False


def warn_broadcast(input_shape: Any, target_shape: Any, stacklevel: int) -> None:
    warnings.warn(
        f"Using a target size ({target_shape}) that is different to the input size "
        f"({input_shape}). This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size.",
        stacklevel=stacklevel,
    )


def flat(t: torch.Tensor) -> torch.Tensor:
    """[N] with one stride; a copy only where the memory has no single stride."""
    if t.requires_grad or t.is_neg():
        t = t.detach().resolve_neg()
    return t if t.ndim == 1 else t.reshape(-1)


def finite(bad: int, otherwise: str = "") -> None:
    """bad: samples with a nan or inf."""
    if bad:
        raise ValueError(
            f"x, y: {bad} sample{'s hold' if bad > 1 else ' holds'} nan or inf; "
            f"expected finite data{otherwise}"
        )


def warn_of_rank(rank: int, n_params: int, stacklevel: int = 3) -> None:
    if rank < n_params:
        warnings.warn(
            f"the data determine {rank} of {n_params} parameters; took those of minimum norm",
            RankWarning,
            stacklevel=stacklevel,
        )


def epochs(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"epochs: expected an int, got {value!r}")
    if value < 0:
        raise ValueError(f"epochs: expected a number >= 0, got {value}")
    if value > MAX_EPOCHS:
        raise ValueError(f"epochs: expected at most 2**62, got {value}")
    return value


def record_every(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"record_every: expected None or an int >= 1, got {value!r}")
    return value


def tolerance(value: Any) -> float:
    if value is None:
        return -math.inf
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"tol: expected None or a finite number >= 0, got {value!r}")
    return float(value)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value
