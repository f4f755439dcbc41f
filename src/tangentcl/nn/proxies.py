"""Cosine classifier of one task, thrown away after it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineProxies(nn.Module):
    r"""Logits :math:`\sigma \cos(z, w_c)` over the classes of one task, with a learned scale :math:`\sigma`.

    Args:
        width: D. classes: stream labels of the task, in the order of the logits.
        scale: where :math:`\sigma` starts.

    Shapes: unit rows ``[B, D]`` -> logits ``[B, C]``.

    >>> CosineProxies(4, (5, 7)).targets(torch.tensor([7, 5, 5]))
    tensor([1, 0, 0])
    """

    classes: Tensor

    def __init__(self, width: int, classes: tuple[int, ...], *, scale: float = 1.0) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(len(classes), width).uniform_(-1, 1) / math.sqrt(width))
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.register_buffer("classes", torch.tensor(classes), persistent=False)

    def forward(self, unit: Tensor) -> Tensor:
        return self.scale * F.linear(unit, F.normalize(self.weight, dim=-1))

    def targets(self, y: Tensor) -> Tensor:
        """Stream labels ``[B]`` -> columns of the logits ``[B]``."""
        return (y[:, None] == self.classes).long().argmax(dim=1)
