"""The workload that polyfuse started from: nine points, a quadratic, 100,000 steps of SGD."""

from __future__ import annotations

from typing import Any

import torch

EPOCHS = 100_000
LR = 1e-4


def data(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    xs = torch.tensor([1.00, 2.00, 3.00, 4.00, 5.00, 6.00, 7.00, 8.00, 9.00], dtype=dtype)
    ys = torch.tensor([9.15, 5.64, -0.21, -2.36, -0.91, -0.67, 2.65, 10.36, 17.13], dtype=dtype)
    return xs, ys


def make_model(nn: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The user's model, on torch.nn or on polyfuse.nn."""

    class MyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.0], dtype=dtype))
            self.b = nn.Parameter(torch.tensor([2.0], dtype=dtype))
            self.c = nn.Parameter(torch.tensor([3.0], dtype=dtype))

        def forward(self, x: Any) -> Any:
            y = self.a * (x**2)
            y += self.b * (x**1)
            y += self.c
            return y

    return MyModel()


def loop(model: Any, criterion: Any, optimizer: Any, xs: Any, ys: Any, epochs: int) -> Any:
    """The training loop as people write it; returns the last loss."""
    loss = None
    for _ in range(epochs):
        y_pred = model(xs)
        loss = criterion(y_pred, ys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss
