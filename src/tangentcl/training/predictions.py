"""Predicted labels of one stage, task by task, in one array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray


class Predictions(Mapping[int, NDArray[np.int64]]):
    """Task -> predicted stream labels of its test samples. One array for all: T stages have T (T + 1) / 2 such tasks.

    >>> found = Predictions({0: np.array([1, 0]), 2: np.array([3])})
    >>> list(found), found[0].tolist(), found.all.tolist()
    ([0, 2], [1, 0], [1, 0, 3])
    """

    def __init__(self, found: Mapping[int, NDArray[np.int64]]) -> None:
        self._tasks = np.array(list(found), dtype=np.int64)
        self._edges = np.cumsum([0, *(len(labels) for labels in found.values())])
        self.all = np.concatenate([np.zeros(0, dtype=np.int64), *found.values()])

    def __getitem__(self, task: int) -> NDArray[np.int64]:
        place = np.flatnonzero(self._tasks == task)
        if not len(place):
            raise KeyError(task)
        return self.all[self._edges[place[0]] : self._edges[place[0] + 1]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._tasks.tolist())

    def __len__(self) -> int:
        return len(self._tasks)
