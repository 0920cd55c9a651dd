"""Optimizers: the update of all parameters at once, each [P] padded.

Operation by operation as in torch.optim, in the precision of T; numbers that torch computes in
Python are in float64. rule: the method, and its options as `rules` names them; kept: the KEPT
numbers of a parameter. Rates of a step: numbers that torch keeps once per tensor, such as the count
of steps, and what follows from them.
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
def sgd_rates(rule, kept, T: tl.constexpr):
    """Whether this step fills the buffer."""
    filled = tl.where(rule[2] != 0.0, tl.full(kept[1].shape, 1.0, T), kept[1])
    return tl.where(kept[1] == 0.0, 1.0, 0.0), 0.0, 0.0, kept[0], filled, kept[2], kept[3]


@triton.jit
def sgd(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: buffer, whether it is filled.

    b = momentum b + (1 - dampening) d, at first b = d;
    p = p - lr (d | b | d + momentum b) for (momentum = 0 | momentum | nesterov).
    """
    momentum, moves = rule[2].to(T), rule[2] != 0.0
    d = direction(p, g, rule[6], rule[4], T)
    b = tl.where(rates[0] != 0.0, d, momentum * kept[0] + (1.0 - rule[3]).to(T) * d)
    with_momentum = tl.where(rule[5] != 0.0, d + momentum * b, b)
    p -= rule[1].to(T) * tl.where(moves, with_momentum, d)
    return p, tl.where(moves, b, kept[0]), kept[1], kept[2], kept[3]


@triton.jit
def adam_rates(rule, kept, T: tl.constexpr):
    count = kept[0] + 1.0
    step = count.to(tl.float64)
    size = rule[1] / (1.0 - power(rule[2], step))
    return size, tl.sqrt(1.0 - power(rule[3], step)), 0.0, count, kept[1], kept[2], kept[3]


