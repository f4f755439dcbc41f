"""Cross-entropy over all classes seen, or over those of one task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def task_cross_entropy(logits: Tensor, y: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    r"""The mean of :math:`-\log \exp(l_y) / \sum_{c \in A} \exp(l_c)`, in float32.

    Logits outside A have no part in it and no gradient: the same as setting them to minus infinity.

    Args:
        logits: ``[B, n_seen]``.
        y: labels among A, ``[B]`` int64.
        classes: A; None for all.

    >>> logits = torch.tensor([[0.0, 0.0, 5.0]])
    >>> round(task_cross_entropy(logits, torch.tensor([1]), [0, 1]).item(), 4)
    0.6931
    """
    if classes is None:
        return F.cross_entropy(logits.float(), y)
    current = torch.tensor(classes, device=y.device)
    matches = y[:, None] == current[None, :]  # [B, C_t]
    return F.cross_entropy(logits[:, current].float(), matches.long().argmax(dim=1))
