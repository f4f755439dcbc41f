"""S2 of NTK-CL: a bottleneck beside the MLP of a transformer block."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ConfigError


class ChannelAdapter(nn.Module):
    r"""A parallel adapter :math:`A(x) = s\,(W_\uparrow\,\mathrm{ReLU}(W_\downarrow x + b_\downarrow) + b_\uparrow)`.

    It reads the residual stream after attention, before any norm, and is added to what the MLP adds: a parallel
    adapter as in AdaptFormer (Chen et al., NeurIPS 2022). :math:`W_\uparrow` and both biases start at zero, so the
    block starts as it was pre-trained.

    Args:
        width: d. rank: of the bottleneck.
        dropout: on the hidden units, in training mode.
        scale: s.

    Shapes: tokens ``[B, N, d]`` -> ``[B, N, d]``.

    Raises:
        ConfigError: a rank below 1.

    >>> import torch
    >>> adapter = ChannelAdapter(8, rank=2)
    >>> adapter(torch.randn(1, 3, 8)).abs().max().item(), sum(p.numel() for p in adapter.parameters())
    (0.0, 42)
    """

    def __init__(self, width: int, *, rank: int = 16, dropout: float = 0.1, scale: float = 0.1) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"the rank of a channel adapter must be at least 1, got {rank}")
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        self.dropout, self.scale = dropout, scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.down(x)), self.dropout, self.training)  # [B, N, rank]
        return self.scale * self.up(hidden)
