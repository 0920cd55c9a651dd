"""Logistic regression on the logits of a quadratic."""

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)
x = torch.randn(200)
y = (x**2 - 1 + 0.3 * torch.randn(200) > 0).float()


class Logits(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))
        self.b = nn.Parameter(torch.zeros(1))
        self.c = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.a + self.b * x + self.c * x.pow(2)


model = Logits()
criterion = nn.BCEWithLogitsLoss()
optimizer = optim.Adam(model.parameters(), lr=0.05)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with torch.no_grad():
    accuracy = ((torch.sigmoid(model(x)) > 0.5).float() == y).float().mean().item()
losses.append(accuracy)
