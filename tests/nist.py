"""NIST's certified regressions, and the number of correct digits."""

import json
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "nist"
CERTIFIED = json.loads((DATA / "certified.json").read_text())


def read(name):
    """x [N] or [N, D], y [N]"""
    table = np.loadtxt(DATA / f"{name}.dat")
    x = table[:, :-1] if table.shape[1] > 2 else table[:, 0]
    return np.ascontiguousarray(x), np.ascontiguousarray(table[:, -1])


def digits(found, certified):
    """The least log relative error of any of these numbers, at most 15."""
    with localcontext() as context:
        context.prec = 60
        errors = [0.0]
        for value, text in zip(np.atleast_1d(found), np.atleast_1d(certified), strict=True):
            if not np.isfinite(value):
                return 0.0
            true = Decimal(str(text))
            error = abs(Decimal(float(value)) - true)
            errors.append(float(error / abs(true) if true else error))
    worst = max(errors)
    return 15.0 if worst <= 1e-15 else max(0.0, -float(np.log10(worst)))
