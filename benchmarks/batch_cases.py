"""Batches of fits: what polyfuse and its peers need for many small curves."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import polyfuse as pf
import torch

from cases import Case, expect, repeat  # isort: skip

SAMPLES, DEGREE = 20, 2


def curves(fits: int, own_x: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, SAMPLES)
    if own_x:
        x = 2 * torch.rand(SAMPLES, fits, generator=generator) - 1
    return x, torch.randn(SAMPLES, fits, generator=generator)


def trained(quick: bool) -> Case:
    fits, epochs, lr = 1000 if quick else 100_000, 100, 0.1
    x, y = curves(fits)
    model = pf.nn.Polynomial(DEGREE, batch_shape=(fits,))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = torch.nn.MSELoss()
    last: dict[str, Any] = {}

    def fit() -> None:
        with torch.no_grad():
            model.coefficients.zero_()
        pf.fit(model, criterion, optimizer, x, y, epochs=epochs)

    contestants: dict[str, Callable[[], Any]] = {
        "polyfuse.fit": repeat(20, fit),
        "reading the data once (numpy sum, one thread)": repeat(20, lambda: y.numpy().sum()),
    }
    missing = {}
    if find_spec("jax"):
        import jax

        powers = jax.numpy.asarray(torch.stack([x**k for k in range(DEGREE + 1)]).numpy())
        targets = jax.numpy.asarray(y.numpy())

        def loss(c: Any) -> Any:
            return ((c.T @ powers - targets.T) ** 2).mean(1).sum()

        gradient = jax.grad(loss)
        run = jax.jit(lambda c: jax.lax.fori_loop(0, epochs, lambda _, p: p - lr * gradient(p), c))
        start = jax.numpy.zeros((DEGREE + 1, fits))

        def jax_loop() -> None:
            last["jax"] = np.asarray(run(start).block_until_ready())

        contestants["JAX jitted batched loop"] = repeat(3, jax_loop)
    else:
        missing["JAX jitted batched loop"] = "jax is not installed"

    def check() -> None:
        truth = torch.zeros(DEGREE + 1, fits, dtype=torch.float64, requires_grad=True)
        powers64 = torch.stack([x.double() ** k for k in range(DEGREE + 1)])
        for _ in range(epochs):
            value = ((truth.T @ powers64 - y.double().T) ** 2).mean(1).sum()
            (grad,) = torch.autograd.grad(value, truth)
            truth = (truth - lr * grad).detach().requires_grad_()
        expect(model.coefficients.detach(), truth.detach(), 1e-5)
        if "jax" in last:
            expect(last["jax"], truth.detach(), 1e-3)

    return Case(
        f"{fits:,} fits of {SAMPLES} points, degree {DEGREE}, {epochs} epochs of SGD, shared x",
        contestants, {"all": check}, missing, y.numel() * 4, "3 x one read; 50 x JAX",
    )  # fmt: skip


def solved(quick: bool) -> Case:
    fits = 1000 if quick else 100_000
    x, y = curves(fits, own_x=True)
    model = pf.nn.Polynomial(DEGREE, batch_shape=(fits,))
    rows, targets = x.T.contiguous(), y.T.contiguous()[..., None]
    last: dict[str, Any] = {}

    def design() -> torch.Tensor:
        return torch.stack([torch.ones_like(rows), rows, rows * rows], -1)

    def normal() -> None:
        v = design()
        last["normal"] = torch.linalg.solve(v.mT @ v, v.mT @ targets)

    def lstsq() -> None:
        last["lstsq"] = torch.linalg.lstsq(design(), targets).solution

    def check() -> None:
        for found in last.values():
            expect(model.coefficients.detach().T, found[..., 0], 1e-2)
        v = torch.stack([rows.double() ** k for k in range(DEGREE + 1)], -1)
        truth = torch.linalg.lstsq(v, targets.double()).solution[..., 0]
        expect(model.coefficients.detach().T, truth, 1e-5)

    return Case(
        f"{fits:,} fits of {SAMPLES} points, degree {DEGREE}, own x, solved",
        {
            "polyfuse.solve": repeat(20, lambda: pf.solve(model, x, y)),
            "torch.linalg.solve of normal equations": repeat(5, normal),
            "torch.linalg.lstsq": lstsq,
        },
        {"all": check}, {}, 2 * y.numel() * 4, "10 x solve; 100 x lstsq",
    )  # fmt: skip


def one_thread(quick: bool, degree: int) -> Case:
    fits = 1000 if quick else 100_000
    x, y = curves(fits)
    model = pf.nn.Polynomial(degree, batch_shape=(fits,))
    x64, y64 = x.double().numpy(), y.double().numpy()
    last: dict[str, Any] = {}

    def solve() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        pf.solve(model, x, y)
        torch.set_num_threads(threads)

    def polyfit() -> None:
        last["numpy"] = np.polyfit(x64, y64, degree)

    def check() -> None:
        expect(model.coefficients.detach(), last["numpy"][::-1], 1e-4)

    return Case(
        f"{fits:,} fits of {SAMPLES} points, degree {degree}, shared x, one thread",
        {"polyfuse.solve": repeat(5, solve), "numpy.polyfit, y 2-D": polyfit},
        {"all": check}, {}, y.numel() * 4, "10 x numpy",
    )  # fmt: skip


def cube(quick: bool) -> Case:
    side = 30 if quick else 1000
    shape = (120, side, side)
    name = f"cube {shape}, degree 2, xarray"
    if not find_spec("xarray"):
        return Case(name, {}, {}, {"xarray": "xarray is not installed"})
    import xarray as xr
    from polyfuse.xarray import polyfit

    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    data = xr.DataArray(
        values, dims=("time", "y", "x"), coords={"time": np.arange(float(shape[0]))}
    )
    last: dict[str, Any] = {}

    def call(key: str, function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            last[key] = function()

        return run

    def check() -> None:
        expect(last["ours"].polyfit_coefficients, last["theirs"].polyfit_coefficients, 1e-6)

    return Case(
        name,
        {
            "polyfuse.xarray.polyfit": call("ours", lambda: polyfit(data, "time", 2)),
            "xarray.DataArray.polyfit": call("theirs", lambda: data.polyfit("time", 2)),
        },
        {"all": check}, {}, values.nbytes, "10 x",
    )  # fmt: skip


def surface(quick: bool) -> Case:
    n, epochs, lr = 20_000 if quick else 10_000_000, 1000, 0.1
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(n, 2, generator=generator) - 1
    y = torch.sin(x[:, 0] - 2 * x[:, 1])
    model = pf.nn.Polynomial(4, variables=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = torch.nn.MSELoss()

    def fit() -> None:
        with torch.no_grad():
            model.coefficients.zero_()
        pf.fit(model, criterion, optimizer, x, y, epochs=epochs)

    # A multiply-add of one read for every moment; and a matrix product, which runs at the
    # machine's peak, of as many.
    side = round((n * (45 + 15)) ** (1 / 3))
    a = torch.rand(side, side, dtype=torch.float64)

    def check() -> None:
        u = x.double()
        powers = torch.stack([u[:, 0] ** p * u[:, 1] ** q for p, q in model.exponents], 1)
        gram, right = powers.T @ powers / n, powers.T @ y.double() / n
        truth = torch.zeros(len(right), dtype=torch.float64)
        for _ in range(epochs):
            truth -= lr * 2 * (gram @ truth - right)
        expect(model.coefficients.detach(), truth, 1e-5)

    return Case(
        f"surface of total degree 4, n = {n:,} float32, {epochs:,} epochs",
        {
            "polyfuse.fit": fit,
            "reading the data once (torch.sum)": lambda: (x.sum(), y.sum()),
            "as many multiply-adds in float64 (matrix product)": lambda: a @ a,
        },
        {"all": check}, {}, 12 * n, "3 x one read, or 3 x the multiply-adds",
    )  # fmt: skip


def batch_cases(quick: bool) -> list[Callable[[], Case]]:
    degrees = [lambda d=d: one_thread(quick, d) for d in (1, 3, 5, 9)]
    return [
        lambda: trained(quick),
        lambda: solved(quick),
        *degrees,
        lambda: cube(quick),
        lambda: surface(quick),
    ]