@triton.jit
def adam(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, mean, square, the largest square (amsgrad)"""
    beta1, beta2, decay, decoupled = rule[2], rule[3], rule[5], rule[8] != 0.0
    p = tl.where(decoupled & (decay != 0.0), p * (1.0 - rule[1] * decay).to(T), p)
    d = direction(p, g, rule[7], tl.where(decoupled, 0.0, decay), T)
    mean = lerp(kept[1], d, 1.0 - beta1, T)
    square = kept[2] * beta2.to(T) + (1.0 - beta2).to(T) * d * d
    amsgrad = rule[6] != 0.0
    largest = tl.where(amsgrad, tl.where(kept[3] >= square, kept[3], square), kept[3])
    spread = ratio(root(tl.where(amsgrad, largest, square), T), rates[1].to(T), T)
    p -= ratio(rates[0].to(T) * mean, spread + rule[4].to(T), T)
    return p, kept[0], mean, square, largest


@triton.jit
def asgd_rates(rule, kept, T: tl.constexpr):
    lr, lambd, single = rule[1], rule[2], rule[7]
    count = kept[0] + 1.0
    step = count.to(tl.float64)
    eta = stored(lr / power(1.0 + lambd * lr * step, rule[3]), single).to(T)
    mu = stored(1.0 / tl.maximum(1.0, step - rule[4]), single).to(T)
    return kept[1].to(tl.float64), kept[2].to(tl.float64), 0.0, count, eta, mu, kept[3]


@triton.jit
def asgd(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, eta, mu, average"""
    d = direction(p, g, rule[6], rule[5], T)
    p = p * (1.0 - rule[2] * rates[0]).to(T)
    p -= rates[0].to(T) * d
    average = tl.where(rates[1] != 1.0, kept[3] + (p - kept[3]) * rates[1].to(T), p)
    return p, kept[0], kept[1], kept[2], average


@triton.jit
def count_alone(rule, kept, T: tl.constexpr):
    return 0.0, 0.0, 0.0, kept[0] + 1.0, kept[1], kept[2], kept[3]


@triton.jit
def rprop(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, the direction before, size"""
    d = tl.where(rule[6] != 0.0, -g, g)
    sign = d * kept[1]
    size = kept[2] * tl.where(sign > 0.0, rule[3], tl.where(sign < 0.0, rule[2], 1.0)).to(T)
    d = tl.where(sign < 0.0, 0.0, d)
    low, high = rule[4].to(T), rule[5].to(T)
    size = tl.where(size < low, low, tl.where(size > high, high, size))
    p = tl.where(d > 0.0, p - size, tl.where(d < 0.0, p + size, p))
    return tl.where(d != d, d, p), kept[0], d, size, kept[3]


@triton.jit
def rmsprop(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, square, buffer, mean"""
    lr, alpha, momentum, centered = rule[1].to(T), rule[2], rule[5], rule[6] != 0.0
    d = direction(p, g, rule[7], rule[4], T)
    square = kept[1] * alpha.to(T) + (1.0 - alpha).to(T) * d * d
    mean = tl.where(centered, lerp(kept[3], d, 1.0 - alpha, T), kept[3])
    variance = tl.where(centered, square - mean * mean, square)
    move = ratio(d, root(variance, T) + rule[3].to(T), T)
    buffer = tl.where(momentum > 0.0, kept[2] * momentum.to(T) + move, kept[2])
    p -= lr * tl.where(momentum > 0.0, buffer, move)
    return p, kept[0], square, buffer, mean


@triton.jit
def adagrad_rates(rule, kept, T: tl.constexpr):
    count = kept[0] + 1.0
    size = rule[1] / (1.0 + (count.to(tl.float64) - 1.0) * rule[2])
    return size, 0.0, 0.0, count, kept[1], kept[2], kept[3]


@triton.jit
def adagrad(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, sum"""
    d = direction(p, g, rule[5], rule[3], T)
    total = kept[1] + d * d
    p -= ratio(rates[0].to(T) * d, root(total, T) + rule[4].to(T), T)
    return p, kept[0], total, kept[2], kept[3]


@triton.jit
def adadelta(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, square, the square of moves"""
    rho, stay, eps = rule[2].to(T), (1.0 - rule[2]).to(T), rule[3].to(T)
    d = direction(p, g, rule[5], rule[4], T)
    square = kept[1] * rho + stay * d * d
    move = ratio(root(kept[2] + eps, T), root(square + eps, T), T) * d
    p -= rule[1].to(T) * move
    return p, kept[0], square, kept[2] * rho + stay * move * move, kept[3]


@triton.jit
def adamax_rates(rule, kept, T: tl.constexpr):
    count = kept[0] + 1.0
    size = rule[1] / (1.0 - power(rule[2], count.to(tl.float64)))
    return size, 0.0, 0.0, count, kept[1], kept[2], kept[3]


@triton.jit
def adamax(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, mean, largest"""
    d = direction(p, g, rule[6], rule[5], T)
    mean = lerp(kept[1], d, 1.0 - rule[2], T)
    faded, now = kept[2] * rule[3].to(T), tl.abs(d) + rule[4].to(T)
    largest = tl.where((now >= faded) | (now != now), now, faded)
    p -= ratio(rates[0].to(T) * mean, largest, T)
    return p, kept[0], mean, largest, kept[3]


@triton.jit
def nadam_mu(rule, step):
    fade = tl.full([], 0.96, tl.float64)
    return rule[2] * (1.0 - 0.5 * power(fade, step * rule[6]))


@triton.jit
def nadam_rates(rule, kept, T: tl.constexpr):
    lr, count = rule[1], kept[0] + 1.0
    step = count.to(tl.float64)
    mu, mu_next = nadam_mu(rule, step), nadam_mu(rule, step + 1.0)
    in_float = kept[1].to(tl.float32) * mu.to(tl.float32)  # the tensor's own arithmetic
    product = tl.where(rule[9] != 0.0, in_float.to(tl.float64), kept[1].to(tl.float64) * mu).to(T)
    now = product.to(tl.float64)
    of_gradient, of_mean = lr * (1.0 - mu) / (1.0 - now), lr * mu_next / (1.0 - now * mu_next)
    return of_gradient, of_mean, 1.0 - power(rule[3], step), count, product, kept[2], kept[3]


@triton.jit
def nadam(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, the product of mu, mean, square"""
    beta1, beta2, decay, decoupled = rule[2], rule[3], rule[5], rule[8] != 0.0
    p = tl.where(decoupled & (decay != 0.0), p * (1.0 - rule[1] * decay).to(T), p)
    d = direction(p, g, rule[7], tl.where(decoupled, 0.0, decay), T)
    mean = lerp(kept[2], d, 1.0 - beta1, T)
    square = kept[3] * beta2.to(T) + (1.0 - beta2).to(T) * d * d
    size = root(ratio(square, rates[2].to(T), T), T) + rule[4].to(T)
    p -= ratio(rates[0].to(T) * d, size, T)
    p -= ratio(rates[1].to(T) * mean, size, T)
    return p, kept[0], kept[1], mean, square


@triton.jit
def radam_rates(rule, kept, T: tl.constexpr):
    """The last is 0 while the step is not rectified."""
    count = kept[0] + 1.0
    step = count.to(tl.float64)
    fade = power(rule[3], step)
    correction = 1.0 - fade
    most = 2.0 / (1.0 - rule[3]) - 1.0
    rho = most - 2.0 * step * fade / correction
    rectified = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
    rectified = tl.sqrt(tl.where(rho > 5.0, rectified, 0.0))
    of_mean = 1.0 - power(rule[2], step)
    return of_mean, tl.sqrt(correction), rectified, count, kept[1], kept[2], kept[3]


@triton.jit
def radam(rule, rates, p, g, kept, T: tl.constexpr):
    """kept: step, mean, square"""
    lr, beta1, beta2, decay, decoupled = rule[1], rule[2], rule[3], rule[5], rule[7] != 0.0
    p = tl.where(decoupled & (decay != 0.0), p * (1.0 - lr * decay).to(T), p)
    d = direction(p, g, rule[6], tl.where(decoupled, 0.0, decay), T)
    mean = lerp(kept[1], d, 1.0 - beta1, T)
    square = kept[2] * beta2.to(T) + (1.0 - beta2).to(T) * d * d
    move = ratio(mean, rates[0].to(T), T) * lr.to(T)
    scale = ratio(rates[1].to(T), root(square, T) + rule[4].to(T), T)
    adapted = move * scale * rates[2].to(T)
    return p - tl.where(rates[2] != 0.0, adapted, move), kept[0], mean, square, kept[3]


@triton.jit
def advance(rule, kept, METHOD: tl.constexpr, T: tl.constexpr):
    """The three rates of a step, and the four numbers kept with those once per tensor advanced."""
    if METHOD == SGD:
        return sgd_rates(rule, kept, T)
    elif METHOD == ADAM:
        return adam_rates(rule, kept, T)
    elif METHOD == ASGD:
        return asgd_rates(rule, kept, T)
    elif METHOD == ADAGRAD:
        return adagrad_rates(rule, kept, T)
    elif METHOD == ADAMAX:
        return adamax_rates(rule, kept, T)
    elif METHOD == NADAM:
        return nadam_rates(rule, kept, T)
    elif METHOD == RADAM:
        return radam_rates(rule, kept, T)
    else:
        return count_alone(rule, kept, T)


@triton.jit
def move(rule, rates, p, g, kept, METHOD: tl.constexpr, T: tl.constexpr):
    """The new p and kept as one tuple, of a parameter that an optimizer holds."""
    if METHOD == SGD:
        return sgd(rule, rates, p, g, kept, T)
    elif METHOD == ADAM:
        return adam(rule, rates, p, g, kept, T)
    elif METHOD == ASGD:
        return asgd(rule, rates, p, g, kept, T)
    elif METHOD == RPROP:
        return rprop(rule, rates, p, g, kept, T)
    elif METHOD == RMSPROP:
        return rmsprop(rule, rates, p, g, kept, T)
    elif METHOD == ADAGRAD:
        return adagrad(rule, rates, p, g, kept, T)
    elif METHOD == ADADELTA:
        return adadelta(rule, rates, p, g, kept, T)
    elif METHOD == ADAMAX:
        return adamax(rule, rates, p, g, kept, T)
    elif METHOD == NADAM:
        return nadam(rule, rates, p, g, kept, T)
    elif METHOD == RADAM:
        return radam(rule, rates, p, g, kept, T)
    else:
        return p, kept[0], kept[1], kept[2], kept[3]


@triton.jit
def update(rule, p, g, kept, METHOD: tl.constexpr, T: tl.constexpr):
    """The new p and kept as one tuple; what no optimizer holds stays."""
    old_p, o, q, r, s = p.to(T), kept[0].to(T), kept[1].to(T), kept[2].to(T), kept[3].to(T)
    old = (o, q, r, s)
    ahead = advance(rule, old, METHOD, T)
    counted = (ahead[3], ahead[4], ahead[5], ahead[6])
    new = move(rule, (ahead[0], ahead[1], ahead[2]), old_p, g.to(T), counted, METHOD, T)
    owned = is_owned(rule)
    result = (tl.where(owned, new[0], old_p).to(tl.float64),)
    for i in tl.static_range(4):
        result = result + (tl.where(owned, new[1 + i], old[i]).to(tl.float64),)
    return result
