"""The same training loop on both libraries: what the tests of the loop compare."""

from polyfuse import workload
from polyfuse.backends import REGISTRY

from .tolerance import assert_like_torch

LR = 1e-5


class Side:
    """One of the two libraries with its model, criterion, optimizer and data."""

    def __init__(self, nn, optim, dtype, **options):
        self.nn, self.optim = nn, optim
        self.xs, self.ys = workload.data(dtype)
        self.model = workload.make_model(nn, dtype)
        self.criterion = nn.MSELoss()
        self.optimizer = optim.SGD(self.model.parameters(), **({"lr": LR} | options))

    def numbers(self):
        out = [p.detach().clone() for p in self.model.parameters()]
        out += [p.grad for p in self.model.parameters() if p.grad is not None]
        for p in self.model.parameters():
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                out.append(buffer)
        return [t.reshape(-1)[0] for t in out]


def check(sides, script):
    """Runs script(side, epoch) -> values to compare, on both sides, for several epochs."""
    dtype = sides[0].xs.dtype
    for epoch in range(6):
        values = []
        for side in sides:
            extra = script(side, epoch)
            values.append([*side.numbers(), *(extra or [])])
        assert len(values[0]) == len(values[1])
        for found, truth in zip(*values, strict=True):
            assert_like_torch(found, truth, dtype)


def step(side, before_step=None):
    y_pred = side.model(side.xs)
    loss = side.criterion(y_pred, side.ys)
    side.optimizer.zero_grad()
    loss.backward()
    if before_step:
        before_step()
    side.optimizer.step()
    return loss


def retained(side):
    """A step whose graph stays."""
    y_pred = side.model(side.xs)
    loss = side.criterion(y_pred, side.ys)
    side.optimizer.zero_grad()
    loss.backward(retain_graph=True)
    side.optimizer.step()
    return y_pred, loss


def launches():
    return REGISTRY["cpu"].launches()
