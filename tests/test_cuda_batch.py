"""Batches of fits by the CUDA kernels, run on the CPU: against the cpu backend, plain PyTorch."""

import polyfuse as pf
import polyfuse.nn as nn
import pytest
import torch
from polyfuse.backends import batched, batched_cuda

from .emulated import Emulated
from .test_batch import DATA, OPTIMIZERS, assert_same_run, make, model_of

CLOSE = {"rtol": 1e-8, "atol": 1e-11}
ENGINES = ("moments", "stream")


class EmulatedBatches(batched_cuda.BatchedCuda):
    name = "emulated"

    def _launch(self, told, device, solve):
        self.told = told
        super()._launch(told, device, solve)


@pytest.fixture
def backend(emulation, monkeypatch):
    made = EmulatedBatches(Emulated(emulation))
    monkeypatch.setitem(batched.HOMES, "emulated", lambda: made)
    yield made
    batched.backend_called.cache_clear()


def solutions(x, y, more, model=model_of, **options):
    """By the kernels, and by the cpu backend: results and coefficients."""
    weight, policy = more.get("sample_weight"), more.get("nan_policy", "raise")
    found = []
    for name in ("emulated", "cpu"):
        fitted = model()
        result = pf.solve(fitted, x, y, weight=weight, nan_policy=policy, covariance=True,
                          backend=name, **options)  # fmt: skip
        found.append((result, fitted.coefficients.detach()))
    return found


def assert_same_solutions(x, y, more, model=model_of, close=CLOSE, **options):
    (found, p), (wanted, q) = solutions(x, y, more, model, **options)
    assert found.launches == 1
    torch.testing.assert_close(p, q, equal_nan=True, **close)
    for name in ("loss", "r_squared", "covariance", "rank", "status", "degree"):
        value, truth = getattr(found, name), getattr(wanted, name)
        if truth is not None:
            torch.testing.assert_close(value, truth, equal_nan=True, msg=name, **close)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("degree_by", [None, "aicc", "bic"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, 6])
def test_solutions(degree, degree_by, kind, backend):
    x, y, more = make(kind, n=20, fits=139)
    model = lambda: model_of(139, degree)  # noqa: E731
    assert_same_solutions(x, y, more, model, degree_by=degree_by)


@pytest.mark.parametrize("kind", ["shared", "own"])
@pytest.mark.parametrize("basis", ["chebyshev", "legendre", "hermite", "hermite_e", "laguerre"])
def test_bases_and_domains(basis, kind, backend):
    x, y, more = make(kind)
    model = lambda: model_of(degree=4, basis=basis, domain=(-2, 3))  # noqa: E731
    assert_same_solutions(x, y, more, model)


@pytest.mark.parametrize("n", [2, 129, 1003])
@pytest.mark.parametrize("kind", DATA)
def test_samples_on_chip_and_in_memory(kind, n, dtype, backend):
    x, y, more = make(kind, n=n, dtype=dtype)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else CLOSE
    assert_same_solutions(x, y, more, lambda: model_of(dtype=dtype), close, deficient="nan")
    assert backend.told.on_chip == (n < 129)


def test_x_far_from_zero(backend):
    seconds = 1.7e9 + torch.arange(0.0, 3600.0, 60.0, dtype=torch.float64)
    level = torch.linspace(-5, 5, 9, dtype=torch.float64)
    y = level + 1e-2 * (seconds[:, None] - 1.7e9)
    for x in (seconds, seconds[:, None] + 0 * y):
        model = nn.Polynomial(1, batch_shape=(9,), domain=(1.7e9, 1.7e9 + 3600), dtype=x.dtype)
        pf.solve(model, x, y, backend="emulated")
        torch.testing.assert_close(model(seconds), y, rtol=0, atol=1e-10)


