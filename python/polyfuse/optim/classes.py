"""torch's optimizers with a fused step, each with torch's arguments, state and results."""

from __future__ import annotations

import torch

from .step import FusedOptimizer


class SGD(FusedOptimizer, torch.optim.SGD):
    """Stochastic gradient descent, as `torch.optim.SGD`.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.

    Raises:
        ValueError: as torch does, for a negative lr or momentum, or nesterov without momentum.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> model = nn.Polynomial(2)
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    """


class Adam(FusedOptimizer, torch.optim.Adam):
    """Adam, as `torch.optim.Adam` (Kingma and Ba, 2014), with amsgrad and decoupled decay.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as in torch.

    Raises:
        ValueError: as torch does, for a negative lr, eps or weight_decay, or betas outside [0, 1).

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.Adam(nn.Polynomial(2).parameters(), lr=0.01)
    """


class AdamW(FusedOptimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay, as `torch.optim.AdamW` (Loshchilov and Hutter, 2017).

    Args, raises: as `Adam`.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.AdamW(nn.Polynomial(2).parameters(), lr=0.01)
    """


class ASGD(FusedOptimizer, torch.optim.ASGD):
    """Averaged SGD, as `torch.optim.ASGD` (Polyak and Juditsky, 1992).

    Args:
        params, lr, lambd, alpha, t0, weight_decay, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.ASGD(nn.Polynomial(2).parameters(), lr=0.01)
    """


class Rprop(FusedOptimizer, torch.optim.Rprop):
    """Resilient backpropagation, as `torch.optim.Rprop` (Riedmiller and Braun, 1993).

    Args:
        params, lr, etas, step_sizes, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.Rprop(nn.Polynomial(2).parameters(), lr=0.01)
    """


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """RMSprop, as `torch.optim.RMSprop` (Tieleman and Hinton, 2012; centred as in Graves, 2013).

    Args:
        params, lr, alpha, eps, weight_decay, momentum, centered, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.RMSprop(nn.Polynomial(2).parameters(), lr=0.01)
    """


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """Adagrad, as `torch.optim.Adagrad` (Duchi, Hazan and Singer, 2011).

    Args:
        params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.Adagrad(nn.Polynomial(2).parameters(), lr=0.1)
    """


class Adadelta(FusedOptimizer, torch.optim.Adadelta):
    """Adadelta, as `torch.optim.Adadelta` (Zeiler, 2012).

    Args:
        params, lr, rho, eps, weight_decay, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.Adadelta(nn.Polynomial(2).parameters())
    """


class Adamax(FusedOptimizer, torch.optim.Adamax):
    """Adamax, as `torch.optim.Adamax` (Kingma and Ba, 2014, section 7.1).

    Args:
        params, lr, betas, eps, weight_decay, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.Adamax(nn.Polynomial(2).parameters(), lr=0.01)
    """


class NAdam(FusedOptimizer, torch.optim.NAdam):
    """Adam with Nesterov momentum, as `torch.optim.NAdam` (Dozat, 2016).

    Args:
        params, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize: as
            in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.NAdam(nn.Polynomial(2).parameters(), lr=0.01)
    """


class RAdam(FusedOptimizer, torch.optim.RAdam):
    """Rectified Adam, as `torch.optim.RAdam` (Liu and others, 2019).

    Args:
        params, lr, betas, eps, weight_decay, decoupled_weight_decay, maximize: as in torch.

    Example:
        >>> import polyfuse.nn as nn, polyfuse.optim as optim
        >>> optimizer = optim.RAdam(nn.Polynomial(2).parameters(), lr=0.01)
    """


FUSED = (SGD, Adam, AdamW, ASGD, Rprop, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam)
