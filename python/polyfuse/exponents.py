"""Terms of polynomials of several variables: powers of every variable, and how kernels get them."""

from __future__ import annotations

from functools import lru_cache

Powers = tuple[int, ...]
MAX_TERMS, MAX_VARIABLES = 256, 64  # as csrc/cpu/surface.h has them


def parent_of(powers: Powers) -> tuple[Powers, int | None]:
    """The term that this one is u_v times, and v; of the constant, v is None."""
    v = next((i for i in range(len(powers) - 1, -1, -1) if powers[i]), None)
    if v is None:
        return powers, None
    return (*powers[:v], powers[v] - 1, *powers[v + 1 :]), v


def with_parents(terms: set[Powers]) -> tuple[Powers, ...]:
    """The terms with those that they are multiples of but the constant, by total degree."""
    closed = set(terms)
    for powers in terms:
        while sum(powers) > 1:
            powers, _ = parent_of(powers)
            closed.add(powers)
    return tuple(sorted(closed, key=lambda powers: (sum(powers), [-p for p in powers])))


def firsts(n_variables: int) -> tuple[Powers, ...]:
    """A term for every variable, to the first power."""
    return tuple(tuple(int(v == k) for v in range(n_variables)) for k in range(n_variables))


def name_of(powers: Powers) -> str:
    """Such as x1^2 x2."""
    parts = [f"x{v + 1}" + (f"^{p}" if p > 1 else "") for v, p in enumerate(powers) if p]
    return " ".join(parts) or "constant"


@lru_cache(maxsize=64)
def layout(exponents: tuple[Powers, ...]) -> tuple[list, list, list]:
    """What the kernels are told of the terms: (parent, variable) of each; one pair of terms for
    every moment, (a, b, moment); and the moment of every pair [K * K]."""
    number = {powers: k for k, powers in enumerate(exponents)}
    terms = []
    for powers in exponents:
        parent, v = parent_of(powers)
        terms.append((-1 if v is None else number.get(parent, -1), -1 if v is None else v))
    moments: dict[tuple[int, ...], int] = {}
    products, moment_of = [], []
    for a, first in enumerate(exponents):
        for b, second in enumerate(exponents):
            power = tuple(p + q for p, q in zip(first, second, strict=True))
            if power not in moments:
                moments[power] = len(moments)
                products.append((a, b, moments[power]))
            moment_of.append(moments[power])
    return terms, products, moment_of
