"""Runs a module's forward once, on a symbolic polynomial: what it gives is what kernels compute."""

from __future__ import annotations

import itertools

import torch

from . import _C
from .chance import Chance
from .logits import Logits
from .symbolic import MAX_PARAMS, NotPolynomial, Recorder, Symbol, Traced
from .watching import Contents, has_hooks


def trace(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> Traced:
    """The polynomial that `module.forward` computes; raises `NotPolynomial` with the reason."""
    for m in module.modules():
        if has_hooks(m):
            raise NotPolynomial(f"{type(m).__name__} has hooks")
        if reason := getattr(m, "refuse_powers", lambda: None)():
            raise NotPolynomial(reason)
    if (outputs := getattr(module, "trace_outputs", lambda: None)()) is not None:
        return _logits(outputs, dtype, device)
    recorder = Recorder(module, dtype, device)
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
    if not out.of_x:
        raise NotPolynomial("the output does not depend on x")
    return _polynomial_of(recorder, out)


def _logits(outputs: Logits, dtype: torch.dtype, device: torch.device) -> Logits:
    (p,) = outputs.tensors
    if device.type != "cpu" or p.device.type != "cpu":
        raise NotPolynomial(f"several outputs are fused on CPUs, x is on {device}")
    if type(p) is not torch.nn.Parameter or p.dtype != dtype or not p.is_contiguous():
        raise NotPolynomial(f"expected a parameter of x's dtype {dtype}, got {p.dtype}")
    if p.numel() > MAX_PARAMS:
        raise NotPolynomial(f"more than {MAX_PARAMS} coefficients, {p.numel()}")
    return outputs


def _polynomial_of(recorder: Recorder, out: Symbol) -> Traced:
    # What forward only touches is no part of the loss: torch leaves its .grad alone.
    used = {s for _, slots in out.products for s in slots}
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
    products = {key: factor for key, factor in out.products.items() if factor != 0.0}
    degree = max((d for d, _ in products), default=0)
    # Slots in the order of their coefficients, so that the usual map is the identity.
    first: dict[int, int] = {}
    for d, slots in sorted(products):
        for s in slots:
            first.setdefault(s, d)
    order = sorted(slot_of.items(), key=lambda item: (first.get(item[1], 99), item[1]))
    renumber = {old: new for new, (_, old) in enumerate(order)}
    terms = tuple(
        (factor, d, tuple(sorted(renumber[s] for s in slots)))
        for (d, slots), factor in sorted(products.items())
    )
    shift, scale = out.var or (0.0, 1.0)
    return Traced(
        tensors=tensors,
        slots=tuple(where for where, _ in order),
        terms=terms,
        degree=degree,
        shift=shift,
        scale=scale,
        ndim=recorder.ndim,
        buffers=tuple(recorder.buffers.values()),
    )
