"""`solve`: the optimum, what it does to the model, and what it refuses."""

from fractions import Fraction

import numpy as np
import polyfuse as pf
import pytest
import torch
from numpy.exceptions import RankWarning

from .tolerance import assert_close, assert_relative

SIZES = [3, 4, 129, 1003, 70_001]


def exact(x, y, w, degree):
    """The optimum in rational arithmetic."""
    x, y, w = ([Fraction(float(v)) for v in values] for values in (x, y, w))
    k = degree + 1
    power = [sum(a * u**p for a, u in zip(w, x, strict=True)) for p in range(2 * k - 1)]
    rows = [
        [power[i + j] for j in range(k)]
        + [sum(a * u**i * v for a, u, v in zip(w, x, y, strict=True))]
        for i in range(k)
    ]
    for i in range(k):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(k):
            if j != i:
                rows[j] = [b - rows[j][i] * a for a, b in zip(rows[i], rows[j], strict=True)]
    return [float(row[-1]) for row in rows]


def data(n, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=g, dtype=torch.float64) * 4 - 1
    y = 1 - 2 * x + 0.5 * x**2 + torch.randn(n, generator=g, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("n", [3, 4, 129, 1003])
@pytest.mark.parametrize("precision", ["double", "extended"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_rational_arithmetic(n, precision, weighted):
    x, y = data(n)
    w = torch.linspace(0.5, 2, n, dtype=torch.float64)
    model = pf.nn.Polynomial(2, dtype=torch.float64)
    found = pf.solve(model, x, y, weight=w if weighted else None, precision=precision)
    truth = exact(x, y, w if weighted else torch.ones(n), 2)
    assert_relative(found.params, truth, 1e-15 if precision == "extended" else 1e-10)
    assert model.coefficients.tolist() == found.params.tolist()
    assert (found.rank, found.precision, found.backend) == (3, precision, "cpu")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backends_reach_the_optimum(n, backend, dtype):
    x, y = data(n, dtype=dtype)
    model = pf.nn.Polynomial(2, dtype=dtype)
    found = pf.solve(model, x, y, backend=backend)
    truth = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x.double(), y.double())
    assert_relative(found.params, truth.params, 1e-10)
    assert found.backend == backend
    assert_close(model.coefficients.detach(), torch.tensor(truth.params).to(dtype), truth.params, 1)


def test_sums_of_a_device(emulated):
    x, y = data(1003)
    found = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, y, backend="emulated")
    truth = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, y)
    assert_relative(found.params, truth.params, 1e-10)
    assert_relative(found.statistics.r_squared, truth.statistics.r_squared, 1e-10)
    with pytest.warns(RuntimeWarning, match="ill conditioned"):
        pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x + 1e4, y, backend="emulated")


ILL = {
    "degree 20": (np.arange(64) / 64, 20),
    "degree 32": (np.arange(-34, 35) / 32, 32),
    "seconds since 1970": (1.7e9 + np.arange(50.0) ** 1.5, 3),
    "years": (2000 + np.arange(25.0), 6),
    "eight decades": (10.0 ** np.linspace(-8, 8, 50), 3),
    "two clusters": (np.r_[np.linspace(0, 1e-9, 20), np.linspace(1, 1 + 1e-9, 20)], 3),
}


@pytest.mark.parametrize("name", ILL)
def test_ill_conditioned(name):
    x, degree = ILL[name]
    y = np.round(64 * np.cos(np.arange(len(x)) ** 2))
    model = pf.nn.Polynomial(degree, dtype=torch.float64)
    found = pf.solve(model, torch.tensor(x), torch.tensor(y))
    assert found.rank == degree + 1
    assert_relative(found.params, exact(x, y, np.ones(len(x)), degree), 1e-14)


def test_strides_and_slices():
    x, y = data(2006)
    model, twin = (pf.nn.Polynomial(2, dtype=torch.float64) for _ in range(2))
    found = pf.solve(model, x[::2], y[::2])
    same = pf.solve(twin, x[::2].clone(), y[::2].clone())
    assert found.params.tolist() == same.params.tolist()
    assert pf.solve(model, x.view(2, -1), y.view(2, -1)).rank == 3


