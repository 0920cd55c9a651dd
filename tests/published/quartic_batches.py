"""Fourth-degree regression from random batches, with hand-written updates."""

import torch
import torch.nn as nn
import torch.nn.functional as F

STEPS = 300
torch.manual_seed(0)
W = torch.tensor([1.0, -2.0, 0.5, 0.25])


def features(x):
    return torch.cat([x.unsqueeze(1) ** i for i in range(1, 5)], 1)


def batch(size=32):
    x = torch.rand(size) * 2 - 1
    return features(x), features(x) @ W + 3.0


model = nn.Linear(4, 1)
losses = []
for _ in range(STEPS):
    x, y = batch()
    model.zero_grad()
    loss = F.smooth_l1_loss(model(x).squeeze(1), y)
    loss.backward()
    for p in model.parameters():
        p.data.add_(p.grad, alpha=-0.1)
    losses.append(loss.item())
