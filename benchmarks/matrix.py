"""The import-swap loop for every fused optimizer and criterion, beside eager and compiled torch.

python benchmarks/matrix.py [--quick] [--out benchmarks/results/NAME.json]

At 9 points every pair against eager PyTorch; at 10 million every criterion with SGD against a
torch.compile'd loss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyfuse as pf
import torch
from polyfuse import workload
from polyfuse.optim.classes import FUSED
from run import header, pretty

SIGNS, COUNTS, CLASSES = "signs", "counts", "classes"  # what targets a criterion takes
CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "MSELoss": ("", {}),
    "L1Loss": ("", {}),
    "SmoothL1Loss": ("", {"beta": 0.5}),
    "HuberLoss": ("", {"delta": 0.5}),
    "SoftMarginLoss": (SIGNS, {}),
    "BCEWithLogitsLoss": (COUNTS, {}),
    "PoissonNLLLoss": (COUNTS, {}),
    "KLDivLoss": (COUNTS, {"reduction": "batchmean"}),
    "CrossEntropyLoss": (CLASSES, {}),
}


class Logits(torch.nn.Module):
    """Three quadratics, of torch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = torch.nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(-1)
        return (self.coefficients[2] * x + self.coefficients[1]) * x + self.coefficients[0]


def make_model(nn: Any, kind: str) -> Any:
    if kind != CLASSES:
        return workload.make_model(nn)
    return nn.Polynomial(2, outputs=3) if nn is pf.nn else Logits()


def data(kind: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(-1, 1, n)
    y = torch.sin(3 * x)
    if kind == CLASSES:
        return x, (y > -0.5).long() + (y > 0.5).long()
    if kind:
        y = (y > 0).float()
    return x, 2 * y - 1 if kind == SIGNS else y


def seconds_a_step(call: Callable[[], Any], steps: int) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) / steps


def loop(nn: Any, optim: Any, optimizer: str, criterion: str, n: int) -> Callable[[int], Any]:
    kind, options = CRITERIA[criterion]
    x, y = data(kind, n)
    model = make_model(nn, kind)
    loss = getattr(nn, criterion)(**options)
    stepper = getattr(optim, optimizer)(model.parameters(), lr=1e-4)
    return lambda steps: workload.loop(model, loss, stepper, x, y, steps)


def compiled(criterion: str, n: int) -> Callable[[int], Any]:
    kind, options = CRITERIA[criterion]
    x, y = data(kind, n)
    model = make_model(torch.nn, kind)
    function = getattr(torch.nn, criterion)(**options)
    torch._dynamo.reset()  # it gives up on a function that it has compiled for eight criteria
    loss = torch.compile(lambda x, y: function(model(x), y))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()

    return run


def compare(ours: Callable[[int], Any], theirs: Callable[[int], Any], steps: tuple[int, int],
            rounds: int) -> dict[str, float]:  # fmt: skip
    ours(3), theirs(3)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for contestant, count, into in zip((ours, theirs), steps, times, strict=True):
            time.sleep(0.05)  # the last contestant's idle threads spin for a while
            into.append(seconds_a_step(lambda c=contestant, k=count: c(k), count))  # type: ignore[misc]
    mine, peer = (np.array(t) for t in times)
    return {"polyfuse": float(np.median(mine)), "peer": float(np.median(peer)),
            "ratio": float(np.median(peer / mine))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a smoke test")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    report: dict[str, Any] = {**header(args.quick), "small": {}, "large": {}}
    steps, rounds = ((20, 5), 1) if args.quick else ((1000, 100), 5)
    optimizers = [c.__name__ for c in FUSED]
    print(f"times eager PyTorch, 9 points\n{'':20}" + "".join(f"{o:>10}" for o in optimizers))
    for criterion in CRITERIA:
        row = {}
        for name in optimizers:
            swap, eager = (
                loop(nn, optim, name, criterion, 9)
                for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim))
            )
            row[name] = compare(swap, eager, steps, rounds)
        report["small"][criterion] = row
        print(f"{criterion:20}" + "".join(f"{r['ratio']:>9.1f}x" for r in row.values()))
    n = 100_000 if args.quick else 10_000_000
    print(f"\na step with SGD, n = {n:,}\n{'':20}{'polyfuse':>12}{'compiled':>12}")
    for criterion in CRITERIA:
        swap = loop(pf.nn, pf.optim, "SGD", criterion, n)
        result = compare(swap, compiled(criterion, n), (3, 3), 1 if args.quick else 5)
        report["large"][criterion] = result
        print(
            f"{criterion:20}{pretty(result['polyfuse']):>12}{pretty(result['peer']):>12}"
            f"{result['ratio']:>9.2f}x"
        )
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
