"""Drift of old outputs from moments of old features, when the old data are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.layer_moments import LayerForecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.forecast.streamed_forecast import moment_vulnerability
from tangentcl.forecast.trust import Trust
from tangentcl.forecast.vulnerability import Vulnerability

ROUNDING = 1e-12  # of the sum of squares: what a sketch may leave out and still count as exact
DRAWS = 4096  # samples per class of the Gaussian model; a standard error below 0.8 points


@dataclass(frozen=True)
class MomentForecast:
    r"""What training does to a linear head's outputs on old tasks, from moments alone: :math:`\|\Phi_o \delta_c\|^2`.

    For a frozen backbone exact where the stored second moments are; otherwise an estimate between two bounds that hold
    for any data. Means of each class are exact in either case. Accuracies rest on a model of the features, see
    `accuracy`.

    Where the features train too, all of it is an estimate. With features that move by :math:`A^\top \varphi` and a new
    head W, δ is the change of the head plus :math:`A W`, and ``layers`` are a proxy beside it.

    Attributes:
        moments: of the old tasks.
        change: δ, of the outputs as a linear function of the features before, float64 [d + 1, C].
        head: before training, float64 [d + 1, C].
        seen: outputs that count for the accuracy now.
        bias: whether the constant counts; without, the last rows of head and change are zero.
        energy: squared drift summed over a task's samples, per output, float64 [T, C].
        low, high: bounds on it, [T, C].
        residual: relative residual of the linear solve behind the change.
        notes: what is not exact, one sentence each.
        shift: the part of δ by features that move, [d + 1, C]; None where they stay.
        layers: how far the outputs of adapted layers move; None where nothing is known of them.
        trust: how far to believe the local model where features move, its gap that on the new samples; else None.
    """

    moments: tuple[TaskMoments, ...]
    change: Tensor = field(repr=False)
    head: Tensor = field(repr=False)
    seen: int
    bias: bool
    energy: Tensor
    low: Tensor
    high: Tensor
    residual: float = 0.0
    notes: tuple[str, ...] = ()
    shift: Tensor | None = field(default=None, repr=False)
    layers: LayerForecast | None = None
    trust: Trust | None = None

    @property
    def n(self) -> Tensor:
        """Samples of each task, int64 [T]."""
        return torch.tensor([task.n for task in self.moments])

    @property
    def exact(self) -> bool:
        """Whether the energies equal those of training up to rounding."""
        return not self.notes

    @property
    def mean_square(self) -> Tensor:
        """Mean over all old samples of the squared drift of each output, float64 [C]."""
        return self.energy.sum(dim=0) / self.n.sum()

    @property
    def rms(self) -> float:
        """Root of the mean over samples and outputs of the squared drift."""
        return float(self.mean_square.mean().sqrt())

    @property
    def head_rms(self) -> float:
        """The same for the change of the head alone, with features that stay where they are."""
        if self.shift is None:
            return self.rms
        energy = torch.stack([task.features.energy(self.change - self.shift) for task in self.moments])
        return float((energy.sum() / (self.n.sum() * energy.shape[1])).sqrt())

    @property
    def task_rms(self) -> Tensor:
        """The same for each task, float64 [T]."""
        return (self.energy.sum(dim=1) / (self.n * self.energy.shape[1])).sqrt()

    @cached_property
    def classes(self) -> Tensor:
        """Old classes, int64 [K]."""
        return torch.tensor(sorted({label for task in self.moments for label in task.sums}))

    @property
    def class_outputs(self) -> tuple[Tensor, Tensor]:
        """Mean outputs of each old class (now, after), exact, float64 [K, C]."""
        sums = torch.stack(
            [sum((t.sums[c] for t in self.moments if c in t.sums), torch.tensor(0.0)) for c in self.classes.tolist()]
        )
        means = sums / sums[:, -1:]
        return means @ self.head, means @ (self.head + self.change)

    @cached_property
    def vulnerability(self) -> Vulnerability:
        """Energy of the drift in the eigenspaces of the old kernel, found from the second moment.

        For sketches it is that of the matrix that stands for the second moment.
        """
        d = len(self.change) - (not self.bias)  # without a bias the constant is no feature of the kernel
        moment = sum((t.features.matrix()[:d, :d] for t in self.moments), torch.tensor(0.0))
        return moment_vulnerability(moment, self.change[:d], int(self.n.sum()))

    def vulnerable_rank(self, share: float = 0.95) -> int:
        """Fewest eigenspaces of the old kernel that hold this share of the drift's energy."""
        return self.vulnerability.rank(share)

    @cached_property
    def _per_task(self) -> list[tuple[Tensor, Tensor]]:
        """Accuracy on each class of each task (now, after)."""
        after = self.head + self.change
        return [(_gaussian(t, self.head[:, : self.seen]), _gaussian(t, after)) for t in self.moments]

    def accuracy(self) -> tuple[float, float]:
        r"""Estimated share of the old tasks' stored samples that are right (now, after).

        An approximation: outputs of class c of a task count as normal, with the exact mean and one covariance for all
        classes of the task, :math:`H^\top (\Phi^\top\Phi / n - \sum_c p_c \mu_c \mu_c^\top) H`; from a fixed draw.
        Moments are of training samples, and so are these accuracies: unseen samples do worse.
        """
        shares = torch.cat([t.counts for t in self.moments]).double() / self.n.sum()
        now, after = (torch.cat([pair[i] for pair in self._per_task]) for i in (0, 1))
        return float(shares @ now), float(shares @ after)

    def per_task(self) -> tuple[Tensor, Tensor]:
        """Estimated accuracy on each task (now, after), float64 [T]; see `accuracy`."""
        weights = [t.counts.double() / t.n for t in self.moments]
        now, after = (torch.stack([w @ pair[i] for w, pair in zip(weights, self._per_task)]) for i in (0, 1))
        return now, after

    def per_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """The old classes, int64 [K], and the estimated accuracy on each (now, after), float64 [K]; see `accuracy`."""
        now, after, counts = (torch.zeros(len(self.classes), dtype=torch.float64) for _ in range(3))
        for task, (before, later) in zip(self.moments, self._per_task):
            index = torch.searchsorted(self.classes, task.classes)
            counts[index] += task.counts
            now[index] += task.counts * before
            after[index] += task.counts * later
        return self.classes, now / counts, after / counts

    def to_dict(self) -> dict[str, Any]:
        """A summary in plain values."""
        now, after = self.accuracy()
        tasks = zip(self.moments, self.task_rms.tolist(), *(part.tolist() for part in self.per_task()))
        n_values = int(self.n.sum()) * self.energy.shape[1]
        return {
            "exact": self.exact,
            "notes": list(self.notes),
            "n_old": int(self.n.sum()),
            "drift_rms": self.rms,
            "head_rms": self.head_rms,
            "drift_rms_low": float((self.low.sum() / n_values).sqrt()),
            "drift_rms_high": float((self.high.sum() / n_values).sqrt()),
            "estimated_accuracy": {"now": now, "after": after},
            "tasks": [
                {"task": t.task, "name": t.name, "n": t.n, "drift_rms": rms, "now": before, "after": later}
                for t, rms, before, later in tasks
            ],
            "vulnerable_rank": {str(share): self.vulnerable_rank(share) for share in (0.9, 0.95, 0.99)},
            "n_spaces": len(self.vulnerability.values),
            "trust": None if self.trust is None else self.trust.to_dict(),
            "layers": None if self.layers is None else self.layers.to_dict(),
        }


