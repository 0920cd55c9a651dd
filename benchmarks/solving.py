"""The cases of exact solutions; the optimum must be that of every peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polyfuse as pf
import torch
from cases import Case, expect, repeat
from polyfuse import workload


def nine_points(quick: bool) -> Case:
    x, y = (t.double().numpy() for t in workload.data())
    calls: dict[str, Callable[[], Any]] = {
        "polyfuse.polyfit": lambda: pf.polyfit(x, y, 2),
        "numpy.polyfit": lambda: np.polyfit(x, y, 2),
        "numpy Polynomial.fit": lambda: np.polynomial.Polynomial.fit(x, y, 2),
    }

    def check() -> None:
        expect(pf.polyfit(x, y, 2), np.polyfit(x, y, 2), 1e-10)

    return Case("the optimum of 9 points, degree 2, numpy arrays",
                {name: repeat(1000, call) for name, call in calls.items()}, {"all": check},
                target="2 x numpy.polyfit")  # fmt: skip


def many_points(quick: bool) -> Case:
    n = 200_000 if quick else 10_000_000
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y = torch.exp(x)
    model = pf.nn.Polynomial(2, dtype=torch.float64)
    read = torch.ones(2 * n, dtype=torch.float64)
    x_numpy, y_numpy = x.numpy(), y.numpy()
    fit = np.polynomial.Polynomial.fit

    def solve(precision: str) -> Callable[[], Any]:
        return repeat(5, lambda: pf.solve(model, x, y, precision=precision))

    def check() -> None:
        truth = fit(x_numpy, y_numpy, 2).convert().coef
        for precision in ("double", "extended"):
            expect(pf.solve(model, x, y, precision=precision).params, truth, 1e-9)

    return Case(f"the optimum of n = {n:,} float64, degree 2",
                {"polyfuse.solve": solve("auto"),
                 "polyfuse.solve, extended": solve("extended"),
                 "reading the data once (torch.sum)": repeat(5, lambda: read.sum()),
                 "numpy.polyfit": lambda: np.polyfit(x_numpy, y_numpy, 2),
                 "numpy Polynomial.fit": lambda: fit(x_numpy, y_numpy, 2)},
                {"all": check}, bytes=16 * n,
                target="100 x numpy.polyfit or memory; extended: Polynomial.fit")  # fmt: skip


def cases(quick: bool) -> list[Callable[[], Case]]:
    return [lambda: nine_points(quick), lambda: many_points(quick)]
