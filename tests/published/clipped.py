"""Gradients clipped to a norm between backward and step."""

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)
x = torch.linspace(0, 9, 10)
y = 0.5 * x**2 - x + 1


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0]))
        self.b = nn.Parameter(torch.tensor([1.0]))
        self.c = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x):
        return self.a * x**2 + self.b * x + self.c


model = Quadratic()
criterion = nn.MSELoss()
optimizer = optim.SGD(model.parameters(), lr=1e-3)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
