"""pf.fit against loops of plain PyTorch in float64."""

import numpy as np
import polyfuse as pf
import pytest
import torch

XS = torch.arange(1.0, 10.0, dtype=torch.float64)
YS = torch.tensor([9.15, 5.64, -0.21, -2.36, -0.91, -0.67, 2.65, 10.36, 17.13]).double()


class MyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.c = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))

    def forward(self, x):
        y = self.a * (x**2)
        y += self.b * (x**1)
        y += self.c
        return y


@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
def test_the_workload_reaches_the_exact_parameters(engine):
    model = MyModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    result = pf.fit(model, torch.nn.MSELoss(), optimizer, XS, YS, epochs=100_000, engine=engine)
    exact = [0.77334418, -6.59796653, 12.73228830]
    found = [p.item() for p in model.parameters()]
    np.testing.assert_allclose(found, exact, rtol=1e-8)
    assert result.engine == engine and result.launches == 1 and result.epochs == 100_000
