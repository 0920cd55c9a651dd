"""A cubic from a new random batch in every step."""

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)


class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.c[0] + self.c[1] * x + self.c[2] * x**2 + self.c[3] * x**3


model = Cubic()
criterion = nn.SmoothL1Loss()
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
losses = []
for _ in range(STEPS):
    x = torch.rand(64) * 2 - 1
    y = 1 - x + 2 * x**3
    loss = criterion(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
