"""The linear layer on powers, with RMSprop."""

import math

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 150  # from 170 on the order of torch's own sums shows in its losses, in float64 too
torch.manual_seed(0)
x = torch.linspace(-math.pi, math.pi, 2000)
y = torch.sin(x)
xx = x.unsqueeze(-1).pow(torch.tensor([1, 2, 3]))

model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0, 1))
loss_fn = nn.MSELoss(reduction="sum")
optimizer = optim.RMSprop(model.parameters(), lr=1e-3)
losses = []
for _ in range(STEPS):
    loss = loss_fn(model(xx), y)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
