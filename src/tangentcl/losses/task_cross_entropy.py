"""Cross-entropy over the classes of one task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def task_cross_entropy(logits: Tensor, y: Tensor, classes: Sequence[int]) -> Tensor:
    r"""Mean of :math:`-\log \big(\exp(l_y) / \sum_{c \in A} \exp(l_c)\big)` over the classes A of a task alone.

    "Local" or "masked" cross-entropy: columns of other classes get no gradient. In float32.

    Args:
        logits: ``[B, C]``.
        y: labels among ``classes``, ``[B]`` int64.
        classes: columns of A.

    >>> logits = torch.tensor([[9.0, 1.0, 1.0]])
    >>> round(task_cross_entropy(logits, torch.tensor([2]), (1, 2)).item(), 4)
    0.6931
    """
    chosen = torch.tensor(list(classes), device=y.device)
    positions = (y[:, None] == chosen[None, :]).long().argmax(dim=1)  # [B]
    return F.cross_entropy(logits[:, chosen].float(), positions)
