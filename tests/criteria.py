"""Every fused criterion but squared error, with options and targets of its domain."""

from typing import NamedTuple

import torch


def real(n, generator):
    return torch.randn(n, generator=generator, dtype=torch.float64)


def signs(n, generator):
    return torch.randn(n, generator=generator, dtype=torch.float64).sign()


def bits(n, generator):
    return torch.randint(0, 2, (n,), generator=generator).double()


def counts(n, generator):
    return torch.randint(0, 6, (n,), generator=generator).double()


def shares(n, generator):
    return torch.rand(n, generator=generator, dtype=torch.float64) * (1 - bits(n, generator) / 2)


class Case(NamedTuple):
    module: str
    function: str
    options: dict
    target: object  # (n, generator) -> float64 [n]
    positive: bool = False  # predictions are to be
    reductions: tuple = ("mean", "sum")

    def arguments(self, dtype):
        tensors = ("weight", "pos_weight")
        return {
            k: torch.tensor(v, dtype=dtype) if k in tensors else v for k, v in self.options.items()
        }

    def make(self, nn, dtype, reduction="mean"):
        return getattr(nn, self.module)(**self.arguments(dtype), reduction=reduction)

    def call(self, dtype, reduction="mean"):
        function = getattr(torch.nn.functional, self.function)
        return lambda p, y: function(p, y, reduction=reduction, **self.arguments(dtype))


BCE = "binary_cross_entropy_with_logits"
CASES = {
    "l1": Case("L1Loss", "l1_loss", {}, real),
    "smooth_l1": Case("SmoothL1Loss", "smooth_l1_loss", {"beta": 0.5}, real),
    "smooth_l1-0": Case("SmoothL1Loss", "smooth_l1_loss", {"beta": 0.0}, real),
    "huber": Case("HuberLoss", "huber_loss", {"delta": 0.7}, real),
    "soft_margin": Case("SoftMarginLoss", "soft_margin_loss", {}, signs),
    "bce": Case("BCEWithLogitsLoss", BCE, {}, bits),
    "bce-soft": Case("BCEWithLogitsLoss", BCE, {}, shares),
    "bce-weighted": Case(
        "BCEWithLogitsLoss", BCE, {"weight": 0.25, "pos_weight": [3.0]}, bits
    ),
    "poisson": Case("PoissonNLLLoss", "poisson_nll_loss", {}, counts),
    "poisson-full": Case("PoissonNLLLoss", "poisson_nll_loss", {"full": True}, counts),
    "poisson-rate": Case(
        "PoissonNLLLoss", "poisson_nll_loss", {"log_input": False, "full": True, "eps": 1e-3},
        counts, positive=True,
    ),
    "kl": Case("KLDivLoss", "kl_div", {}, shares, reductions=("mean", "sum", "batchmean")),
    "kl-log": Case(
        "KLDivLoss", "kl_div", {"log_target": True}, real, reductions=("batchmean", "sum")
    ),
}  # fmt: skip
BY_REDUCTION = [(name, reduction) for name, case in CASES.items() for reduction in case.reductions]
KL_MEAN_WARNS = "ignore:reduction. 'mean' divides:UserWarning"


class Quadratic(torch.nn.Module):
    """What polyfuse traces, and torch runs."""

    def __init__(self, dtype):
        super().__init__()
        self.c = torch.nn.Parameter(torch.tensor([1.5, -0.5, 0.75], dtype=dtype))

    def forward(self, x):
        return self.c[0] + self.c[1] * x + self.c[2] * x**2


def data(case, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    return x.to(dtype), case.target(n, generator).to(dtype)


def loop(model, criterion, optimizer, x, y, epochs):
    """Losses of a training loop."""
    losses = []
    for _ in range(epochs):
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
