"""The third feature of NTK-CL, made of the other two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.nn.blocks import attention

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


class SectionAttention(nn.Module):
    r"""``c + 0.1 p + 0.5 a`` where a attends to something: to the sections of both views, one token each.

    What the release's cross-attention is for, with a sequence that is longer than one. Every section of the channel
    view asks, all 2 S sections of the two views are looked at: :math:`a_s = \mathrm{softmax}(Q c_s K^\top / \sqrt e)
    V`, with maps d x d that all sections share. V starts at zero, so that the fused feature starts as c + 0.1 p.

    Args:
        width: d of a section. heads: of the attention; divides d.

    Shapes: ``[B, S d]``, ``[B, S d]`` -> ``[B, S d]``.

    >>> fusion = SectionAttention(4, heads=2)
    >>> fusion(torch.ones(1, 8), torch.ones(1, 8))[0, 0].item()
    1.100000023841858
    """

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, channel: Tensor, patch: Tensor) -> Tensor:
        asking = channel.unflatten(1, (-1, self.width))  # [B, S, d]
        seen = torch.cat([asking, patch.unflatten(1, (-1, self.width))], dim=1)  # [B, 2 S, d]
        q, k, v = (self._split(f(x)) for f, x in ((self.query, asking), (self.key, seen), (self.value, seen)))
        mixed = attention(q, k, v).transpose(1, 2).flatten(1)  # [B, S d]
        return OWN * channel + OTHER * patch + MIXED * mixed

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, e]
