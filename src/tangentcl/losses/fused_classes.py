"""Virtual classes between two real ones, so that the space between base classes is not given away to them."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 4  # on a side of the grid by which two images are mixed
ODD = 2654435761  # Knuth's multiplicative hash


def n_pairs(n_classes: int) -> int:
    """Unordered pairs of classes, C (C - 1) / 2.

    >>> n_pairs(60)
    1770
    """
    return n_classes * (n_classes - 1) // 2


def pair_index(y: Tensor, other: Tensor, n_classes: int, n_virtual: int) -> Tensor:
    r"""The virtual class of an unordered pair of labels, in ``[0, min(n_virtual, C (C - 1) / 2))``; [B].

    Pair (a, b), a > b, is number :math:`a (a - 1) / 2 + b`. Where there are more pairs than virtual classes, a hash of
    that number spreads them over the classes; neighbours share none.

    Args:
        y, other: int64 labels [B], different in each row. n_classes: C. n_virtual: at most so many.

    >>> pair_index(torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1]), 3, 100)
    tensor([0, 0, 2])
    """
    high, low = torch.maximum(y, other), torch.minimum(y, other)
    number = high * (high - 1) // 2 + low
    if n_pairs(n_classes) <= n_virtual:
        return number
    return (number * ODD % 2**32) % n_virtual


def partners(y: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of a batch and, for each, another of a different class, drawn by the global generator; [P] each.

    A random permutation, without the places where both ends have one class; none where the batch has one class alone.

    >>> partners(torch.tensor([3, 3, 3]))[0]
    tensor([], dtype=torch.int64)
    """
    drawn = torch.randperm(len(y)).to(y.device)
    kept = (y != y[drawn]).nonzero().flatten()
    return kept, drawn[kept]


def fuse_images(x: Tensor, other: Tensor, *, cells: int = CELLS) -> Tensor:
    """Every cell of a grid over the image from one of two images, with equal chance (global generator).

    Args:
        x, other: [B, channels, H, W], the sides at least ``cells``; each pair is mixed by a mask of its own.

    >>> mixed = fuse_images(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    >>> mixed.shape, mixed.unique(), bool((mixed[..., 0:2, 0:2] == mixed[..., :1, :1]).all())
    (torch.Size([1, 3, 8, 8]), tensor([0., 1.]), True)
    """
    n, _, height, width = x.shape
    mask = (torch.rand(n, cells, cells) < 0.5).to(x.device)
    rows = torch.arange(height, device=x.device) * cells // height
    columns = torch.arange(width, device=x.device) * cells // width
    return torch.where(mask[:, rows][:, :, columns][:, None], x, other)
