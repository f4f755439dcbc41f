"""Old and new samples, whether they come from a stream or as a batch of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tangentcl.data import Samples
from tangentcl.errors import DataError
from tangentcl.kernels.batch import n_samples, tensors, with_tensors
from tangentcl.processes import rank_and_world

LOOKED_AT = 3  # samples whose views are compared to tell whether a transform draws


@dataclass(frozen=True)
class Inputs:
    """Samples that can be read in batches, in any order.

    Attributes:
        source: samples under a transform, or one batch of tensors.
        labels: int64 [n], values [n, C], or None.
    """

    source: Any
    labels: Tensor | None

    @classmethod
    def of(cls, given: Any, name: str) -> Inputs:
        """Samples, a batch, or a pair (batch, labels).

        Raises:
            DataError: neither, no sample, or labels that do not fit.
        """
        if isinstance(given, Samples):
            if not len(given):
                raise DataError(f"{name} holds no sample")
            return cls(given, torch.from_numpy(given.labels).clone())
        batch, labels = given, None
        if isinstance(given, tuple) and len(given) == 2 and (given[1] is None or isinstance(given[1], Tensor)):
            batch, labels = given
        try:
            n = n_samples(batch)
        except DataError as error:
            raise DataError(f"{name}: {error}; or a pair (batch, labels), or Samples") from error
        if labels is not None and len(labels) != n:
            raise DataError(f"{name} has {n} samples and {len(labels)} labels")
        return cls(batch, None if labels is None else labels.detach().cpu())

    def __len__(self) -> int:
        return len(self.source) if isinstance(self.source, Samples) else n_samples(self.source)

    def take(self, positions: Tensor) -> Any:
        """The batch of some samples, without random views."""
        if isinstance(self.source, Samples):
            chosen = self.source.subset(positions.numpy())
            return chosen.collate([chosen.item(i, None) for i in range(len(chosen))])[0]
        return with_tensors(self.source, [t[positions.to(t.device)] for t in tensors(self.source)])

    def order(self) -> Tensor:
        """Positions from short to long texts, so that batches pad little; anything else in order."""
        if isinstance(self.source, Samples):
            return torch.from_numpy(self.source.short_first())
        return torch.arange(len(self))

    def parts(self, size: int, positions: Tensor | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Batches of at most ``size`` samples with their positions."""
        for chosen in (self.order() if positions is None else positions).split(size):
            yield self.take(chosen), chosen

    @property
    def is_random(self) -> bool:
        """Whether the transform draws: items under two generators differ, on a few samples."""
        if not isinstance(self.source, Samples):
            return False
        for index in range(min(LOOKED_AT, len(self))):
            first, second = (self.source.item(index, np.random.default_rng(seed))[0] for seed in (0, 1))
            if not _same(first, second):
                return True
        return False


def mapped(function: Callable[[Any], Tensor], inputs: Inputs, size: int) -> Tensor:
    """``function`` of every sample in batches of ``size``, [n, ...] on the CPU, in the order of the samples.

    When ``torch.distributed`` is initialised each process computes its share, and every process gets all.
    """
    rank, world = rank_and_world()
    order = inputs.order()
    own = order[rank::world]
    result: Tensor | None = None
    for x, positions in inputs.parts(size, own if len(own) else order[:1]):
        values = function(x).detach()
        if result is None:
            result = values.new_zeros(len(inputs), *values.shape[1:])
        result[positions.to(result.device)] = values if len(own) else torch.zeros_like(values)
    assert result is not None
    if world > 1:
        dist.all_reduce(result)
    return result.cpu()


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(_same(first[key], second[key]) for key in first)
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))
