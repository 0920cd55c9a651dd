"""All of NIST's certified linear regressions, from float64 input as it stands in their files."""

import os
import subprocess
import sys

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse.regression import regress

from .nist import CERTIFIED, digits, read

POLYNOMIALS = [name for name, c in CERTIFIED.items() if c["degree"]]


class Proportional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return self.slope * x


def solved(name, dtype=torch.float64):
    x, y = read(name)
    certified = CERTIFIED[name]
    degree = certified["degree"]
    model = pf.nn.Polynomial(degree, dtype=dtype) if certified["with_intercept"] else Proportional()
    return pf.solve(model, torch.tensor(x), torch.tensor(y)), model


def check(statistics, certified):
    assert digits(statistics.params, certified["parameters_exact"]) >= 13
    assert digits(statistics.standard_errors, certified["std_errors_exact"]) >= 12
    assert digits(statistics.residual_deviation, certified["residual_sd_exact"]) >= 12
    assert digits(statistics.r_squared, certified["r_squared_exact"]) >= 12


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials(name):
    solution, model = solved(name)
    check(solution.statistics, CERTIFIED[name])
    stored = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert digits(stored.numpy(), CERTIFIED[name]["parameters_exact"]) >= 13


def test_several_variables():
    x, y = read("Longley")
    check(regress(x, y).statistics, CERTIFIED["Longley"])


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_order_of_samples_does_not_matter(name):
    x, y = read(name)
    degree, free = CERTIFIED[name]["degree"], CERTIFIED[name]["with_intercept"]
    model = pf.nn.Polynomial(degree, dtype=torch.float64) if free else Proportional()
    order = np.random.default_rng(0).permutation(len(x))
    found = pf.solve(model, torch.tensor(x[order]), torch.tensor(y[order]))
    assert digits(found.params, CERTIFIED[name]["parameters_exact"]) >= 13


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_digits(isa):
    code = (
        "import polyfuse as pf; from polyfuse import _C; from tests.nist import read\n"
        "print(_C.isa(), *pf.polyfit(*read('Filip'), 10), *pf.polyfit(*read('Wampler5'), 5))"
    )
    env = os.environ | {"POLYFUSE_ISA": isa}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found, *numbers = run.stdout.split()
    if found != isa:
        pytest.skip(f"this machine has no {isa}")
    coef = np.array(numbers, float)
    for name, part in (("Filip", coef[:11]), ("Wampler5", coef[11:])):
        assert digits(part[::-1], CERTIFIED[name]["parameters_exact"]) >= 13
