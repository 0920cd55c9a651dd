"""Training and validation data; stops when the latter gets no better, and takes the best back."""

import copy

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 400
torch.manual_seed(0)
x, x_val = torch.rand(40), torch.rand(40)
y, y_val = (torch.sin(3 * t) + 0.05 * torch.randn(40) for t in (x, x_val))


class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.w[0] + self.w[1] * x + self.w[2] * x**2 + self.w[3] * x**3


model = Cubic()
criterion = nn.MSELoss()
optimizer = optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
best, state, patience, losses = float("inf"), None, 0, []
for _ in range(STEPS):
    model.train()
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        value = criterion(model(x_val), y_val).item()
    losses.append(value)
    if value < best - 1e-5:
        best, state, patience = value, copy.deepcopy(model.state_dict()), 0
    else:
        patience += 1
        if patience == 20:
            break
model.load_state_dict(state)
