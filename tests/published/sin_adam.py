"""A third-degree polynomial to sin(x) in Horner's form, with Adam."""

import math

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)
x = torch.linspace(-math.pi, math.pi, 500)
y = torch.sin(x)


class Horner(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))

    def forward(self, x):
        out = self.w[3]
        for k in (2, 1, 0):
            out = out * x + self.w[k]
        return out


model = Horner()
criterion = nn.MSELoss()
optimizer = optim.Adam(model.parameters(), lr=0.02)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
