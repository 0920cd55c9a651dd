"""Optimizers: the update of all parameters at once, each [P] padded.

Operation by operation as in torch.optim, in the precision of T; numbers that torch computes in
Python are in float64. rule: the method, and its options as `rules` names them; kept: the KEPT
numbers of a parameter.
"""

import triton
import triton.language as tl

from .. import rules

SGD = tl.constexpr(rules.METHODS[rules.SgdOptions].number)
ADAM = tl.constexpr(rules.METHODS[rules.AdamOptions].number)
ASGD = tl.constexpr(rules.METHODS[rules.AsgdOptions].number)
RPROP = tl.constexpr(rules.METHODS[rules.RpropOptions].number)
RMSPROP = tl.constexpr(rules.METHODS[rules.RmsPropOptions].number)
ADAGRAD = tl.constexpr(rules.METHODS[rules.AdagradOptions].number)
ADADELTA = tl.constexpr(rules.METHODS[rules.AdadeltaOptions].number)
ADAMAX = tl.constexpr(rules.METHODS[rules.AdamaxOptions].number)
NADAM = tl.constexpr(rules.METHODS[rules.NAdamOptions].number)
RADAM = tl.constexpr(rules.METHODS[rules.RAdamOptions].number)
OPTIONS = tl.constexpr(9)


@triton.jit
def load_rule(rule_ptr, lane, P: tl.constexpr):
    """Of rule [P, 1 + OPTIONS]."""
    rule = ()
    for i in tl.static_range(1 + OPTIONS):
        at = rule_ptr + (1 + OPTIONS) * lane + i
        rule = rule + (tl.load(at, lane < P, other=0.0),)
    return rule


@triton.jit
def follow(row, done, rule_ptr, changes_ptr, lane, P: tl.constexpr):
    """Which of the rules [1 + C, P, 1 + OPTIONS] holds after so many epochs, and that rule."""
    row += (tl.load(changes_ptr + row) <= done).to(tl.int64)
    return row, load_rule(rule_ptr + row * (1 + OPTIONS) * P, lane, P)


@triton.jit
def is_owned(rule):
    return rule[0] != 0.0


@triton.jit
def fills_momentum(rule, METHOD: tl.constexpr):
    return is_owned(rule) & (METHOD == SGD) & (rule[2] != 0.0)


@triton.jit
def power(base, exponent):
    """base >= 0"""
    return tl.exp(exponent * tl.log(base))


@triton.jit
def lerp(start, end, weight, T: tl.constexpr):
    near = start + weight.to(T) * (end - start)
    return tl.where(weight < 0.5, near, end - (end - start) * (1.0 - weight).to(T))


@triton.jit
def direction(p, g, maximize, decay, T: tl.constexpr):
    """d = +-g + weight_decay p"""
    d = tl.where(maximize != 0.0, -g, g)
    return tl.where(decay != 0.0, d + decay.to(T) * p, d)


@triton.jit
def stored(value, single):
    """As torch keeps it, in a tensor of the default dtype."""
    return tl.where(single != 0.0, value.to(tl.float32).to(tl.float64), value)


@triton.jit
def root(x, T: tl.constexpr):
    """sqrt(x) to the last bit, which Triton's own of float32 is not."""
    return tl.sqrt(x.to(tl.float64)).to(T)


@triton.jit
def ratio(a, b, T: tl.constexpr):
    """a / b to the last bit; the same of Triton's division."""
    return (a.to(tl.float64) / b.to(tl.float64)).to(T)


@triton.jit
def sgd(rule, p, g, kept, T: tl.constexpr):
    """kept: buffer, whether it is filled.

    b = momentum b + (1 - dampening) d, at first b = d;
    p = p - lr (d | b | d + momentum b) for (momentum = 0 | momentum | nesterov).
    """
    momentum, moves = rule[2].to(T), rule[2] != 0.0
    d = direction(p, g, rule[6], rule[4], T)
    b = tl.where(kept[1] != 0.0, momentum * kept[0] + (1.0 - rule[3]).to(T) * d, d)
    with_momentum = tl.where(rule[5] != 0.0, d + momentum * b, b)
    p -= rule[1].to(T) * tl.where(moves, with_momentum, d)
    filled = tl.where(moves, tl.full(p.shape, 1.0, T), kept[1])
    return p, tl.where(moves, b, kept[0]), filled, kept[2], kept[3]


