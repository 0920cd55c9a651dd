"""The mean absolute error, written out."""

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)
x = torch.linspace(-1, 1, 60)
y = 1 + 2 * x + 0.1 * torch.randn(60)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))
        self.offset = nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return self.offset + self.slope * x


model = Line()
optimizer = optim.Adagrad(model.parameters(), lr=0.1)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = (model(x) - y).abs().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
