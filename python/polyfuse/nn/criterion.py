"""Criteria: torch's own, subclassed so that the loss of a deferred prediction is deferred."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling

from .. import _C
from ..criteria import kind_of, of_module
from ..deferred import Prediction, objective
from ..watching import has_hooks


def is_torchs(criterion: torch.nn.Module) -> bool:
    """Whether calling the criterion does what torch's own does, and nothing besides."""
    kind = kind_of(type(criterion))
    return (
        kind is not None
        and type(criterion).forward is kind.module.forward
        and "forward" not in criterion.__dict__
        and not has_hooks(criterion)
    )


class Criterion(torch.nn.Module):
    """What polyfuse's criteria add to torch's."""

    @_C.fast("objective")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return super().__call__(*args, **kwargs)
        if len(args) > 1 and not kwargs and type(args[0]) is Prediction and is_torchs(self):
            found = of_module(self, args[0], *args[2:])
            if not isinstance(found, str):
                criterion, mean = found
                module = self if len(args) == 2 else None
                loss = objective(args[0], args[1], criterion, mean, module)
                if loss is not None:
                    return loss
        return super().__call__(*args, **kwargs)


class MSELoss(Criterion, torch.nn.MSELoss):
    """Squared error, as `torch.nn.MSELoss`; mean and sum of a deferred prediction are fused.

    Args:
        reduction: "mean", "sum" or "none".

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.MSELoss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        2.0
    """


class L1Loss(Criterion, torch.nn.L1Loss):
    """Absolute error, as `torch.nn.L1Loss`; mean and sum of a deferred prediction are fused.

    Args:
        reduction: "mean", "sum" or "none".

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.L1Loss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        1.0
    """


class SmoothL1Loss(Criterion, torch.nn.SmoothL1Loss):
    """Squared error below beta, absolute error beyond, as `torch.nn.SmoothL1Loss`; fused likewise.

    Args:
        reduction: "mean", "sum" or "none".
        beta: error up to which the loss is ``r^2 / (2 beta)``, and ``|r| - beta / 2`` beyond; >= 0.

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.SmoothL1Loss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        0.75
    """


class HuberLoss(Criterion, torch.nn.HuberLoss):
    """Huber's loss, delta times that of `SmoothL1Loss`, as `torch.nn.HuberLoss`; fused likewise.

    Args:
        reduction: "mean", "sum" or "none".
        delta: error up to which the loss is ``r^2 / 2``, and ``delta (|r| - delta / 2)`` beyond;
            > 0.

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Source: Huber, Robust estimation of a location parameter (1964).

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.HuberLoss(delta=2.0)(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])).item()
        2.0
    """


class SoftMarginLoss(Criterion, torch.nn.SoftMarginLoss):
    """Logistic loss log(1 + exp(-target input)), as `torch.nn.SoftMarginLoss`; fused likewise.

    Args:
        reduction: "mean", "sum" or "none".

    Shapes: input and target, 1 or -1, of one shape; the loss is a scalar, or has that shape for
    "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> round(nn.SoftMarginLoss()(torch.tensor([0.0]), torch.tensor([1.0])).item(), 3)
        0.693
    """


class BCEWithLogitsLoss(Criterion, torch.nn.BCEWithLogitsLoss):
    """Binary cross entropy of sigmoid(input), as `torch.nn.BCEWithLogitsLoss`; fused likewise.

    Args:
        weight: of the loss; fused where it has one element or, in the training loop on CPUs, one
            for every sample.
        reduction: "mean", "sum" or "none".
        pos_weight: of the positive samples; fused where it has one element or, in `polyfuse.fit`,
            one for every output.

    Shapes: input and target, from 0 to 1, of one shape; the loss is a scalar, or has that shape
    for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> round(nn.BCEWithLogitsLoss()(torch.tensor([0.0]), torch.tensor([1.0])).item(), 3)
        0.693
    """


class PoissonNLLLoss(Criterion, torch.nn.PoissonNLLLoss):
    """Negative log likelihood of counts, as `torch.nn.PoissonNLLLoss`; fused likewise.

    Args:
        log_input: whether the input is the logarithm of the rate.
        full: whether Stirling's approximation of log(target!) is added.
        eps: added to a rate before its logarithm is taken.
        reduction: "mean", "sum" or "none".

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.PoissonNLLLoss()(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 4.0])).item()
        1.0
    """


class KLDivLoss(Criterion, torch.nn.KLDivLoss):
    """Kullback-Leibler divergence from a log input, as `torch.nn.KLDivLoss`; fused likewise.

    Args:
        reduction: "batchmean" (the sum over the number of rows), "sum", "mean" or "none".
        log_target: whether the target is a logarithm as well.

    Shapes: input and target of one shape; the loss is a scalar, or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.KLDivLoss(reduction="sum")(torch.tensor([-1.0, -2.0]), torch.ones(2)).item()
        3.0
    """


class GaussianNLLLoss(Criterion, torch.nn.GaussianNLLLoss):
    """Gaussian negative log likelihood, as `torch.nn.GaussianNLLLoss`.

    In the training loop, mean and sum of a deferred prediction are fused where the variance is one
    number, or a tensor of one element that needs no gradient; `polyfuse.fit` and the step of
    `polyfuse.fuse` take the square roots of the variances as ``sigma=``.

    Args:
        full: whether the constant log(2 pi) / 2 is added.
        eps: the least variance.
        reduction: "mean", "sum" or "none".

    Shapes: input, target and, unless it is a number, variance of one shape; the loss is a scalar,
    or has that shape for "none".

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> nn.GaussianNLLLoss()(torch.tensor([1.0]), torch.tensor([4.0]), 1.0).item()
        4.5
    """


class CrossEntropyLoss(Criterion, torch.nn.CrossEntropyLoss):
    """Cross entropy of softmax(input), as `torch.nn.CrossEntropyLoss`.

    Mean and sum of the deferred prediction of a `Polynomial` of several outputs are fused.

    Args:
        weight: of the classes, [C].
        ignore_index: the class whose samples are left out.
        reduction: "mean", "sum" or "none".
        label_smoothing: share of every target that goes to all classes alike, from 0 to 1.

    Shapes: input [N, C]; target [N], classes in int64, or [N, C], probabilities; the loss is a
    scalar, or [N] for "none".

    Raises:
        IndexError: at the latest when the loss is looked at or goes backward, for a class out of
            range.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> model = nn.Polynomial(1, outputs=2)
        >>> loss = nn.CrossEntropyLoss()(model(torch.tensor([0.0, 1.0])), torch.tensor([0, 1]))
        >>> round(loss.item(), 3)
        0.693
    """


CRITERIA = (
    MSELoss, L1Loss, SmoothL1Loss, HuberLoss, SoftMarginLoss, BCEWithLogitsLoss, PoissonNLLLoss,
    KLDivLoss, GaussianNLLLoss, CrossEntropyLoss,
)  # fmt: skip
