"""The third feature of NTK-CL, made of the other two."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

OWN, OTHER, MIXED = 1.0, 0.1, 0.5  # shares of the channel feature, the patch feature and V(channel)


class Fusion(nn.Module):
    r"""``c + 0.1 p + 0.5 V c`` of a channel feature c and a patch feature p, with V an affine map.

    This is what the released cross-attention computes: it attends to a sequence of length one, its softmax is 1, and
    queries and keys have no effect and no gradient, so they are left out.

    Args:
        width: D.
        from_zero: V starts at zero, so that the fused feature starts as c + 0.1 p. False starts V as ``nn.Linear``
            does, at random, which turns the pre-trained feature before anything is learned.
        head_dropout: chance that one of 8 groups of V's outputs is dropped for a sample in training mode: the dropout
            of the released code acts on a softmax of length one.

    Shapes: ``[B, D]``, ``[B, D]`` -> ``[B, D]``.

    >>> import torch
    >>> Fusion(8)(torch.ones(1, 8), torch.ones(1, 8))[0, 0].item()
    1.100000023841858
    """

    HEADS = 8

    def __init__(self, width: int, *, from_zero: bool = True, head_dropout: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.head_dropout = head_dropout
        if from_zero:
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)

    def forward(self, channel: Tensor, patch: Tensor) -> Tensor:
        value = self.value(channel)  # [B, D]
        if self.head_dropout and self.training:
            kept = F.dropout(value.new_ones(len(value), self.HEADS, 1), self.head_dropout)
            width = -(-value.shape[1] // self.HEADS)
            value = value * kept.expand(-1, -1, width).flatten(1)[:, : value.shape[1]]
        return OWN * channel + OTHER * patch + MIXED * value
