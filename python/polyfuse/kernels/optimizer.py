"""Optimizers: the update of all parameters at once, each [P] padded."""

import triton
import triton.language as tl


@triton.jit
def load_rule(rule_ptr, lane, P: tl.constexpr):
    """Of rule [P, 10]: the options of SGD, and whether there is a method at all."""
    rule = ()
    for i in tl.static_range(7):
        rule = rule + (tl.load(rule_ptr + 10 * lane + (i + 1) % 7, lane < P, other=0.0),)
    return rule


@triton.jit
def fills_momentum(rule):
    return (rule[6] != 0.0) & (rule[1] != 0.0)


@triton.jit
def sgd(rule, p, g, b, first, T: tl.constexpr):
    """New p and b, as `torch.optim.SGD` documents it, computed in T.

    d = +-g + weight_decay p;  b = momentum b + (1 - dampening) d, at first b = d;
    p = p - lr (d | b | d + momentum b) for (momentum = 0 | momentum | nesterov).
    """
    lr, momentum, stay = rule[0].to(T), rule[1].to(T), (1.0 - rule[2]).to(T)
    decay, owned = rule[3].to(T), rule[6] != 0.0
    p_old, b_old = p.to(T), b.to(T)
    d = g.to(T)
    d = tl.where(rule[5] != 0.0, -d, d)
    d = tl.where(decay != 0.0, d + decay * p_old, d)
    b_new = tl.where(first, d, momentum * b_old + stay * d)
    with_momentum = tl.where(rule[4] != 0.0, d + momentum * b_new, b_new)
    step = tl.where(momentum != 0.0, with_momentum, d)
    p_new = tl.where(owned, p_old - lr * step, p_old)
    b_new = tl.where(owned & (momentum != 0.0), b_new, b_old)
    return p_new.to(tl.float64), b_new.to(tl.float64)
