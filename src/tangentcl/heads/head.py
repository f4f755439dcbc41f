"""What every closed-form head can do: learn a task in one pass, merge, unlearn, and say beforehand what will change."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import ParamSpec, Self

from tangentcl.errors import DataError, ModelError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class HeadForecast:
    """Scores of old samples before an update, and what the update will add to them.

    Attributes:
        outputs: scores now over the classes after the update, [n, C]; 0 for a class that is not there yet.
        drift: their change, [n, C].
    """

    outputs: Tensor
    drift: Tensor

    def accuracy(self, labels: Tensor, known: int) -> tuple[float, float]:
        """Share of samples that are right now, among the ``known`` classes there are, and after the update."""
        labels = labels.to(self.outputs.device)
        now = self.outputs[:, :known].argmax(1) == labels
        after = (self.outputs + self.drift).argmax(1) == labels
        return float(now.double().mean()), float(after.double().mean())


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a head without gradients and outside autocast: sums in bf16 would lose all that they promise."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        head = args[0]
        assert isinstance(head, AnalyticHead)
        with torch.no_grad(), torch.autocast(head.counts.device.type, enabled=False):
            return method(*args, **kwargs)

    return wrapped


class AnalyticHead(nn.Module, ABC):
    """A classifier over fixed features, made of sums over samples: no gradient, no epoch, no stored sample.

    Classes are appended as their labels arrive; a class without samples scores minus infinity. A state dict loads into
    a head of the same settings that was grown to the same number of classes, whatever it has seen.

    Args:
        width: of a feature, d.

    Shapes: features [n, d], labels int64 [n] from 0, scores [n, C].
    """

    counts: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ModelError(f"the width of a feature must be at least 1, got {width}.")
        self.width = width
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    @abstractmethod
    def _append(self, n_new: int) -> None:
        """Room for ``n_new`` more classes."""

    @abstractmethod
    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        """Add checked samples (``sign`` 1), or take them out (-1). The counts are up to date already."""

    @abstractmethod
    def _take_in(self, other: Self) -> None:
        """Add what another head of the same settings and number of classes holds."""

    @abstractmethod
    def _scores(self, features: Tensor) -> Tensor:
        """Of all classes, [n, C]."""

    @property
    def n_outputs(self) -> int:
        return len(self.counts)

    @property
    def state_bytes(self) -> int:
        """What is kept between tasks, in bytes."""
        return sum(v.numel() * v.element_size() for v in self.state_dict().values() if isinstance(v, Tensor))

    def grow(self, n_outputs: int) -> Self:
        """Append classes without samples until there are ``n_outputs``. Raises ModelError for fewer than there are."""
        n_new = n_outputs - self.n_outputs
        if n_new < 0:
            raise ModelError(f"a head grows and never shrinks: it has {self.n_outputs} outputs, {n_outputs} asked for.")
        if n_new:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(n_new)])
            self._append(n_new)
        return self

    @in_full_precision
    def fit_task(self, features: Tensor, labels: Tensor) -> Self:
        """Learn samples; new labels append classes.

        Raises:
            DataError: wrong shapes, no sample, a number that is not finite, a negative label.
        """
        features, labels = self._checked(features, labels)
        self.grow(max(self.n_outputs, int(labels.max()) + 1))
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        self._absorb(features, labels, 1)
        return self

    @in_full_precision
    def forget(self, features: Tensor, labels: Tensor) -> Self:
        """Unlearn samples that were learned: what remains is what a head would be that never saw them.

        Raises:
            DataError: as `fit_task`, or more samples of a class than were learned.
            ModelError: a head that cannot take anything out.
        """
        features, labels = self._checked(features, labels)
        n = torch.bincount(labels, minlength=self.n_outputs)
        known = torch.cat([self.counts, self.counts.new_zeros(len(n) - self.n_outputs)])
        if bool((n > known).any()):
            label = int((n > known).nonzero()[0])
            raise DataError(
                f"class {label} was learned from {int(known[label])} samples, {int(n[label])} are to be forgotten."
            )
        self.counts -= n
        self._absorb(features, labels, -1)
        return self

    @in_full_precision
    def merge(self, other: Self) -> Self:
        """Learn what another head of the same settings has learned, without its samples; ``other`` stays as it is.

        Raises:
            ModelError: another kind, width, or settings.
        """
        if type(other) is not type(self) or other.width != self.width or other.settings() != self.settings():
            raise ModelError(
                f"only heads of one kind and the same settings can be merged: {type(self).__name__} "
                f"{self.settings()} and {type(other).__name__} {getattr(other, 'settings', dict)()}."
            )
        self.grow(max(self.n_outputs, other.n_outputs))
        if other.n_outputs < self.n_outputs:
            other = copy.deepcopy(other).grow(self.n_outputs)
        before = self.counts.clone()
        self.counts += other.counts.to(self.counts)
        try:
            self._take_in(other)
        except ModelError:
            self.counts = before
            raise
        return self

    @in_full_precision
    def predict(self, features: Tensor) -> Tensor:
        """Scores [n, C], in float32 at least; the class is the arg max.

        Raises:
            DataError: features of another width.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise DataError(f"expected features [n, {self.width}], got {list(features.shape)}.")
        if features.dtype in (torch.bfloat16, torch.float16):
            features = features.float()
        scores = self._scores(features)
        return scores.masked_fill(self.counts == 0, -torch.inf)

    def forward(self, features: Tensor) -> Tensor:
        return self.predict(features)

    @in_full_precision
    def forecast(self, old: Tensor, new: Tensor, labels: Tensor) -> HeadForecast:
        """What learning new samples would do to the scores of old ones. Nothing is learned.

        A closed-form update costs no more than a forecast of it would: it is made on a copy, and so the forecast is
        exact whatever the head decides on the way (a strength chosen anew, a rank cut).

        Args:
            old: features [n, d]. new: features [m, d], labels: theirs [m].

        Raises:
            DataError: as `fit_task`.
        """
        trial = copy.deepcopy(self).fit_task(new, labels)
        after, now = trial.predict(old), self.predict(old)
        outputs = after.new_zeros(after.shape)
        outputs[:, : self.n_outputs] = now.where(now.isfinite(), 0)
        return HeadForecast(outputs, after.where(after.isfinite(), 0) - outputs)

    def settings(self) -> dict[str, Any]:
        """What two heads must have in common to be merged."""
        return {}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in {"width": self.width, **self.settings()}.items())

    def _checked(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if features.ndim != 2 or features.shape[1] != self.width or labels.shape != features.shape[:1]:
            raise DataError(
                f"expected features [n, {self.width}] and labels [n], got {list(features.shape)} and "
                f"{list(labels.shape)}."
            )
        if not len(labels):
            raise DataError("there is no sample to learn: features and labels are empty.")
        if labels.dtype not in (torch.int64, torch.int32) or int(labels.min()) < 0:
            raise DataError(f"labels must be whole numbers from 0, got {labels.dtype} from {labels.min().item()}.")
        bad = (~features.isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(features)} features are not finite; the first is that of sample {bad[0]}."
            )
        if features.dtype in (torch.bfloat16, torch.float16):
            features = features.float()
        device = self.counts.device
        return features.detach().to(device), labels.to(device, torch.int64)


class FittedShapes(nn.Module):
    """A module with buffers whose shapes depend on what was seen; loading a state dict gives them its shapes."""

    free: tuple[str, ...] = ()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in self.free:
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor):
                setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
