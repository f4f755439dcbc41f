"""What a forecast says: outputs now, their drift, and what follows for accuracy, samples, classes and eigenmodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.vulnerability import Vulnerability, vulnerability
from tangentcl.kernels import FeatureKernel
from tangentcl.linalg import KroneckerIdentity, Spectrum, gram_spectrum


@dataclass(frozen=True)
class Forecast:
    """Outputs on old samples now, and how training on the new samples will move them.

    Accuracy "now" is over the first ``seen`` outputs, those that exist before the new task; accuracy "after" is over
    all C, so that samples lost to new classes count as lost.

    Attributes:
        outputs: now, [n, C].
        drift: after minus now, [n, C].
        features: of the old samples, [n, d]; bias: whether the head has one. The old kernel is theirs.
        seen: outputs that count now.
        exact: whether the forecast equals training up to rounding.
        residual: relative residual of the linear solve behind it; 0 where nothing was solved.
        notes: why it is not exact, one sentence each.
        labels: of the old samples, int64 [n], or None.
    """

    outputs: Tensor
    drift: Tensor
    features: Tensor = field(repr=False)
    bias: bool
    seen: int
    exact: bool = True
    residual: float = 0.0
    notes: tuple[str, ...] = ()
    labels: Tensor | None = field(default=None, repr=False)

    @property
    def after(self) -> Tensor:
        """Outputs after training, [n, C]."""
        return self.outputs + self.drift

    def accuracy(self, labels: Tensor | None = None) -> tuple[float, float]:
        """Share of old samples that are right (now, after).

        Args:
            labels: int64 [n]; None = those the forecast was made with.

        Raises:
            DataError: no labels, or labels that do not fit.
        """
        now, after = self._correct(labels)
        return float(now.double().mean()), float(after.double().mean())

    def per_class(self, labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The classes that occur, int64 [K], and the accuracy on each (now, after), float64 [K]."""
        classes, index = self._labels(labels).unique(return_inverse=True)
        counts = torch.bincount(index)
        now, after = (torch.bincount(index, weights=c.double()) / counts for c in self._correct(labels))
        return classes, now, after

    def margins(self, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output of the true class minus the largest other (now, after), [n]; negative where wrong."""
        chosen = self._labels(labels)
        return _margin(self.outputs[:, : self.seen], chosen), _margin(self.after, chosen)

    def flips(self, labels: Tensor | None = None) -> Tensor:
        """Samples that are right now and will be wrong, bool [n]."""
        now, after = self._correct(labels)
        return now & ~after

    def samples_at_risk(self, k: int = 10, labels: Tensor | None = None) -> Tensor:
        """Positions of the samples that are right now and end with the lowest margins, lowest first, int64 [<= k]."""
        now, _ = self._correct(labels)
        _, margin = self.margins(labels)
        right = now.nonzero().flatten()
        return right[margin[right].argsort(stable=True)][:k]

    def classes_at_risk(self, k: int = 5, labels: Tensor | None = None) -> Tensor:
        """Classes by predicted loss of accuracy, then of mean margin, worst first, int64 [<= k]."""
        classes, now, after = self.per_class(labels)
        index = torch.searchsorted(classes, self._labels(labels))
        before, later = self.margins(labels)
        lost = torch.bincount(index, weights=(before - later).double()) / torch.bincount(index)
        by_margin = lost.argsort(descending=True, stable=True)
        return classes[by_margin[(now - after)[by_margin].argsort(descending=True, stable=True)]][:k]

    @property
    def kernel(self) -> KroneckerIdentity:
        """The old task's tangent kernel, an operator on vectors [n C]."""
        return FeatureKernel(self.outputs.shape[1], bias=self.bias)(self.features)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the old kernel of one output; all C have the same. O(n d min(n, d)) when first asked for."""
        return gram_spectrum(self.features, float(self.bias))

    @cached_property
    def vulnerability(self) -> Vulnerability:
        """Energy of the drift in the eigenspaces of the old kernel."""
        return vulnerability(self.spectrum, self.drift)

    def vulnerable_rank(self, share: float = 0.95) -> int:
        """Fewest eigenspaces of the old kernel that hold this share of the drift's energy."""
        return self.vulnerability.rank(share)

    def _correct(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        chosen = self._labels(labels)
        now = self.outputs[:, : self.seen].argmax(dim=1)
        return now == chosen, self.after.argmax(dim=1) == chosen

    def _labels(self, labels: Tensor | None) -> Tensor:
        chosen = self.labels if labels is None else labels
        if chosen is None:
            raise DataError("this forecast was made without labels of the old samples. Pass labels, int64 [n].")
        if chosen.shape != self.outputs.shape[:1] or chosen.is_floating_point():
            raise DataError(f"expected {len(self.outputs)} whole numbers as labels, got {list(chosen.shape)}")
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.seen:
            raise DataError(f"labels of old samples must be outputs from 0 to {self.seen - 1}, got {int(chosen.max())}")
        return chosen.to(self.outputs.device)


def _margin(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape[1] < 2:
        raise DataError("margins need at least two outputs")
    own = outputs.gather(1, labels[:, None])[:, 0]
    return own - outputs.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
