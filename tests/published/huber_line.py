"""A line through data with outliers, by Huber's criterion."""

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)
x = torch.linspace(0, 1, 100)
y = 3 * x - 1 + 0.05 * torch.randn(100)
y[::10] += 5


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.slope * x + self.offset


model = Line()
criterion = nn.HuberLoss(delta=0.3)
optimizer = optim.SGD(model.parameters(), lr=0.5)
losses = []
for _ in range(STEPS):
    loss = criterion(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