def test_fits_that_cannot_be_leave_the_others_alone(backend):
    x, y, _ = make("own", n=6)
    w = torch.ones_like(y)
    x[:, 1], y[2, 2], w[:, 3], w[2:, 4], y[0, 5] = 0.3, torch.nan, 0.0, 0.0, torch.inf
    more = {"sample_weight": w, "nan_policy": "propagate"}
    assert_same_solutions(x, y, more, deficient="nan")
    (found, _), _ = solutions(x, y, more)
    assert set(found.counts()) == {"converged", "rank_deficient", "non_finite"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_torchs(name, kind, engine, backend):
    x, y, more = make(kind)
    assert_same_run(
        ("emulated", "reference"), OPTIMIZERS[name], nn.MSELoss(), x, y, parts=(4, 3),
        engine=engine, record_every=2, **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["shared", "weights"])
@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss(reduction="sum"),
        nn.L1Loss(),
        nn.SmoothL1Loss(),
        nn.HuberLoss(delta=0.5),
        nn.BCEWithLogitsLoss(),
        nn.PoissonNLLLoss(full=True),
    ],
    ids=lambda c: type(c).__name__,
)
def test_criteria(criterion, kind, backend):
    x, y, more = make(kind)
    y = y.abs() if isinstance(criterion, nn.PoissonNLLLoss) else y
    y = (y > 0).double() if isinstance(criterion, nn.BCEWithLogitsLoss) else y
    assert_same_run(
        ("emulated", "reference"), OPTIMIZERS["sgd"], criterion, x, y, parts=(4, 3), **more
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_each_fit_stops_on_its_own(engine, backend):
    x, y, _ = make("own")
    result = assert_same_run(
        ("emulated", "reference"), OPTIMIZERS["adam"], nn.MSELoss(), x, y, parts=(60,),
        engine=engine, tol=1e-3, record_every=3,
    )  # fmt: skip
    assert len(set(result.fit_epochs.tolist())) > 3 and result.launches == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_bounds(engine, backend):
    x, y, _ = make("own")
    high = torch.linspace(0.1, 0.5, 13, dtype=torch.float64)
    assert_same_run(
        ("emulated", "reference"), OPTIMIZERS["adam"], nn.MSELoss(), x, y, parts=(5, 4),
        engine=engine, bounds=(-0.2, high),
    )  # fmt: skip


def test_many_terms_and_float32(backend):
    x, y, _ = make("own", n=40, fits=131, dtype=torch.float32)
    left = []
    for name in ("emulated", "cpu"):
        model = model_of(131, degree=7, dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=9, backend=name)
        left.append(torch.cat([model.coefficients.detach(), result.loss[None].float()]))
    assert result.engine == "moments"
    torch.testing.assert_close(*left, rtol=1e-5, atol=1e-5)


def test_statuses_of_runs(backend):
    x, y, _ = make("own")
    y[2, 2], x[:, 3] = torch.nan, 1e9 * x[:, 3]
    for engine in ENGINES:
        model = model_of()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        with pytest.warns(RuntimeWarning, match=r"1 of \d+ fits diverged"):
            result = pf.fit(
                model, nn.MSELoss(), optimizer, x, y, epochs=50, engine=engine,
                backend="emulated", nan_policy="propagate",
            )  # fmt: skip
        assert result.counts() == {"step_limit": 11, "non_finite": 1, "diverged": 1}


def test_what_the_backend_refuses(backend):
    x, y, _ = make("shared")
    with pytest.raises(ValueError, match="17 coefficients, more than 16"):
        pf.solve(model_of(degree=16), x, y, backend="emulated")


@pytest.mark.parametrize("dtype", [0, 1])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [1, 20, 200, 400, 1003, 10**6])
def test_launches_cover_the_fits_and_fit_the_device(n, shared, dtype, emulation):
    device = emulation.Device(132, 227 * 1024)
    for count in (1, 129, 10**7, 2**33):
        fits = emulation.Fits(n, count, 3, bool(dtype), False, 0.0, 1.0, 0)
        fits.x, fits.y = (1, 1, 0) if shared else (1, count, 1), (1, count, 1)
        fits.lay_out(True, device)
        grid = fits.grid
        assert grid.threads in (64, 128) and 1 <= grid.blocks <= 64 * device.processors
        assert grid.shared + 512 <= device.shared
        assert (grid.blocks - 1) * grid.threads < count
        columns = (1 if shared else grid.threads + 1) + grid.threads + 1
        samples = columns * n * (8 if dtype else 4)
        assert grid.shared == fits.on_chip * samples + fits.alike * n * 24
        assert fits.alike == (shared and n < 2000)
        if n == 20:
            assert fits.on_chip and grid.threads == 128
