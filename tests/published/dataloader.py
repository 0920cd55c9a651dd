"""Mini-batches from a DataLoader, several epochs."""

import torch
import torch.nn as nn
import torch.optim as optim
from torch.utils.data import DataLoader, TensorDataset

STEPS = 160
torch.manual_seed(0)
x = torch.rand(256)
y = 2 + x - 3 * x**2 + 0.01 * torch.randn(256)
loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(1))
        self.b = nn.Parameter(torch.randn(1))
        self.c = nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.a + self.b * x + self.c * x * x


model = Quadratic()
criterion = nn.MSELoss()
optimizer = optim.AdamW(model.parameters(), lr=0.05)
losses = []
for _ in range(STEPS // 8):
    total = 0.0
    for xb, yb in loader:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(xb)
    losses.append(total / 256)