def test_threads_give_the_same_bits(threads):
    x, y = data(200_000)
    results = []
    for n in (1, 2, 3):
        threads(n)
        for precision in ("double", "extended"):
            model = pf.nn.Polynomial(4, dtype=torch.float64)
            results.append((precision, *pf.solve(model, x, y, precision=precision).params))
    assert len(set(results)) == 2


class Shared(torch.nn.Module):
    """2 + a (x - 3)^2 + b (1 + x): affine in two parameters, of three coefficients."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return 2 + self.a * (x - 3) ** 2 + self.b * (1 + x)


def test_affine_models():
    x, y = data(129)
    model = Shared()
    found = pf.solve(model, x, y)
    design = torch.stack([(x - 3) ** 2, 1 + x], 1).numpy()
    truth = np.linalg.lstsq(design, y.numpy() - 2, rcond=None)[0]
    names = dict(zip(found.statistics.names, found.params, strict=True))
    assert_relative([names["a"], names["b"]], truth, 1e-12)


def test_frozen_parameters_stay():
    x, y = data(129)
    model = Shared()
    with torch.no_grad():
        model.b.fill_(0.25)
    model.b.requires_grad_(False)
    version = model.a._version
    found = pf.solve(model, x, y)
    truth = np.linalg.lstsq(
        ((x - 3) ** 2).numpy()[:, None], (y - 2 - 0.25 * (1 + x)).numpy(), rcond=None
    )[0]
    assert model.b.item() == 0.25
    assert_relative(model.a.item(), truth[0], 1e-12)
    errors = dict(zip(found.statistics.names, found.statistics.standard_errors, strict=True))
    assert errors["b"] == 0 and errors["a"] > 0
    assert model.a._version > version


def test_ridge():
    x, y = data(129)
    design = np.vander(x.numpy(), 3, increasing=True)
    found = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, y, ridge=3.5)
    truth = np.linalg.solve(design.T @ design + 3.5 * np.eye(3), design.T @ y.numpy())
    assert_relative(found.params, truth, 1e-12)
    hat = design @ np.linalg.solve(design.T @ design + 3.5 * np.eye(3), design.T)
    assert_relative(found.statistics.df, 129 - np.trace(hat), 1e-12)
    assert_relative(found.statistics.leverage, np.diag(hat), 1e-10)


def test_ridge_of_what_the_data_leave_open():
    x, y = torch.ones(5, dtype=torch.float64), torch.full((5,), 3.0, dtype=torch.float64)
    found = pf.solve(pf.nn.Polynomial(1, dtype=torch.float64), x, y, ridge=1.0)
    assert_relative(found.params, [15 / 11, 15 / 11], 1e-14)


def test_storage_is_kept_and_versions_move():
    x, y = data(9, dtype=torch.float32)
    model = pf.nn.Polynomial(2)
    address, version = model.coefficients.data_ptr(), model.coefficients._version
    view = model.coefficients.detach()
    found = pf.solve(model, x, y)
    assert model.coefficients.data_ptr() == address and model.coefficients._version > version
    assert view.tolist() == found.params.astype(np.float32).tolist()


def test_fit_goes_on_from_there():
    x, y = data(129)
    model = pf.nn.Polynomial(2, dtype=torch.float64)
    pf.solve(model, x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.coefficients.detach().clone()
    pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=1000)
    assert_relative(model.coefficients.detach(), before, 1e-12)


@pytest.mark.parametrize("x", [[1.0, 2.0], [3.0] * 5, [0.0] * 4, [1.0, 2.0, 1.0, 2.0]])
def test_rank_deficiency_is_numpys(x):
    x = np.array(x)
    y = 1 + x**2 + np.arange(len(x))
    model = pf.nn.Polynomial(3, dtype=torch.float64)
    with pytest.warns(RankWarning, match="determine"):
        found = pf.solve(model, torch.tensor(x), torch.tensor(y))
    scale = np.linalg.norm(np.vander(x, 4, increasing=True), axis=0)
    scale[scale == 0] = 1
    design = np.vander(x, 4, increasing=True) / scale
    truth, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    np.testing.assert_allclose(found.params, truth / scale, rtol=1e-12, atol=1e-14)
    assert found.rank == rank == len(set(x.tolist()))
    s = found.statistics
    assert np.isnan(s.covariance).all() and f"determine {rank} of 4" in s.reason


def test_parameters_that_do_the_same():
    class Twice(Shared):
        def forward(self, x):
            return (self.a + self.b) * x

    x, y = data(9)
    model = Twice()
    with pytest.warns(RankWarning):
        found = pf.solve(model, x, y)
    assert found.rank == 1
    slope = float((x * y).sum() / (x * x).sum())
    assert_relative(found.params, [slope / 2, slope / 2], 1e-14)


def test_as_many_samples_as_parameters():
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    s = pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), x, x**2).statistics
    assert np.isinf(s.covariance).all() and "no residual" in s.reason


def test_auto_precision():
    x, y = data(1_000_000)
    for offset, expected in ((0.0, "double"), (1e4, "extended")):
        model = pf.nn.Polynomial(2, dtype=torch.float64)
        assert pf.solve(model, x + offset, y).precision == expected
    assert pf.solve(model, x[:-1], y[:-1]).precision == "extended"


class Product(Shared):
    def forward(self, x):
        return self.a * (self.b + x)


class Sine(Shared):
    def forward(self, x):
        return self.a * torch.sin(x) + self.b


x9, y9 = data(9)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"model": Product()}, ValueError, "model: .*products of parameters"),
        ({"model": Sine()}, ValueError, "model: Sine is not solved for: "),
        ({"model": "line"}, TypeError, "model: .*got str"),
        ({"model": Shared().requires_grad_(False)}, ValueError, "model: .*trainable"),
        ({"x": [1.0]}, TypeError, "x: "),
        ({"y": y9[:4]}, ValueError, "y: "),
        ({"y": torch.full_like(y9, torch.nan)}, ValueError, "9 samples hold nan"),
        ({"x": torch.full_like(x9, 1e300), "y": y9 * 1e300}, ValueError, "overflow"),
        ({"weight": -torch.ones_like(x9)}, ValueError, "^weight: "),
        ({"weight": torch.ones(3, dtype=torch.float64)}, ValueError, "^weight: "),
        ({"sigma": torch.zeros_like(x9)}, ValueError, "^sigma: "),
        ({"ridge": -1.0}, ValueError, "ridge: .*-1"),
        ({"ridge": True}, ValueError, "ridge: .*True"),
        ({"precision": "quad"}, ValueError, "precision: .*quad"),
        ({"backend": "tpu"}, ValueError, "backend: .*tpu"),
        ({"precision": "extended", "backend": "reference"}, ValueError, "precision: .*reference"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"model": pf.nn.Polynomial(2, dtype=torch.float64), "x": x9, "y": y9} | change
    model = arguments["model"]
    before = [p.clone() for p in model.parameters()] if isinstance(model, torch.nn.Module) else []
    with pytest.raises(error, match=message):
        pf.solve(**arguments)
    for p, old in zip(model.parameters() if before else [], before, strict=True):
        assert torch.equal(p, old)


def test_numpy_arrays():
    x, y = data(9)
    w = torch.linspace(1, 2, 9, dtype=torch.float64)
    models = [pf.nn.Polynomial(2, dtype=torch.float64) for _ in range(2)]
    for model, (a, b, c) in zip(
        models, ((x, y, w), (x.numpy(), y.numpy(), w.numpy())), strict=True
    ):
        pf.solve(model, a, b, weight=c)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        pf.fit(model, torch.nn.MSELoss(), optimizer, a, b, epochs=3, sample_weight=c)
    assert torch.equal(models[0].coefficients, models[1].coefficients)
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got ndarray of int64"):
        pf.solve(models[0], np.arange(9), y)


def test_samples_of_weight_0_are_left_out():
    x, y = data(20)
    w = torch.ones_like(x)
    w[5:] = 0
    dirty = y.clone()
    dirty[7] = torch.nan
    found, plain = (
        pf.solve(pf.nn.Polynomial(2, dtype=torch.float64), a, b, weight=c)
        for a, b, c in ((x, dirty, w), (x[:5], y[:5], None))
    )
    assert_relative(found.params, plain.params, 1e-14)
    assert found.statistics.n == 5
    assert_relative(found.statistics.aic, plain.statistics.aic, 1e-12)
