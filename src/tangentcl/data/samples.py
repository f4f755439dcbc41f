"""Samples: a view on a table under a transform, the data set that training and evaluation see."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tangentcl.data.inputs import Chained
from tangentcl.data.table import Table
from tangentcl.errors import DataError


class Transform(Protocol):
    """Turns raw samples into what a backbone eats; the same interface for images, text and arrays."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Any:
        """One raw sample -> one item; random only through ``rng``, and without it not random at all."""

    def collate(self, items: list[Any]) -> Any:
        """Items -> the batch the backbone eats."""

    def describe(self) -> dict[str, Any]:
        """What a record keeps of the transform, as JSON values."""


class Samples(torch.utils.data.Dataset):
    """Some samples of a table with their labels in the stream's numbering, under a transform.

    Works in a ``torch.utils.data.DataLoader`` with ``collate_fn=samples.collate`` and any number of workers.

    Args:
        table: where the raw samples are.
        positions: which of them, int64 [n]; None = all.
        labels: their labels in the stream, int64 [n]; None = the table's own.
        transform: None gives raw samples; such samples can be looked at, but not batched.

    >>> table = Table(np.eye(3), np.array([0, 1, 2]), np.arange(3))
    >>> from tangentcl.data.transforms import ArrayTransform
    >>> samples = Samples(table, np.array([2, 0]), transform=ArrayTransform())
    >>> x, y = next(samples.batches(2))
    >>> x.shape, y.tolist()
    (torch.Size([2, 3]), [2, 0])
    """

    def __init__(
        self,
        table: Table,
        positions: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.table = table
        self.positions = np.arange(len(table)) if positions is None else np.asarray(positions, dtype=np.int64)
        self.labels = table.labels[self.positions] if labels is None else np.asarray(labels, dtype=np.int64)
        if len(self.labels) != len(self.positions):
            raise DataError(
                f"Expected one label per position, got {len(self.positions)} positions and {len(self.labels)} labels."
            )
        self.transform = transform
        # Reading one integer of an array.array is several times faster than of a numpy array.
        self._positions = array("q", self.positions.tobytes())
        self._labels = array("q", self.labels.tobytes())

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.item(index, None)

    def item(self, index: int, rng: np.random.Generator | None) -> tuple[Any, int]:
        """Sample ``index`` under the transform and its label; ``rng`` drives random crops and flips."""
        raw = self.table.inputs[self._positions[index]]
        return (raw if self.transform is None else self.transform(raw, rng)), self._labels[index]

    def collate(self, items: Sequence[tuple[Any, int]]) -> tuple[Any, Tensor]:
        """Items with labels -> (batch the backbone eats, labels [B])."""
        if self.transform is None:
            raise DataError(
                "These samples have no transform, so they cannot be batched. "
                "Try stream.with_transforms(backbone.train_transform, backbone.eval_transform)."
            )
        return self.transform.collate([item for item, _ in items]), torch.tensor([label for _, label in items])

    def batches(self, batch_size: int) -> Iterator[tuple[Any, Tensor]]:
        """All samples in order without randomness, as (batch, labels [B]); the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield self.collate([self.item(i, None) for i in range(start, stop)])

    def short_first(self) -> np.ndarray:
        """Positions [n] of texts from short to long, so that batches pad little; anything else in order."""
        inputs = self.table.inputs
        if not len(self) or not isinstance(inputs[self._positions[0]], str):
            return np.arange(len(self))
        return np.argsort([len(inputs[i]) for i in self._positions], kind="stable").astype(np.int64)

    def subset(self, positions: np.ndarray | Sequence[int]) -> Samples:
        """The samples at these positions of this view."""
        chosen = np.asarray(positions, dtype=np.int64)
        return Samples(self.table, self.positions[chosen], self.labels[chosen], self.transform)

    def with_transform(self, transform: Transform | None) -> Samples:
        """The same samples under another transform."""
        return Samples(self.table, self.positions, self.labels, transform)

    @property
    def ids(self) -> np.ndarray:
        """Unique name of each sample, [n]."""
        return self.table.ids[self.positions]

    @staticmethod
    def concat(parts: Sequence[Samples]) -> Samples:
        """One view on all samples of the parts, in order; the parts may come from different tables.

        Raises:
            DataError: no parts, or parts under different transforms.
        """
        if not parts:
            raise DataError("Expected at least one part to join, got none.")
        transform = parts[0].transform
        if any(part.transform is not transform for part in parts):
            raise DataError("Samples under different transforms cannot be joined. Call with_transform on them first.")
        labels = np.concatenate([part.labels for part in parts])
        tables = list({id(part.table): part.table for part in parts}.values())
        if len(tables) == 1:
            return Samples(tables[0], np.concatenate([part.positions for part in parts]), labels, transform)
        offsets = np.cumsum([0] + [len(table) for table in tables])
        start = {id(table): offset for table, offset in zip(tables, offsets)}
        positions = np.concatenate([part.positions + start[id(part.table)] for part in parts])
        return Samples(_joined(tables), positions, labels, transform)


def _joined(tables: list[Table]) -> Table:
    ids = [table.ids for table in tables]
    if len({values.dtype.kind for values in ids}) > 1:
        ids = [values.astype(str) for values in ids]
    return Table(
        Chained([table.inputs for table in tables]),
        np.concatenate([table.labels for table in tables]),
        np.concatenate(ids),
    )
