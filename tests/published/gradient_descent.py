"""A quadratic by gradient descent written out by hand."""

import torch
import torch.nn as nn

STEPS = 300
torch.manual_seed(0)
x = torch.linspace(-2, 2, 50)
y = 1.5 * x**2 - 0.5 * x + 2 + 0.1 * torch.randn(50)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.w[0] + self.w[1] * x + self.w[2] * x**2


model = Quadratic()
losses = []
for _ in range(STEPS):
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.05 * p.grad
            p.grad = None
    losses.append(loss.item())
