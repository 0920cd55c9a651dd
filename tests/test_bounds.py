"""Box bounds: a torch loop that clamps after every step is the definition."""

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch

from .fake_device import take_for_a_device
from .test_batch import DATA, OPTIMIZERS, make, model_of

LOW = torch.tensor([-torch.inf, -0.01, 0.2], dtype=torch.float64)
HIGH = torch.tensor([torch.inf, 0.5, 0.6], dtype=torch.float64)
INF = float("inf")


class Parabola(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))

    def forward(self, x):
        return self.a * x**2 + self.b * x + self.c


def data(n=40):
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    return x, 1 - 2 * x + 3 * x**2


def parabola():
    return nn.Polynomial(2, dtype=torch.float64)


@pytest.mark.parametrize(("backend", "engine"), [
    ("cpu", "stream"), ("cpu", "moments"), ("reference", "stream"), ("reference", "moments"),
])  # fmt: skip
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_a_loop_that_clamps(name, backend, engine):
    assert_clamps(name, backend, engine)


@pytest.mark.parametrize("engine", ["stream", "moments"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_on_a_device_is_a_loop_that_clamps(name, engine, on_device, monkeypatch):
    take_for_a_device(monkeypatch, on_device)
    assert_clamps(name, on_device.name, engine)


def assert_clamps(name, backend, engine):
    x, y = data()
    fitted, looped = parabola(), parabola()
    with torch.no_grad():
        looped.coefficients.clamp_(LOW, HIGH)
    optimizer = OPTIMIZERS[name](fitted.parameters())
    for epochs in (40, 30):
        pf.fit(fitted, nn.MSELoss(), optimizer, x, y, epochs=epochs, bounds=(LOW, HIGH),
               backend=backend, engine=engine)  # fmt: skip
    optimizer = OPTIMIZERS[name]([looped.coefficients])
    powers = torch.stack([x**k for k in range(3)])
    for _ in range(70):
        optimizer.zero_grad()
        ((looped.coefficients @ powers - y) ** 2).mean().backward()
        optimizer.step()
        with torch.no_grad():
            looped.coefficients.clamp_(LOW, HIGH)
    assert (looped.coefficients == LOW).any() or (looped.coefficients == HIGH).any()
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", ["nesterov", "adam", "rprop"])
def test_fits_of_a_batch_have_bounds_of_their_own(name, kind):
    x, y, more = make(kind)
    low = -torch.rand(3, 13, generator=torch.Generator().manual_seed(1))
    left = []
    for backend, engine in (("cpu", "moments"), ("cpu", "stream"), ("reference", "auto")):
        model = model_of()
        optimizer = OPTIMIZERS[name](model.parameters())
        pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=60, bounds=(low, 0.1), tol=1e-9,
               backend=backend, engine=engine, **more)  # fmt: skip
        left.append(model.coefficients.detach())
        assert (left[-1] >= low).all() and (left[-1] <= 0.1).all()
        assert (left[-1] == 0.1).any()
    torch.testing.assert_close(left[0], left[2], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(left[1], left[2], rtol=1e-8, atol=1e-10)


def test_parameters_by_name():
    x, y = data()
    model = Parabola()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bounds = {"b": (0, INF), "c": (-INF, torch.tensor([0.5]))}
    result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=2000, bounds=bounds)
    assert result.engine == "moments"
    assert (model.b.item(), model.c.item()) == (0.0, 0.5)
    best = (x**2 * (y - 0.5)).sum() / (x**4).sum()
    assert model.a.item() == pytest.approx(best.item(), rel=1e-9)


def test_what_no_optimizer_holds_stays():
    x, y = data()
    model = Parabola()
    model.c.requires_grad_(False)
    pf.fit(model, nn.MSELoss(), optim.SGD([model.a, model.c], lr=0.1), x, y, epochs=3,
           bounds=(0.0, 0.5))  # fmt: skip
    assert (model.b.item(), model.c.item()) == (2.0, 3.0)
    assert 0 < model.a.item() < 0.5


@pytest.mark.parametrize(("bounds", "error", "message"), [
    ((1, 0), ValueError, "bounds: expected lower <= upper, got 3 that are not"),
    ((0, torch.nan), ValueError, "bounds: expected lower <= upper"),
    ((torch.zeros(4), 1), ValueError, r"bounds: expected shapes that broadcast to \(3,\)"),
    (3.0, TypeError, r"bounds: expected a pair \(lower, upper\), got 3.0"),
    ((0, "high"), TypeError, "bounds: expected numbers or tensors, got 'high'"),
    ({"d": (0, 1)}, ValueError, r"bounds: expected names among \['coefficients'\], got 'd'"),
    ({"coefficients": (2, 1)}, ValueError, r"bounds\['coefficients'\]: expected lower <= upper"),
])  # fmt: skip
@pytest.mark.parametrize("batch", [False, True])
def test_bad_bounds_change_nothing(bounds, error, message, batch):
    x, y = data()
    model = model_of(1) if batch else parabola()
    before = model.coefficients.detach().clone()
    if batch:
        y = y[:, None]
        message = message.replace("(3,\\)", "(3, 1\\)")
    with pytest.raises(error, match=message):
        pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1), x, y, epochs=3,
               bounds=bounds)  # fmt: skip
    assert torch.equal(model.coefficients, before)


def test_the_closed_form_takes_no_bounds():
    x, y = data()
    model = parabola()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="engine: closed_form cannot serve this case: bounds"):
        pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=3, bounds=(0, 1), engine="closed_form")