@triton.jit
def adam(rule, p, g, kept, T: tl.constexpr):
    """kept: step, mean, square, the largest square (amsgrad)"""
    lr, beta1, beta2, decay, decoupled = rule[1], rule[2], rule[3], rule[5], rule[8] != 0.0
    count = kept[0] + 1.0
    step = count.to(tl.float64)
    p = tl.where(decoupled & (decay != 0.0), p * (1.0 - lr * decay).to(T), p)
    d = direction(p, g, rule[7], tl.where(decoupled, 0.0, decay), T)
    mean = lerp(kept[1], d, 1.0 - beta1, T)
    square = kept[2] * beta2.to(T) + (1.0 - beta2).to(T) * d * d
    amsgrad = rule[6] != 0.0
    largest = tl.where(amsgrad & ~(kept[3] >= square), square, kept[3])
    size = (lr / (1.0 - power(beta1, step))).to(T)
    correction = tl.sqrt(1.0 - power(beta2, step)).to(T)
    spread = ratio(root(tl.where(amsgrad, largest, square), T), correction, T)
    p -= ratio(size * mean, spread + rule[4].to(T), T)
    return p, count, mean, square, largest


@triton.jit
def asgd(rule, p, g, kept, T: tl.constexpr):
    """kept: step, eta, mu, average"""
    lr, lambd, single = rule[1], rule[2], rule[7]
    d = direction(p, g, rule[6], rule[5], T)
    count = kept[0] + 1.0
    step, eta = count.to(tl.float64), kept[1].to(tl.float64)
    p = p * (1.0 - lambd * eta).to(T)
    p -= kept[1] * d
    average = tl.where(kept[2] != 1.0, kept[3] + (p - kept[3]) * kept[2], p)
    eta = lr / power(1.0 + lambd * lr * step, rule[3])
    mu = 1.0 / tl.maximum(1.0, step - rule[4])
    return p, count, stored(eta, single).to(T), stored(mu, single).to(T), average


@triton.jit
def rprop(rule, p, g, kept, T: tl.constexpr):
    """kept: step, the direction before, size"""
    d = tl.where(rule[6] != 0.0, -g, g)
    sign = d * kept[1]
    size = kept[2] * tl.where(sign > 0.0, rule[3], tl.where(sign < 0.0, rule[2], 1.0)).to(T)
    d = tl.where(sign < 0.0, 0.0, d)
    low, high = rule[4].to(T), rule[5].to(T)
    size = tl.where(size < low, low, tl.where(size > high, high, size))
    p = tl.where(d > 0.0, p - size, tl.where(d < 0.0, p + size, p))
    return tl.where(d != d, d, p), kept[0] + 1.0, d, size, kept[3]


@triton.jit
def rmsprop(rule, p, g, kept, T: tl.constexpr):
    """kept: step, square, buffer, mean"""
    lr, alpha, momentum, centered = rule[1].to(T), rule[2], rule[5], rule[6] != 0.0
    d = direction(p, g, rule[7], rule[4], T)
    square = kept[1] * alpha.to(T) + (1.0 - alpha).to(T) * d * d
    mean = tl.where(centered, lerp(kept[3], d, 1.0 - alpha, T), kept[3])
    variance = tl.where(centered, square - mean * mean, square)
    move = ratio(d, root(variance, T) + rule[3].to(T), T)
    buffer = tl.where(momentum > 0.0, kept[2] * momentum.to(T) + move, kept[2])
    p -= lr * tl.where(momentum > 0.0, buffer, move)
    return p, kept[0] + 1.0, square, buffer, mean


@triton.jit
def adagrad(rule, p, g, kept, T: tl.constexpr):
    """kept: step, sum"""
    d = direction(p, g, rule[5], rule[3], T)
    count = kept[0] + 1.0
    total = kept[1] + d * d
    lr = rule[1] / (1.0 + (count.to(tl.float64) - 1.0) * rule[2])
    p -= ratio(lr.to(T) * d, root(total, T) + rule[4].to(T), T)
    return p, count, total, kept[2], kept[3]


@triton.jit
def adadelta(rule, p, g, kept, T: tl.constexpr):
    """kept: step, square, the square of moves"""
    rho, stay, eps = rule[2].to(T), (1.0 - rule[2]).to(T), rule[3].to(T)
    d = direction(p, g, rule[5], rule[4], T)
    square = kept[1] * rho + stay * d * d
    move = ratio(root(kept[2] + eps, T), root(square + eps, T), T) * d
    p -= rule[1].to(T) * move
    return p, kept[0] + 1.0, square, kept[2] * rho + stay * move * move, kept[3]


@triton.jit
def adamax(rule, p, g, kept, T: tl.constexpr):
    """kept: step, mean, largest"""
    beta1 = rule[2]
    count = kept[0] + 1.0
    d = direction(p, g, rule[6], rule[5], T)
    mean = lerp(kept[1], d, 1.0 - beta1, T)
    faded, now = kept[2] * rule[3].to(T), tl.abs(d) + rule[4].to(T)
    largest = tl.where((now >= faded) | (now != now), now, faded)
    size = (rule[1] / (1.0 - power(beta1, count.to(tl.float64)))).to(T)
    p -= ratio(size * mean, largest, T)
    return p, count, mean, largest, kept[3]


