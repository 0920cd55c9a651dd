"""Cross entropy of the logits of a tile [ROWS, CW], samples by classes, as torch's.

targets: (y, its strides between samples and classes, weights of the classes [C], the class that is
left out, smoothing).
"""

import triton
import triton.language as tl

from .. import criteria

CROSS_ENTROPY = tl.constexpr(criteria.CROSS_ENTROPY.tag)


@triton.jit
def shares(
    targets, row, keep, weight, c, C: tl.constexpr, INDEX: tl.constexpr, SMOOTH: tl.constexpr
):  # fmt: skip
    """What the classes get of the targets [ROWS, CW], where that is part of the loss, what the
    samples count in a mean, and which are left out."""
    inside = c[None, :] < C
    of_class = tl.load(targets[3] + c, c < C, other=0.0)[None, :]
    if INDEX:
        t = tl.load(targets[0] + row * targets[1], keep, other=0)
        keep = keep & (t != targets[4])
        weight = tl.where((t >= 0) & (t < C), weight, float("nan"))
        part = t[:, None] == c[None, :]
        q = part.to(tl.float64)
        counted = tl.where(part & keep[:, None], of_class * weight[:, None], 0.0)
    else:
        at = targets[0] + row[:, None] * targets[1] + c[None, :] * targets[2]
        q = tl.load(at, keep[:, None] & inside, other=0.0).to(tl.float64)
        part = inside
        counted = tl.where((c[None, :] == 0) & keep[:, None], weight[:, None], 0.0)
    if SMOOTH:
        q = q * (1.0 - targets[5]) + targets[5] / C
        part = inside
    share = tl.where(keep[:, None] & inside, weight[:, None] * (of_class * q), 0.0)
    return share, (part | (share != share)) & keep[:, None] & inside, counted, keep


@triton.jit
def cross_entropy(z, share, part, c, C: tl.constexpr):
    """Of logits and `shares` a: the terms of -sum_c a_c log p_c with p = softmax(z), and the
    derivatives (sum a) p_c - a_c."""
    z = tl.where(c[None, :] < C, z, -float("inf"))
    z -= tl.max(z, axis=1)[:, None]
    e = tl.exp(z)
    total = tl.sum(e, axis=1)
    value = tl.where(part, share * (tl.log(total)[:, None] - z), 0.0)
    return value, e * (tl.sum(share, axis=1) / total)[:, None] - share