def moment_forecast(
    moments: Sequence[TaskMoments],
    change: Tensor,
    head: Tensor,
    *,
    seen: int | None = None,
    residual: float = 0.0,
    notes: tuple[str, ...] = (),
) -> MomentForecast:
    """What a change of a linear head does to old tasks that left only moments.

    Args:
        moments: of the old tasks.
        change: [d, C], or [d + 1, C] with the bias last, as `Dynamics.displacement` gives it.
        head: before training, in the same shape.
        seen: outputs that count for the accuracy now; None = all.
        residual: of the solve behind the change; notes: why the change itself is not exact.

    Raises:
        DataError: no moments, shapes that do not fit, or old classes that are not among the first ``seen`` outputs.

    >>> task = TaskMoments.empty(2, sketch="exact")
    >>> task.add(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    >>> found = moment_forecast([task], torch.tensor([[0.0, 1.0], [0.5, 0.0]]), torch.eye(2))
    >>> found.mean_square, found.exact
    (tensor([0.5000, 0.5000], dtype=torch.float64), True)
    """
    if not moments or any(not task.n for task in moments):
        raise DataError("expected the moments of at least one old task, each with at least one sample")
    width = moments[0].features.d
    if change.ndim != 2 or change.shape != head.shape or any(task.features.d != width for task in moments):
        raise DataError(
            f"expected a head and its change of one shape for moments of one width, got {list(head.shape)}, "
            f"{list(change.shape)} and widths {sorted({task.features.d for task in moments})}"
        )
    bias = len(change) == width
    change, head = _with_bias(change, width), _with_bias(head, width)
    seen = head.shape[1] if seen is None else seen
    largest = max(label for task in moments for label in task.sums)
    if not largest < seen <= head.shape[1]:
        raise DataError(f"old classes go to {largest}; expected more than that and at most {head.shape[1]} as seen")
    energy = torch.stack([task.features.energy(change) for task in moments])
    ends = [task.features.bounds(change) for task in moments]
    low, high = (torch.stack([pair[i] for pair in ends]) for i in (0, 1))
    if any(task.features.shed > ROUNDING * task.features.total for task in moments):
        kept = ", ".join(sorted({f"{t.features.kind} (k = {getattr(t.features, 'k', width)})" for t in moments}))
        notes += (f"energies are estimates from sketches of the old features: {kept}",)
    return MomentForecast(tuple(moments), change, head, seen, bias, energy, low, high, residual, notes)


def _with_bias(matrix: Tensor, width: int) -> Tensor:
    matrix = matrix.detach().to("cpu", torch.float64)
    if len(matrix) == width - 1:
        return torch.cat([matrix, torch.zeros_like(matrix[:1])])
    if len(matrix) != width:
        raise DataError(f"moments of {width - 1} features do not fit a head of {len(matrix)} rows")
    return matrix


def _gaussian(task: TaskMoments, head: Tensor) -> Tensor:
    """Accuracy of a head [d + 1, C] on each class of a task, if outputs are normal, float64 [K]."""
    means = task.means @ head  # [K, C]
    between = (means.T * (task.counts.double() / task.n)) @ means
    spread = head.T @ (task.features.matrix() / task.n) @ head - between
    values, vectors = torch.linalg.eigh((spread + spread.T) / 2)
    draws = torch.randn(DRAWS, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    around = draws @ (vectors * values.clamp(min=0.0).sqrt()).T  # [DRAWS, C]
    right = [((around + mean).argmax(dim=1) == label).double().mean() for mean, label in zip(means, task.classes)]
    return torch.stack(right)
