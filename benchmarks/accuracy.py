"""Correct digits on NIST's certified linear regressions, of polyfuse and of its peers.

python benchmarks/accuracy.py [--out benchmarks/results/accuracy.json]

The digits of a set are the least log relative error of its parameters against the certified values,
at most 15. Every peer gets the data as they stand in NIST's files, in float64, and its defaults,
unless its name says otherwise.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyfuse as pf
import torch
from polyfuse.regression import regress
from run import header

sys.path.append(str(Path(__file__).parent.parent))
from tests.nist import CERTIFIED, digits, read

Fit = Callable[[str], Any]
PEERS = ("numpy", "scipy", "scikit-learn", "statsmodels", "lmfit", "jax")


def design(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The design [N, K] by ascending degree, and y [N]"""
    x, y = read(name)
    certified = CERTIFIED[name]
    if x.ndim == 2:
        return np.column_stack([np.ones(len(y)), x]), y
    powers = np.vander(x, certified["degree"] + 1, increasing=True)
    return powers if certified["with_intercept"] else powers[:, 1:], y


def powers_of_x(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """x, y and degree of a set that is a full polynomial."""
    x, y = read(name)
    certified = CERTIFIED[name]
    if x.ndim == 2 or not certified["with_intercept"]:
        raise LookupError("no full polynomial of one variable")
    return x, y, certified["degree"]


def polyfuse_solve(name: str) -> Any:
    rows, y = design(name)
    try:
        x, y, degree = powers_of_x(name)
    except LookupError:
        constant = CERTIFIED[name]["with_intercept"]
        return regress(rows[:, 1:] if constant else rows, y, constant=constant).params
    model = pf.nn.Polynomial(degree, dtype=torch.float64)
    return pf.solve(model, torch.tensor(x), torch.tensor(y)).params


def numpy_polyfit(name: str) -> Any:
    return np.polyfit(*powers_of_x(name))[::-1]


def numpy_polynomial(name: str) -> Any:
    return np.polynomial.Polynomial.fit(*powers_of_x(name)).convert().coef


def numpy_lstsq(name: str) -> Any:
    return np.linalg.lstsq(*design(name), rcond=None)[0]


def scipy_lstsq(name: str) -> Any:
    from scipy.linalg import lstsq

    return lstsq(*design(name))[0]


def sklearn(**options: Any) -> Fit:
    def fit(name: str) -> Any:
        from sklearn.linear_model import LinearRegression

        rows, y = design(name)
        constant = CERTIFIED[name]["with_intercept"]
        found = LinearRegression(fit_intercept=constant, **options)
        found.fit(rows[:, 1:] if constant else rows, y)
        return np.append(found.intercept_, found.coef_) if constant else found.coef_

    return fit


def statsmodels_ols(name: str) -> Any:
    import statsmodels.api as sm

    rows, y = design(name)
    return sm.OLS(y, rows).fit().params


def lmfit_polynomial(name: str) -> Any:
    from lmfit.models import PolynomialModel

    x, y, degree = powers_of_x(name)
    if degree > 7:
        raise LookupError("lmfit's PolynomialModel ends at degree 7")
    model = PolynomialModel(degree)
    fitted = model.fit(y, model.guess(y, x=x), x=x)
    return [fitted.params[f"c{k}"].value for k in range(degree + 1)]


def torch_lstsq(name: str) -> Any:
    rows, y = (torch.tensor(v) for v in design(name))
    return torch.linalg.lstsq(rows, y[:, None]).solution[:, 0].numpy()


def jax_lstsq(name: str) -> Any:
    import jax

    with jax.enable_x64(True):
        return np.asarray(jax.numpy.linalg.lstsq(*design(name))[0])


METHODS: dict[str, Fit] = {
    "polyfuse.solve": polyfuse_solve,
    "numpy.polyfit": numpy_polyfit,
    "numpy Polynomial.fit": numpy_polynomial,
    "numpy.linalg.lstsq": numpy_lstsq,
    "scipy.linalg.lstsq": scipy_lstsq,
    "scikit-learn": sklearn(),
    "scikit-learn, tol=0": sklearn(tol=0),
    "statsmodels OLS": statsmodels_ols,
    "lmfit PolynomialModel": lmfit_polynomial,
    "torch.linalg.lstsq": torch_lstsq,
    "jax.numpy.linalg.lstsq": jax_lstsq,
}


def measure(fit: Fit, name: str) -> float | str:
    """Digits, or why there are none."""
    try:
        return round(digits(fit(name), CERTIFIED[name]["parameters_exact"]), 1)
    except (LookupError, ImportError) as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of ill-conditioned designs: that is what is measured
    versions = {}
    for peer in PEERS:
        try:
            versions[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            continue
    ceiling = {n: round(c["lre_ceiling_float64_inputs"], 1) for n, c in CERTIFIED.items()}
    table = {
        method: {name: measure(fit, name) for name in CERTIFIED} for method, fit in METHODS.items()
    }
    print(f"{'':24}" + "".join(f"{name:>10}" for name in CERTIFIED))
    for method, row in {"exact arithmetic": ceiling, **table}.items():
        cells = "".join(f"{'-' if isinstance(v, str) else v:>10}" for v in row.values())
        print(f"{method:24}{cells}")
    assert all(isinstance(v, float) and v >= 13 for v in table["polyfuse.solve"].values())
    if args.out:
        head = header(quick=False)
        report = {**head, "versions": head["versions"] | versions, "exact arithmetic": ceiling,
                  "digits": table}  # fmt: skip
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
