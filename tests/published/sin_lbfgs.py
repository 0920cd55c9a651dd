"""A third-degree polynomial to sin(x), with LBFGS and its closure."""

import math

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 20
torch.manual_seed(0)
x = torch.linspace(-math.pi, math.pi, 300, dtype=torch.float64)
y = torch.sin(x)


class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.c = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.d = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return self.a + self.b * x + self.c * x**2 + self.d * x**3


model = Cubic()
criterion = nn.MSELoss()
optimizer = optim.LBFGS(model.parameters(), lr=0.5)
losses = []


def closure():
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    return loss


for _ in range(STEPS):
    losses.append(optimizer.step(closure).item())
