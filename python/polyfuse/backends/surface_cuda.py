"""Models of several variables as the CUDA kernels of csrc/cuda/surface.cu are told of them."""

from __future__ import annotations

from typing import Any

import torch

from ..stacked import Stacked
from ..symbolic import Traced
from .device import DeviceMap
from .factors import Terms, terms_of

MAX_TERMS = 64  # as csrc/cuda/surface.h has it


def sizes_of(model: Traced, device: torch.device) -> tuple[int, int]:
    """The terms, and a constant where it is none of them; the outputs."""
    outputs = model.outputs if isinstance(model, Stacked) else 1
    return _terms(model, device).variable.shape[1], outputs


def of_surface(module: Any, run: Any, model: Traced, x: torch.Tensor) -> Any:
    """A launch with its model's terms; x: [N, V]."""
    variable, frame, one = _terms(model, x.device)
    return module.SurfaceRun(
        run, x.shape[1], x.stride(1), variable.data_ptr(), frame.data_ptr(), *variable.shape, one
    )


def moments_size(module: Any, model: Traced, device: torch.device) -> tuple[int, slice]:
    """Numbers of the moments, and where among them sum w r^2 of every output is."""
    columns, outputs = sizes_of(model, device)
    width = module.surface_width(columns, outputs)
    first, step = columns * (width + 1), width + 1
    return width * width + model.n_terms * outputs, slice(first, first + outputs * step, step)


def workspace_bytes(
    module: Any, grid: Any, model: Traced, map: DeviceMap, device: torch.device
) -> int:
    size: int = module.surface_workspace_bytes(grid, *sizes_of(model, device), map.n_params)
    return size


def _terms(model: Traced, device: torch.device) -> Terms:
    return terms_of(model.exponents, model.variables, device)