@triton.jit
def nadam_mu(rule, step):
    fade = tl.full([], 0.96, tl.float64)
    return rule[2] * (1.0 - 0.5 * power(fade, step * rule[6]))


@triton.jit
def nadam(rule, p, g, kept, T: tl.constexpr):
    """kept: step, the product of mu, mean, square"""
    lr, beta1, beta2, decay, decoupled = rule[1], rule[2], rule[3], rule[5], rule[8] != 0.0
    count = kept[0] + 1.0
    step = count.to(tl.float64)
    p = tl.where(decoupled & (decay != 0.0), p * (1.0 - lr * decay).to(T), p)
    d = direction(p, g, rule[7], tl.where(decoupled, 0.0, decay), T)
    mu, mu_next = nadam_mu(rule, step), nadam_mu(rule, step + 1.0)
    in_float = kept[1].to(tl.float32) * mu.to(tl.float32)  # the tensor's own arithmetic
    product = tl.where(rule[9] != 0.0, in_float.to(tl.float64), kept[1].to(tl.float64) * mu).to(T)
    now = product.to(tl.float64)
    mean = lerp(kept[2], d, 1.0 - beta1, T)
    square = kept[3] * beta2.to(T) + (1.0 - beta2).to(T) * d * d
    correction = (1.0 - power(beta2, step)).to(T)
    size = root(ratio(square, correction, T), T) + rule[4].to(T)
    p -= ratio((lr * (1.0 - mu) / (1.0 - now)).to(T) * d, size, T)
    p -= ratio((lr * mu_next / (1.0 - now * mu_next)).to(T) * mean, size, T)
    return p, count, product, mean, square


@triton.jit
def radam(rule, p, g, kept, T: tl.constexpr):
    """kept: step, mean, square"""
    lr, beta1, beta2, decay, decoupled = rule[1], rule[2], rule[3], rule[5], rule[7] != 0.0
    count = kept[0] + 1.0
    step = count.to(tl.float64)
    p = tl.where(decoupled & (decay != 0.0), p * (1.0 - lr * decay).to(T), p)
    d = direction(p, g, rule[6], tl.where(decoupled, 0.0, decay), T)
    mean = lerp(kept[1], d, 1.0 - beta1, T)
    square = kept[2] * beta2.to(T) + (1.0 - beta2).to(T) * d * d
    fade = power(beta2, step)
    correction = 1.0 - fade
    most = 2.0 / (1.0 - beta2) - 1.0
    rho = most - 2.0 * step * fade / correction
    move = ratio(mean, (1.0 - power(beta1, step)).to(T), T) * lr.to(T)
    rectified = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
    rectified = tl.sqrt(tl.where(rho > 5.0, rectified, 0.0)).to(T)
    scale = ratio(tl.sqrt(correction).to(T), root(square, T) + rule[4].to(T), T)
    adapted = move * scale * rectified
    return p - tl.where(rho > 5.0, adapted, move), count, mean, square, kept[3]


@triton.jit
def update(rule, p, g, kept, METHOD: tl.constexpr, T: tl.constexpr):
    """The new p and kept as one tuple; what no optimizer holds stays."""
    old_p, o, q, r, s = p.to(T), kept[0].to(T), kept[1].to(T), kept[2].to(T), kept[3].to(T)
    old, new = (o, q, r, s), (old_p, o, q, r, s)
    if METHOD == SGD:
        new = sgd(rule, old_p, g.to(T), old, T)
    elif METHOD == ADAM:
        new = adam(rule, old_p, g.to(T), old, T)
    elif METHOD == ASGD:
        new = asgd(rule, old_p, g.to(T), old, T)
    elif METHOD == RPROP:
        new = rprop(rule, old_p, g.to(T), old, T)
    elif METHOD == RMSPROP:
        new = rmsprop(rule, old_p, g.to(T), old, T)
    elif METHOD == ADAGRAD:
        new = adagrad(rule, old_p, g.to(T), old, T)
    elif METHOD == ADADELTA:
        new = adadelta(rule, old_p, g.to(T), old, T)
    elif METHOD == ADAMAX:
        new = adamax(rule, old_p, g.to(T), old, T)
    elif METHOD == NADAM:
        new = nadam(rule, old_p, g.to(T), old, T)
    elif METHOD == RADAM:
        new = radam(rule, old_p, g.to(T), old, T)
    owned = is_owned(rule)
    result = (tl.where(owned, new[0], old_p).to(tl.float64),)
    for i in tl.static_range(4):
        result = result + (tl.where(owned, new[1 + i], old[i]).to(tl.float64),)
    return result
