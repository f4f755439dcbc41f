"""Features of more samples than memory holds, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from tangentcl.data import Samples
from tangentcl.errors import DataError
from tangentcl.linalg.operator import BLOCK
from tangentcl.nn import Backbone
from tangentcl.nn.backbone import to_device
from tangentcl.processes import own_stretch

Block = tuple[Tensor, Tensor]  # features [B, d], labels int64 [B] or values [B, C]


class FeatureBlocks(ABC):
    """Samples whose features are read or computed a stretch at a time, so that processes can share them."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def stretch(self, start: int, stop: int) -> Iterator[Block]:
        """Blocks of the samples from ``start`` to ``stop``, in order."""


class ArrayBlocks(FeatureBlocks):
    """Rows of an array that may lie on disk (``numpy.load(..., mmap_mode="r")``).

    Args:
        features: [n, d], an array, a memory-mapped array or a tensor.
        labels: whole numbers [n].
        rows: per block.

    >>> blocks = ArrayBlocks(np.zeros((5, 3), dtype=np.float32), np.arange(5), rows=2)
    >>> [len(labels) for _, labels in blocks.stretch(1, 5)]
    [2, 2]
    """

    def __init__(self, features: np.ndarray | Tensor, labels: np.ndarray | Tensor, rows: int = BLOCK) -> None:
        if features.ndim != 2 or len(labels) != len(features):
            raise DataError(
                f"expected features [n, d] and n labels, got {list(features.shape)} and {list(labels.shape)}"
            )
        self.features, self.labels, self.rows = features, labels, rows

    def __len__(self) -> int:
        return len(self.features)

    def stretch(self, start: int, stop: int) -> Iterator[Block]:
        for first in range(start, stop, self.rows):
            chosen = slice(first, min(first + self.rows, stop))
            yield _tensor(self.features[chosen]), _tensor(self.labels[chosen])


class SampleBlocks(FeatureBlocks):
    """Samples whose features a frozen backbone computes when they are needed.

    Args:
        backbone: in evaluation mode or not; its modes are restored.
        samples: under the evaluation transform.
        batch_size: samples per forward pass. Texts of a block are sorted by length, so that batches pad little.
        rows: samples per block.
    """

    def __init__(self, backbone: Backbone, samples: Samples, batch_size: int = 256, rows: int = BLOCK) -> None:
        self.backbone, self.samples, self.batch_size, self.rows = backbone, samples, batch_size, rows

    def __len__(self) -> int:
        return len(self.samples)

    def stretch(self, start: int, stop: int) -> Iterator[Block]:
        modes = {module: module.training for module in self.backbone.modules()}
        self.backbone.eval()
        try:
            for first in range(start, stop, self.rows):
                yield self._block(self.samples.subset(range(first, min(first + self.rows, stop))))
        finally:
            for module, mode in modes.items():
                module.training = mode

    @torch.no_grad()
    def _block(self, samples: Samples) -> Block:
        order = samples.short_first()
        batches = samples.subset(order).batches(self.batch_size)
        device = self.backbone.device
        features = torch.cat([self.backbone(to_device(x, device)).float().cpu() for x, _ in batches])
        return features[torch.from_numpy(np.argsort(order))], torch.from_numpy(samples.labels.copy())


Source = FeatureBlocks | Iterable[Block]


def own_blocks(source: Source) -> Iterator[Block]:
    """This process's blocks of a source, without empty ones.

    `FeatureBlocks` are dealt: each process takes one stretch. Any other iterable is read to its end, so that each
    process has to be given its own part.
    """
    blocks = source.stretch(*own_stretch(len(source))) if isinstance(source, FeatureBlocks) else source
    return (block for block in blocks if len(block[0]))


def checked(block: Block, width: int, what: str) -> Block:
    """A block whose shapes fit. Raises DataError otherwise, or for a feature that is not finite."""
    features, labels = block
    if features.ndim != 2 or features.shape[1] != width or len(labels) != len(features):
        raise DataError(
            f"expected {what} features [B, {width}] with B labels, got {list(features.shape)} and {list(labels.shape)}"
        )
    if not bool(features.isfinite().all()):
        raise DataError(f"the features of the {what} samples must be finite")
    return features.detach(), labels


def _tensor(rows: np.ndarray | Tensor) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
