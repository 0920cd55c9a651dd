"""What an optimizer keeps of one parameter tensor, as the kernels have it and as torch has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..rules import KEPT, METHODS, Options, SgdOptions, kept_of, scalar_place


def read_kept(options: Options, there: dict[str, Any], n: int) -> np.ndarray:
    """Torch's state of a tensor of n elements, or its start -> float64 [KEPT, n]."""
    values = np.zeros((KEPT, n))
    if isinstance(options, SgdOptions):
        if (buffer := there.get("momentum_buffer")) is not None:
            values[0] = buffer.detach().double().cpu().reshape(-1).numpy()
            values[1] = 1.0
        return values
    for row, kept in enumerate(METHODS[type(options)].kept):
        value = there.get(kept.name)
        values[row] = (
            kept.start(options)
            if value is None
            else value.detach().double().cpu().reshape(-1).numpy()
        )
    return values


def write_kept(
    options: Options, optimizer: torch.optim.Optimizer, tensor: torch.Tensor, values: np.ndarray
) -> None:
    """The same, back: into tensors that are there, or new ones."""
    state = optimizer.state[tensor]
    for row, kept in enumerate(kept_of(options)):
        if kept is None:
            continue
        new = torch.from_numpy(values[row])
        there = state.get(kept.name)
        if there is None and kept.scalar:
            dtype, device = scalar_place(optimizer, tensor)
            state[kept.name] = new[0].to(device, dtype)
        elif there is None:
            with np.errstate(over="ignore"):
                state[kept.name] = new.to(tensor.dtype).to(tensor.device).view(tensor.shape)
        else:
            there.copy_(new[0] if kept.scalar else new.view(there.shape))
