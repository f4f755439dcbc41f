"""What a forecast says: outputs now, their drift, and what follows for accuracy, samples, classes and eigenmodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast import verdicts
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.old_kernel import Mode, OldKernel
from tangentcl.forecast.trust import Trust
from tangentcl.forecast.vulnerability import Vulnerability


@dataclass(frozen=True)
class Cost:
    """What a forecast took.

    Attributes:
        seconds: of wall time.
        forward_passes: of single samples through the network, a backward pass counted as one.
    """

    seconds: float = 0.0
    forward_passes: float = 0.0


@dataclass(frozen=True)
class Origin:
    """What a forecast is of.

    Attributes:
        old: the old samples.
        outputs: ``outputs(model, batch) -> [n, C]``.
        head: name in the model of the linear layer that makes the outputs; None where there is none.
        parameters: values of what trains as training will leave it, by name in the model.
    """

    old: Inputs
    outputs: Callable[[Any, Any], Tensor]
    head: str | None
    parameters: Mapping[str, Tensor]


@dataclass(frozen=True)
class Forecast:
    """Outputs on old samples now, and how training on the new samples will move them.

    Accuracy "now" is over the first ``seen`` outputs, those that exist before the new task; accuracy "after" is over
    all C, so that samples lost to new classes count as lost.

    Attributes:
        outputs: now, [n, C].
        drift: after minus now, [n, C].
        seen: outputs that count now.
        old_kernel: of the old samples, or of some of them; None where it was not computed.
        form: "exact" (linear head), "bilinear" or "ntk" (see `tangentcl.forecast.prepare_forecast`).
        exact: whether the forecast equals training up to rounding.
        residual: relative residual of the linear solve behind it; 0 where nothing was solved.
        notes: why it is not exact, one sentence each.
        labels: of the old samples, int64 [n], or None.
        trust: how far to believe a forecast that is local; None for an exact one.
        cost: of the forecast.
        origin: old samples and displacement that it is of; None where only features were given.
    """

    outputs: Tensor
    drift: Tensor
    seen: int
    old_kernel: OldKernel | None = field(default=None, repr=False)
    form: str = "exact"
    exact: bool = True
    residual: float = 0.0
    notes: tuple[str, ...] = ()
    labels: Tensor | None = field(default=None, repr=False)
    trust: Trust | None = None
    cost: Cost = field(default_factory=Cost)
    origin: Origin | None = field(default=None, repr=False)

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
        return verdicts.per_class(self._labels(labels), *self._correct(labels))

    def margins(self, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output of the true class minus the largest other (now, after), [n]; negative where wrong."""
        chosen = self._labels(labels)
        return verdicts.margin(self.outputs[:, : self.seen], chosen), verdicts.margin(self.after, chosen)

    def flips(self, labels: Tensor | None = None) -> Tensor:
        """Samples that are right now and will be wrong, bool [n]."""
        now, after = self._correct(labels)
        return now & ~after

    def samples_at_risk(self, k: int = 10, labels: Tensor | None = None) -> Tensor:
        """Positions of the samples that are right now and end with the lowest margins, lowest first, int64 [<= k]."""
        return verdicts.samples_at_risk(self._correct(labels)[0], self.margins(labels)[1], k)

    def classes_at_risk(self, k: int = 5, labels: Tensor | None = None) -> Tensor:
        """Classes by predicted loss of accuracy, then of mean margin, worst first, int64 [<= k]."""
        return verdicts.classes_at_risk(self._labels(labels), self._correct(labels), self.margins(labels), k)

    @property
    def mode_samples(self) -> Tensor:
        """Positions of the old samples whose kernel the modes are of, int64 [m]."""
        return self._old_kernel().positions

    @cached_property
    def vulnerability(self) -> Vulnerability:
        """Energy of the drift in the eigenspaces of the old kernel. A linear head's is decomposed when first asked."""
        return self._old_kernel().vulnerability(self.drift)

    def modes(self, k: int = 5) -> list[Mode]:
        """The eigenspaces of the old kernel that hold most of the drift, with the samples that they load on."""
        return self._old_kernel().modes(self.drift, k)

    def vulnerable_rank(self, share: float = 0.95) -> int:
        """Fewest eigenspaces of the old kernel that hold this share of the drift's energy."""
        return self.vulnerability.rank(share)

    def subset(self, positions: Tensor | Sequence[int]) -> Forecast:
        """The forecast of some of the old samples; without the kernel, which is that of all."""
        chosen = torch.as_tensor(positions, dtype=torch.int64, device=self.outputs.device)
        labels = None if self.labels is None else self.labels[chosen.to(self.labels.device)]
        return replace(self, outputs=self.outputs[chosen], drift=self.drift[chosen], labels=labels, old_kernel=None)

    @property
    def sentence(self) -> str:
        """How far to believe it, in words."""
        if self.trust is not None:
            return self.trust.sentence
        if self.exact:
            return "Exact: it equals training up to rounding."
        return f"Exact but for this: {'; '.join(self.notes)}."

    def to_dict(self) -> dict[str, Any]:
        """A summary in plain values: sizes, drift, trust and cost; accuracies where labels are known."""
        n, n_outputs = self.outputs.shape
        found: dict[str, Any] = {
            "form": self.form,
            "exact": self.exact,
            "n_old": n,
            "n_outputs": n_outputs,
            "drift_rms": float(self.drift.double().square().mean().sqrt()),
            "residual": self.residual,
            "notes": list(self.notes),
            "sentence": self.sentence,
            "trust": None if self.trust is None else self.trust.to_dict(),
            "cost": asdict(self.cost),
        }
        if self.labels is not None:
            now, after = self.accuracy()
            found |= {"accuracy_now": now, "accuracy_after": after, "flips": int(self.flips().sum())}
        if self.old_kernel is not None:
            found["vulnerable_rank"] = {str(share): self.vulnerable_rank(share) for share in (0.9, 0.95, 0.99)}
        return found

    def _old_kernel(self) -> OldKernel:
        if self.old_kernel is None:
            raise DataError(
                "this forecast has no kernel of its old samples: it is a part of one, or made without modes."
            )
        return self.old_kernel

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
