"""Runs a module's forward once, on a symbolic polynomial: what it gives is what kernels compute."""

from __future__ import annotations

import itertools
import math

import torch

from . import _C
from .chance import Chance
from .exponents import MAX_TERMS, MAX_VARIABLES, with_parents
from .polynomials import MAX_DEGREE, PLAIN, NotPolynomial, Powers
from .shapes import ShapedRecorder
from .stacked import Stacked
from .symbolic import Recorder, Symbol, Traced
from .watching import Contents, has_hooks

MAX_STACKED = 1 << 20  # coefficients: the loop keeps some copies of them


def trace(
    module: torch.nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    of_x: tuple[int, ...] | None = None,
) -> Traced:
    """The polynomial that `module.forward` computes; raises `NotPolynomial` with the reason.

    Of x in any shape, or, with of_x, of x [N, *of_x], N > 1.
    """
    if of_x is not None and math.prod(of_x) > MAX_VARIABLES:
        raise NotPolynomial(f"x has more than {MAX_VARIABLES} columns")
    if hooked := next((m for m in module.modules() if has_hooks(m)), None):
        raise NotPolynomial(f"{type(hooked).__name__} has hooks")
    if (stacked := getattr(module, "trace_stacked", lambda: None)()) is not None:
        return _checked(stacked, dtype, device)
    for m in module.modules():
        if reason := getattr(m, "refuse_powers", lambda: None)():
            raise NotPolynomial(reason)
    recorder = (
        Recorder(module, dtype, device)
        if of_x is None
        else ShapedRecorder(module, dtype, device, of_x)
    )
    before = [dict(m.__dict__) for m in module.modules()]
    contents = Contents(module)
    watch, chance = _C.Watch(contents.cheap), Chance(module)
    values = [(t, t.detach().clone()) for t in contents.cheap if isinstance(t, torch.Tensor)]
    try:
        with torch.enable_grad(), recorder:
            out = module.forward(recorder.x())
    except NotPolynomial:
        raise
    except Exception as error:
        raise NotPolynomial(f"forward raised {type(error).__name__}: {error}") from error
    finally:
        changed = not contents.all_unchanged(watch)
        for m, attributes in zip(module.modules(), before, strict=False):
            same = m.__dict__.keys() == attributes.keys() and all(
                m.__dict__[k] is v for k, v in attributes.items()
            )
            if not same:
                m.__dict__.clear()
                m.__dict__.update(attributes)
        if changed:
            for t, value in values:
                t.detach().copy_(value)
        drawn = chance.drawn()
    if changed:
        raise NotPolynomial("forward changes what its module holds", for_good=True)
    if drawn:
        raise NotPolynomial("forward draws random numbers", for_good=True)
    if type(out) is not Symbol:
        raise NotPolynomial(f"forward returns {type(out).__name__}, not a polynomial of x")
    if not out.rows:
        raise NotPolynomial("the output does not depend on x")
    if out.array.size != 1:
        raise NotPolynomial(f"the output has shape (n, {str(out.array.shape)[1:]}")
    return _polynomial_of(recorder, out)


def _checked(stacked: Stacked, dtype: torch.dtype, device: torch.device) -> Stacked:
    (p,) = stacked.tensors
    if p.device != device:
        raise NotPolynomial(f"the coefficients are on {p.device}, x is on {device}")
    if type(p) is not torch.nn.Parameter or p.dtype != dtype or not p.is_contiguous():
        raise NotPolynomial(f"expected a parameter of x's dtype {dtype}, got {p.dtype}")
    if len(stacked.variables) > MAX_VARIABLES:
        raise NotPolynomial(f"x has more than {MAX_VARIABLES} columns")
    if len(stacked.exponents) > MAX_TERMS:
        raise NotPolynomial(f"the polynomial has more than {MAX_TERMS} terms")
    if not stacked.exponents and stacked.degree > MAX_DEGREE:
        raise NotPolynomial(f"expected a degree of at most {MAX_DEGREE}, got {stacked.degree}")
    if p.numel() > MAX_STACKED:
        raise NotPolynomial(f"more than {MAX_STACKED} coefficients, {p.numel()}")
    return stacked


def _polynomial_of(recorder: Recorder, out: Symbol) -> Traced:
    # What forward only touches is no part of the loss: torch leaves its .grad alone.
    polynomial = out.array.item()
    used = {s for _, slots in polynomial.products for s in slots}
    kept = sorted({t for (t, _), s in recorder.slot_of.items() if s in used})
    tensors = tuple(recorder.tensors[t] for t in kept)
    slot_of = {(kept.index(t), e): s for (t, e), s in recorder.slot_of.items() if t in kept}
    for tensor in tensors:
        if type(tensor) is not torch.nn.Parameter:
            raise NotPolynomial(f"a parameter is a {type(tensor).__name__}")
        if tensor.dtype != recorder.dtype or tensor.device != recorder.device:
            raise NotPolynomial(
                f"a parameter is {tensor.dtype} on {tensor.device}, "
                f"x is {recorder.dtype} on {recorder.device}"
            )
    if not tensors:
        raise NotPolynomial("the model has no parameters")
    ends = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors)
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(ends)):
        raise NotPolynomial("parameters share memory")
    products = {key: factor for key, factor in polynomial.products.items() if factor != 0.0}
    several = recorder.n_variables > 1
    exponents = _terms_of({powers for powers, _ in products}, recorder.n_variables)
    if several and len(exponents) > MAX_TERMS:
        raise NotPolynomial(f"the polynomial has more than {MAX_TERMS} terms")
    number = {powers: k for k, powers in enumerate(exponents)}
    numbered = sorted(((number[p], slots), factor) for (p, slots), factor in products.items())
    # Slots in the order of their coefficients, so that the usual map is the identity.
    first: dict[int, int] = {}
    for (k, slots), _ in numbered:
        for s in slots:
            first.setdefault(s, k)
    last = len(exponents)
    order = sorted(slot_of.items(), key=lambda item: (first.get(item[1], last), item[1]))
    renumber = {old: new for new, (_, old) in enumerate(order)}
    terms = tuple(
        (factor, k, tuple(sorted(renumber[s] for s in slots))) for (k, slots), factor in numbered
    )
    variables = tuple(variable or PLAIN for variable in polynomial.variables)
    shift, scale = PLAIN if several else variables[0]
    return Traced(
        tensors=tensors,
        slots=tuple(where for where, _ in order),
        terms=terms,
        degree=max(map(sum, exponents)),
        shift=shift,
        scale=scale,
        ndim=recorder.ndim if recorder.of_x is None else 0,
        buffers=tuple(recorder.buffers.values()),
        of_x=recorder.of_x,
        of_y=out.array.shape,
        exponents=exponents if several else (),
        variables=variables if several else (),
    )


def _terms_of(powers: set[Powers], n_variables: int) -> tuple[Powers, ...]:
    """What the kernels compute: of one variable, all powers up to the highest."""
    if n_variables > 1:
        return with_parents(powers or {(0,) * n_variables})
    highest = max((d for (d,) in powers), default=0)
    return tuple((d,) for d in range(highest + 1))
