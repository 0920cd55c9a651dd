"""Polynomials in the columns of x and in parameters, as a traced forward computes with them.

A value is a sum of products ``factor * params * u0**p0 * u1**p1 ...`` with a variable
``u = (x - shift) * scale`` for each column of x.
"""

from __future__ import annotations

import math
from typing import Any

MAX_DEGREE = 32
MAX_TERMS = 4096
PLAIN = (0.0, 1.0)  # shift and scale of x itself

Powers = tuple[int, ...]  # of every variable
Products = dict[tuple[Powers, tuple[int, ...]], float]  # (powers, scalar parameters) -> factor
Variables = tuple[tuple[float, float] | None, ...]  # shift and scale; None: not in it


class NotPolynomial(BaseException):
    """The forward is not a polynomial; the message says which operation stopped the trace.

    Not an Exception, so that a forward that handles its own errors does not swallow it.
    """

    def __init__(self, reason: str, for_good: bool = False):
        super().__init__(reason)
        self.for_good = for_good  # whatever changes in the module: no need to ask again


class Polynomial:
    __slots__ = ("products", "variables")

    def __init__(self, products: Products, variables: Variables):
        self.products, self.variables = products, variables

    @classmethod
    def constant(cls, value: float, n: int, slots: tuple[int, ...] = ()) -> Polynomial:
        """value, or value times parameters, among polynomials in n variables."""
        return cls({((0,) * n, slots): float(value)}, (None,) * n)

    @classmethod
    def variable(cls, v: int, n: int) -> Polynomial:
        """Column v of n."""
        powers = tuple(int(i == v) for i in range(n))
        return cls({(powers, ()): 1.0}, tuple(PLAIN if i == v else None for i in range(n)))

    @property
    def number(self) -> float | None:
        """What it is, where that is a number."""
        (key,) = self.products if len(self.products) == 1 else (None,)
        if key is None or any(key[0]) or key[1]:
            return None
        return self.products[key]

    def __add__(self, other: Polynomial) -> Polynomial:
        a, b = _alike(self, other)
        products = dict(a.products)
        for key, factor in b.products.items():
            products[key] = products.get(key, 0.0) + factor
        return _checked(products, a, b)

    def __mul__(self, other: Polynomial) -> Polynomial:
        a, b = _alike(self, other)
        products: Products = {}
        for (da, sa), fa in a.products.items():
            for (db, sb), fb in b.products.items():
                powers = tuple(map(sum, zip(da, db, strict=True)))
                if sum(powers) > MAX_DEGREE:
                    raise NotPolynomial(f"the degree is above {MAX_DEGREE}")
                key = powers, tuple(sorted(sa + sb))
                products[key] = products.get(key, 0.0) + fa * fb
        return _checked(products, a, b)

    def __neg__(self) -> Polynomial:
        return Polynomial({k: -f for k, f in self.products.items()}, self.variables).renamed()

    def __truediv__(self, other: Polynomial) -> Polynomial:
        divisor = other.number
        if not divisor:
            raise NotPolynomial("division by something that is not a non-zero constant")
        return self * Polynomial.constant(1.0 / divisor, len(self.variables))

    def __pow__(self, exponent: Polynomial) -> Polynomial:
        n = exponent.number
        if n is None:
            raise NotPolynomial("an exponent that is not a constant")
        if n < 0 or n != int(n):
            raise NotPolynomial(f"the exponent {n:g}, which is not a whole number >= 0")
        result = Polynomial.constant(1.0, len(self.variables))
        for _ in range(int(n)):
            result = result * self
        return result

    def moved(self, v: int, to: tuple[float, float]) -> Polynomial:
        """The same with another shift and scale of variable v: u = slope * new + offset."""
        old, (shift, scale) = self.variables[v], to
        assert old is not None
        slope, offset = old[1] / scale, (shift - old[0]) * old[1]
        products: Products = {}
        for (powers, slots), factor in self.products.items():
            d = powers[v]
            for j in range(d + 1):
                part = factor * math.comb(d, j) * slope**j * offset ** (d - j)
                key = (*powers[:v], j, *powers[v + 1 :]), slots
                products[key] = products.get(key, 0.0) + part
        return Polynomial(products, (*self.variables[:v], to, *self.variables[v + 1 :]))

    def renamed(self) -> Polynomial:
        """A pure shift or scaling of x becomes the variable itself: (x - 1.7e9)**2 stays exact."""
        there = [v for v, variable in enumerate(self.variables) if variable is not None]
        if len(there) != 1 or any(slots or sum(p) > 1 for p, slots in self.products):
            return self
        (v,) = there
        unit, zero = (
            tuple(int(i == v) for i in range(len(self.variables))),
            (0,) * len(self.variables),
        )
        slope, offset = self.products.get((unit, ()), 0.0), self.products.get((zero, ()), 0.0)
        if slope == 0.0 or (slope, offset) == (1.0, 0.0):
            return self
        old: Any = self.variables[v]
        variable = old[0] - offset / (slope * old[1]), slope * old[1]
        variables = (*self.variables[:v], variable, *self.variables[v + 1 :])
        return Polynomial({(unit, ()): 1.0}, variables)


def _alike(a: Polynomial, b: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Both in the same variables; the shifted ones, whose powers are the better conditioned."""
    for v in range(len(a.variables)):
        of_a, of_b = a.variables[v], b.variables[v]
        if of_a is None or of_b is None or of_a == of_b:
            continue
        if of_a == PLAIN:
            a = a.moved(v, of_b)
        else:
            b = b.moved(v, of_a)
    return a, b


def _checked(products: Products, a: Polynomial, b: Polynomial) -> Polynomial:
    if len(products) > MAX_TERMS:
        raise NotPolynomial(f"the polynomial has more than {MAX_TERMS} terms")
    variables = tuple(p or q for p, q in zip(a.variables, b.variables, strict=True))
    return Polynomial(products, variables).renamed()
