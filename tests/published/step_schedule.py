"""SGD whose learning rate falls in steps, with weight decay."""

import torch
import torch.nn as nn
import torch.optim as optim

STEPS = 300
torch.manual_seed(0)
x = torch.linspace(-1, 1, 101)
y = torch.exp(x)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.w[0] + self.w[1] * x + self.w[2] * x**2


model = Quadratic()
criterion = nn.MSELoss()
optimizer = optim.SGD(model.parameters(), lr=0.3, weight_decay=1e-4)
scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.1)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
