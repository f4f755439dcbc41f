"""Right or wrong, now and after: what follows for samples and classes."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import DataError


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """Output of the true class minus the largest other, [n]; negative where wrong.

    Args:
        outputs: [n, C]; labels: int64 [n].

    Raises:
        DataError: fewer than two outputs.

    >>> margin(torch.tensor([[1.0, 3.0], [2.0, 0.5]]), torch.tensor([0, 0])).tolist()
    [-2.0, 1.5]
    """
    if outputs.shape[1] < 2:
        raise DataError("margins need at least two outputs")
    own = outputs.gather(1, labels[:, None])[:, 0]
    return own - outputs.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def per_class(labels: Tensor, now: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes that occur, int64 [K], and the share that is right in each (now, after), float64 [K].

    >>> per_class(torch.tensor([0, 2, 2]), torch.tensor([True, True, True]), torch.tensor([True, False, True]))[2]
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    classes, index = labels.unique(return_inverse=True)
    counts = torch.bincount(index)
    shares = [torch.bincount(index, weights=right.double()) / counts for right in (now, after)]
    return classes, shares[0], shares[1]


def samples_at_risk(now: Tensor, margin_after: Tensor, k: int) -> Tensor:
    """Positions of the samples that are right now and end with the lowest margins, lowest first, int64 [<= k]."""
    right = now.nonzero().flatten()
    return right[margin_after[right].argsort(stable=True)][:k]


def classes_at_risk(labels: Tensor, right: tuple[Tensor, Tensor], margins: tuple[Tensor, Tensor], k: int) -> Tensor:
    """Classes by loss of accuracy, then of mean margin, worst first, int64 [<= k].

    Args:
        labels: int64 [n]; right: bool [n] (now, after); margins: [n] (now, after).
    """
    classes, now, after = per_class(labels, *right)
    index = torch.searchsorted(classes, labels)
    lost = torch.bincount(index, weights=(margins[0] - margins[1]).double()) / torch.bincount(index)
    by_margin = lost.argsort(descending=True, stable=True)
    return classes[by_margin[(now - after)[by_margin].argsort(descending=True, stable=True)]][:k]
