"""Samples with their outputs, the forecast of their drift, and the drift that came true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tangentcl.data import Task
from tangentcl.training.forecast_quality import Quality, drift_quality, roc_auc
from tangentcl.training.old_samples import OldSamples

When = Literal["now", "predicted", "real"]


@dataclass(frozen=True)
class Outlook:
    """Outputs of some samples now, as predicted and, once the task is learned, as they are.

    A sample is right when the output of its class is the largest of those that compete: all, or in task-incremental
    evaluation those of its own task; "now" only outputs that exist before the new task.

    Attributes:
        samples: which.
        outputs: scores of ``method.predict`` before training, float32 [n, C].
        drift: forecast of their change, float32 [n, C].
        competing: outputs that compete for each sample, bool [n, C].
        seen: outputs that exist before the new task.
        real_drift: change of the scores, float32 [n, C]; None before the task is learned.
    """

    samples: OldSamples
    outputs: Tensor
    drift: Tensor
    competing: Tensor
    seen: int
    real_drift: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """Class of each sample, int64 [n]."""
        return torch.from_numpy(self.samples.samples.labels.copy())

    def learned(self, scores: Tensor) -> Outlook:
        """With the truth beside the forecast.

        Args:
            scores: of ``method.predict`` after training, [n, C].
        """
        return replace(self, real_drift=scores - self.outputs)

    def correct(self, when: When) -> Tensor:
        """Whether each sample is right, bool [n]."""
        return self._competing(when).argmax(dim=1) == self.labels

    def margins(self, when: When) -> Tensor:
        """Output of the true class minus the largest other that competes, [n]; infinite where there is no other."""
        scores, own = self._competing(when), self.labels[:, None]
        return scores.gather(1, own)[:, 0] - scores.scatter(1, own, -torch.inf).amax(dim=1)

    def accuracy(self, when: When) -> float:
        """Share of samples that are right."""
        return float(self.correct(when).double().mean())

    def band(self, error: float) -> tuple[float, float]:
        r"""Lowest and highest accuracy after training if the drift is off by a share ``error`` of itself.

        A sample's drift :math:`\hat D_i` is then off by :math:`\epsilon\|\hat D_i\|`. Spread evenly over C outputs
        it moves the margin by :math:`\epsilon\|\hat D_i\|\sqrt{2/C}`: all samples to the bad side, or to the good one.
        """
        predicted, margin = self.accuracy("predicted"), self.margins("predicted")
        room = error * self.drift.norm(dim=1) * (2 / self.drift.shape[1]) ** 0.5
        low, high = (float((margin + side * room > 0).double().mean()) for side in (-1, 1))
        return min(low, predicted), max(high, predicted)

    def lost(self, when: When) -> Tensor:
        """Samples that are right now and will be wrong, or became wrong, bool [n]."""
        return self.correct("now") & ~self.correct(when)

    def at_risk(self, k: int) -> Tensor:
        """Positions of samples that are right now, by predicted margin, lowest first, int64 [<= k]."""
        margin = self.margins("predicted")
        right = (self.correct("now") & margin.isfinite()).nonzero().flatten()
        return right[margin[right].argsort(stable=True)][:k]

    def quality(self) -> Quality | None:
        """Forecast against truth; None before the task is learned."""
        if self.real_drift is None:
            return None
        right, lost = self.correct("now"), self.lost("real")
        return Quality(
            *drift_quality(self.drift, self.real_drift),
            accuracy_error=self.accuracy("predicted") - self.accuracy("real"),
            flip_auc=roc_auc(-self.margins("predicted")[right], lost[right]),
        )

    def _competing(self, when: When) -> Tensor:
        if when == "now":
            exists = torch.arange(self.outputs.shape[1]) < self.seen
            return self.outputs.masked_fill(~(self.competing & exists), -torch.inf)
        drift = self.drift if when == "predicted" else self.real_drift
        assert drift is not None, "asked for the truth before training"
        return (self.outputs + drift).masked_fill(~self.competing, -torch.inf)


def competing_outputs(tasks: Sequence[Task], samples: OldSamples, n_outputs: int, *, per_task: bool) -> Tensor:
    """Outputs that compete for each sample, bool [n, C].

    Args:
        tasks: that the samples come from.
        per_task: whether only the classes of a sample's own task do.
    """
    if not per_task:
        return torch.ones(len(samples.tasks), n_outputs, dtype=torch.bool)
    found = torch.zeros(len(samples.tasks), n_outputs, dtype=torch.bool)
    for task in tasks:
        rows = torch.from_numpy(samples.tasks == task.index).nonzero()
        found[rows, torch.tensor(task.classes)] = True
    return found
