"""Which samples make which step: a pure function of seed, task, epoch and step, so any position can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tangentcl.data import Samples

Item = tuple[Any, int]


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part; equal parts give equal seeds on every platform.

    >>> derived_seed(0, "order", 1) == derived_seed(0, "order", 1) != derived_seed(0, "order", 2)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class BatchOrder:
    """The batches of one task, as every process sees them.

    An epoch is a random permutation of the ``n`` samples, cut into windows of ``batch_size * accumulate`` samples (one
    optimiser step), each window into batches, each batch dealt to the processes in turn. The last window of an epoch
    is short where the numbers do not divide; no sample is dropped or repeated.

    Args:
        n: number of samples.
        batch_size, accumulate: see `TrainingPlan`.
        seed, task: determine the permutations together with the epoch.
        rank, world: this process and how many there are.
    """

    def __init__(
        self, n: int, *, batch_size: int, accumulate: int, seed: int, task: int, rank: int = 0, world: int = 1
    ) -> None:
        self.n, self.batch_size, self.accumulate = n, batch_size, accumulate
        self.seed, self.task, self.rank, self.world = seed, task, rank, world
        self.steps_per_epoch = -(-n // (batch_size * accumulate))

    def permutation(self, epoch: int) -> Tensor:
        """Order of the samples in an epoch, ``[n]``."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.task, epoch))
        return torch.randperm(self.n, generator=generator)

    def window(self, permutation: Tensor, step: int) -> list[list[int]]:
        """Batches of optimiser step ``step`` of an epoch, before they are dealt to processes."""
        size = self.batch_size * self.accumulate
        chosen = permutation[step * size : (step + 1) * size].tolist()
        return [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]

    def share(self, batch: list[int]) -> list[int]:
        """This process's part of a batch. A process that would get nothing takes the first sample, at weight zero."""
        return batch[self.rank :: self.world] or batch[:1]

    def weight(self, batch: list[int], window: list[list[int]]) -> float:
        """Factor on this process's mean loss, so that the sum over batches and processes is the window's mean."""
        return len(batch[self.rank :: self.world]) / sum(len(b) for b in window)


class _EpochItems(Dataset[Item]):
    """Samples of one epoch; the augmentation of a sample depends on seed, task, epoch and sample alone."""

    def __init__(self, samples: Samples, seed: int, task: int, epoch: int) -> None:
        self.samples = samples
        self.key = derived_seed(seed, "augment", task, epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return self.samples.item(index, np.random.Generator(np.random.Philox(key=[self.key, index])))


def epoch_batches(
    samples: Samples, order: BatchOrder, epoch: int, *, start: int, workers: int
) -> Iterator[tuple[list[float], list[tuple[Any, Tensor]]]]:
    """Windows of an epoch from step ``start`` on: loss weights and collated batches ``(x, y)`` of this process.

    Args:
        workers: processes that prepare batches; the result does not depend on it.
    """
    permutation = order.permutation(epoch)
    windows = [order.window(permutation, step) for step in range(start, order.steps_per_epoch)]
    loader = DataLoader(
        _EpochItems(samples, order.seed, order.task, epoch),
        batch_sampler=[order.share(batch) for window in windows for batch in window],
        collate_fn=samples.collate,
        num_workers=workers,
        generator=torch.Generator(),  # its own, so that starting a loader leaves the global generator alone
    )
    batches = iter(loader)
    for window in windows:
        yield [order.weight(batch, window) for batch in window], [next(batches) for _ in window]
