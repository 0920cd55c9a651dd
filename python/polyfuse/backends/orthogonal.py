"""The least-squares optimum of every fit of a batch in plain PyTorch: Forsythe's (1957), by monic
polynomials p_(k+1) = (t - mean_k) p_k - step_k p_(k-1) that are orthogonal on the points, of which
y has slope_k; as in csrc/core/orthogonal.h."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..bases import recurrence_of
from .batched import Fits

# As in csrc/core.
DETERMINED, ROUNDING, LEAST_EXPLAINED = 1e-26, 2.0**-110, 1e-30


class Orthogonal(NamedTuple):
    """The polynomials of B fits, of t = (x - centre) scale."""

    mean: torch.Tensor  # [K, B]
    step: torch.Tensor  # [K, B]
    slope: torch.Tensor  # [K, B], 0 where the points do not determine the polynomial
    square: torch.Tensor  # [K, B], of its values at the points
    rank: torch.Tensor  # [B]
    rest: torch.Tensor  # [B], sum of squared residuals
    centre: torch.Tensor  # [B]
    scale: torch.Tensor  # [B]

    @property
    def explained(self) -> torch.Tensor:
        """Of the squares of y, by each polynomial [K, B]."""
        return self.slope**2 * self.square

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, terms: int) -> Orthogonal:
        """x, y, w: [N, B] float64, 0 where w is."""
        counts = w != 0
        low = torch.where(counts, x, torch.inf).amin(0)
        high = torch.where(counts, x, -torch.inf).amax(0)
        width = torch.where(high > low, high - low, 1.0)
        centre, scale = torch.where(high < low, 0.0, 0.5 * low + 0.5 * high), 1 / width
        t = torch.where(counts, (x - centre) * scale, 0.0)
        total = w.sum(0)
        now, before, left = torch.ones_like(t), torch.zeros_like(t), y
        former, variance, least = (torch.zeros_like(total) for _ in range(3))
        determined = torch.ones_like(total, dtype=torch.bool)
        rows: list[tuple[torch.Tensor, ...]] = []
        for k in range(terms):
            of_now = w * now
            square = (of_now * now).sum(0)
            if k == 1:
                variance = square * former
                least = DETERMINED * (square + rows[0][0] ** 2 * total)
            elif k > 1:
                least = (DETERMINED * total * variance if k == 2 else least) * variance
            determined = determined & ~(square <= least)
            per_square = torch.where(determined, 1 / square, 0.0)
            mean, step = (of_now * now * t).sum(0) * per_square, square * former
            slope = (of_now * left).sum(0) * per_square
            rows.append((mean, step, slope, torch.where(determined, square, 0.0), determined))
            left = left - slope * now
            now, before, former = (t - mean) * now - step * before, now, per_square
        means, steps, slopes, squares, ranks = (torch.stack(r) for r in zip(*rows, strict=True))
        rest = (w * left * left).sum(0)
        return cls(means, steps, slopes, squares, ranks.sum(0), rest, centre, scale)

    def series(self, fits: Fits) -> torch.Tensor:
        """The polynomials in the terms of the model's basis: [K, K, B], a row for each."""
        terms = len(self.mean)
        alpha, beta, gamma = torch.tensor(
            recurrence_of(fits.basis, terms), device=self.mean.device
        )[..., None]  # fmt: skip
        per_u, offset = self.scale / fits.scale, (fits.shift - self.centre) * self.scale
        now, before = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        now[0] = 1.0
        rows = []
        for k in range(terms):
            rows.append(now)
            # u phi_j = (phi_(j+1) - beta_j phi_j - gamma_j phi_(j-1)) / alpha_j
            shares = now / alpha
            times_u = -beta * shares
            times_u[1:] += shares[:-1]
            times_u[:-1] -= (gamma * shares)[1:]
            following = per_u * times_u + (offset - self.mean[k]) * now - self.step[k] * before
            now, before = following, now
        return torch.stack(rows)

    def degree(self, count: torch.Tensor, bic: bool) -> torch.Tensor:
        """That of least AICc or BIC [B]; count: samples [B]."""
        of_each = self.explained
        above = of_each.flip(0).cumsum(0).flip(0)
        squares = torch.cat([above[1:], torch.zeros_like(above[:1])]) + self.rest
        least = (ROUNDING * (above[0] + self.rest)).clamp(min=torch.finfo(torch.float64).tiny)
        k = torch.arange(len(above), device=above.device)[:, None]
        score = count * (torch.maximum(squares, least) / count).log()
        if bic:
            score = score + (k + 1) * count.log()
        else:
            correction = 2 * (k + 1) * count / (count - (k + 2))
            score = score + torch.where(count <= k + 2, torch.inf, correction)
        return torch.where(k < self.rank, score, torch.inf).nan_to_num(torch.inf).argmin(0)
