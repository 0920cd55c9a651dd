"""Statistics of cross entropy: classes share one likelihood, that of multinomial logistic
regression, whose parameters are those of each class less those of class 0.

Source: Agresti, Categorical Data Analysis (2013), chapter 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .criteria import Criterion
from .evidence import at_home, size_of
from .linear import Source, versions_of
from .report import refuse_travel
from .statistics import Likelihood, Prediction, Samples


class ClassLikelihood(Likelihood):
    """Of `CrossEntropyLoss`. The coefficients are determined up to what all classes share:
    parameters are those of each class less those of class 0."""

    def __init__(self, of: EvidenceOfClasses):
        v, y = of.samples()
        at = torch.from_numpy(of.params)  # [K, C]
        base, contrast = at[:, :1], at[:, 1:] - at[:, :1]

        def logits(differences: torch.Tensor) -> torch.Tensor:
            return v @ torch.cat([base, base + differences.reshape(contrast.shape)], 1)

        def loss(differences: torch.Tensor) -> torch.Tensor:
            return of.criterion.value(logits(differences), y, False)

        n_classes = at.shape[1]
        information: Any = torch.autograd.functional.hessian(loss, contrast.reshape(-1))
        reason, covariance = None, np.full(information.shape, np.nan)
        inverse, failed = torch.linalg.inv_ex(information)
        if failed or not (inverse.isfinite().all() and (inverse.diagonal() > 0).all()):
            reason = "the second derivative of the loss is not positive definite"
        else:
            covariance = inverse.numpy()
        names = [f"class {c}: {name}" for c in range(1, n_classes) for name in of.names()]
        by_class = np.arange(contrast.numel()).reshape(contrast.shape).T.reshape(-1)
        params = contrast.reshape(-1).numpy()[by_class]

        def scores() -> np.ndarray:
            z = logits(contrast).requires_grad_()
            (slopes,) = torch.autograd.grad(of.criterion.value(z, y, False), z)
            each = slopes[:, 1:, None] * v[:, None]  # [N, C - 1, K]
            return each.reshape(len(v), -1).numpy()

        super().__init__(
            names, params, list(range(len(params))), covariance[np.ix_(by_class, by_class)], reason,
            self._slopes_of(of), lambda z: z, of.given, len(v), -loss(contrast.reshape(-1)).item(),
            scores,
        )  # fmt: skip

    @staticmethod
    def _slopes_of(of: EvidenceOfClasses) -> Any:
        """Of N of x: d probability / d parameter [N, C, P], and the probabilities [N, C]."""

        def rows(x: Any) -> tuple[np.ndarray, np.ndarray]:
            v = of.columns(np.asarray(x, np.float64)).numpy()
            p = torch.softmax(torch.from_numpy(v @ of.params), 1).numpy()
            own = np.eye(p.shape[1])[:, 1:] - p[:, None, 1:]  # [N, C, C - 1]
            each = (p[..., None] * own)[..., None] * v[:, None, None]
            return each.reshape(*p.shape, -1), p

        return rows

    def predict(self, x: Any, level: float = 0.95) -> Prediction:
        """The probability of each class at N of x, with its band, all [N, C]. Needs scipy."""
        rows, mean = self._rows(x)
        errors = np.sqrt(np.einsum("ncp,pq,ncq->nc", rows, self.covariance, rows))
        half = self._quantile(level) * errors
        return Prediction(mean, errors, (mean - half, mean + half), None)

    def _robust(self, kind: str) -> np.ndarray:
        scores = self._scores()
        factor = self.n / (self.n - len(self.free)) if kind == "HC1" else 1.0
        return factor * self.covariance @ (scores.T @ scores) @ self.covariance


@dataclass
class EvidenceOfClasses:
    """What they are computed from."""

    source: Source
    y: torch.Tensor  # [N], classes, or [N, C], probabilities
    params: np.ndarray  # [K, C], as the fit left them
    criterion: Criterion
    versions: tuple[int | None, int | None]

    @classmethod
    def of(
        cls, source: Source, y: torch.Tensor, criterion: Criterion, params: np.ndarray
    ) -> EvidenceOfClasses:
        return cls(source, y, params, criterion, versions_of(source.x, y))

    def columns(self, x: Any) -> torch.Tensor:
        """[N, K] at x as the model takes it."""
        x = torch.as_tensor(x).double().reshape(-1, *self.source.x.shape[1:])
        assert self.source.columns is not None
        return self.source.columns(x).reshape(len(x), -1)

    def names(self) -> list[str]:
        """Of the terms."""
        return self.source.names or [f"coefficients[{k}]" for k in range(len(self.params))]

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The terms [N, K] and y of those that count."""
        if versions_of(self.source.x, self.y) != self.versions:
            raise RuntimeError("x or y: changed in place since the fit, whose statistics need them")
        x, y = self.source.x.detach().cpu(), self.y.detach().cpu()
        if y.ndim == 1:
            keep = y != dict(self.criterion.options)["ignore_index"]
            return self.columns(x[keep]), y[keep]
        return self.columns(x), y.double()

    def given(self) -> Samples:
        """With y as probabilities [N, C]."""
        _, y = self.samples()
        x, kept = self.source.x.detach().cpu().double(), self.y.detach().cpu()
        if y.ndim == 1:
            x = x[kept != dict(self.criterion.options)["ignore_index"]]
            y = torch.nn.functional.one_hot(y, self.params.shape[1]).double()
        return Samples(x.numpy(), y.numpy(), np.ones(len(y)))

    def statistics(self) -> ClassLikelihood:
        return ClassLikelihood(self)

    def travelling(self) -> EvidenceOfClasses | str:
        """The same on its own, to be pickled; or why it is not."""
        if versions_of(self.source.x, self.y) != self.versions:
            return "statistics: x or y was changed in place before the result was pickled"
        if reason := refuse_travel(size_of(self.source.x, self.y)):
            return reason
        if reason := self.source.refuse_pickle():
            return reason
        source = self.source._replace(x=at_home(self.source.x))
        return replace(self, source=source, y=at_home(self.y))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.versions = versions_of(self.source.x, self.y)
