"""Adam under a one-cycle schedule, which moves its betas too."""

import torch
import torch.nn as nn
import torch.optim as optim
from torch.optim.lr_scheduler import OneCycleLR

STEPS = 200
torch.manual_seed(0)
x = torch.linspace(-1, 1, 101)
y = torch.cos(2 * x + 1)


class Quartic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return sum(self.w[k] * x**k for k in range(5))


model = Quartic()
criterion = nn.MSELoss()
optimizer = optim.Adam(model.parameters(), lr=0.01)
scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
