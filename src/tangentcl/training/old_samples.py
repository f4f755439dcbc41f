"""Test samples of past tasks, all of them or some of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tangentcl.data import Samples, Task


@dataclass(frozen=True)
class OldSamples:
    """Samples of past tasks whose outputs are forecast.

    Attributes:
        samples: task after task.
        tasks: index of the task that each comes from, int64 [n].
        n_available: how many there are to choose from.
        note: which they are, in words.
    """

    samples: Samples
    tasks: NDArray[np.int64]
    n_available: int
    note: str


def old_samples(past: Sequence[Task], limit: int, seed: int) -> OldSamples:
    """At most ``limit`` test samples of past tasks, every class of every task in proportion.

    Args:
        past: tasks learned before, at least one.
        limit: how many to take.
        seed: of the draw within a class; nothing is drawn where all are taken.

    Raises:
        DataError: test samples under different transforms.
    """
    labels = np.concatenate([task.test.labels for task in past])
    tasks = np.concatenate([np.full(len(task.test), task.index, dtype=np.int64) for task in past])
    everything = Samples.concat([task.test for task in past])
    n = len(everything)
    if n <= limit:
        return OldSamples(everything, tasks, n, f"all {n} test samples of past tasks")
    groups = np.unique(np.stack([tasks, labels]), axis=1, return_inverse=True)[1].reshape(-1)  # [n]
    chosen = in_proportion(groups, limit, np.random.default_rng(seed))
    note = f"{limit} of {n} test samples of past tasks, drawn at random, every class in proportion"
    return OldSamples(everything.subset(chosen), tasks[chosen], n, note)


def in_proportion(groups: NDArray[np.int64], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of ``limit`` samples, int64 [limit] ascending: each group's share, rounded by largest remainder.

    Args:
        groups: number of each sample's group, from 0, [n] with n >= limit.

    >>> chosen = in_proportion(np.array([0] * 60 + [1] * 30 + [2] * 10), 10, np.random.default_rng(0))
    >>> np.bincount(np.searchsorted([60, 90], chosen, side="right")).tolist()
    [6, 3, 1]
    """
    sizes = np.bincount(groups)
    counts, left = np.divmod(limit * sizes, len(groups))
    counts[np.argsort(-left, kind="stable")[: limit - counts.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(groups == g))[:count] for g, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
