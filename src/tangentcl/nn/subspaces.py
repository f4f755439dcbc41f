"""Adapters of every task beside one frozen transformer: a feature for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tangentcl.nn.backbone import Backbone, BackboneCard, Batch
from tangentcl.nn.channel_adapter import ChannelAdapter
from tangentcl.nn.layouts import transformer
from tangentcl.nn.trunks import Stem, stem, trunk


class Subspaces(nn.Module):
    r"""A frozen transformer with a `ChannelAdapter` set for each of t tasks, :math:`[\phi(x; A_1), ..., \phi(x; A_t)]`.

    Only the newest set trains. A sample costs t passes, which share what lies before the first adapter (the attention
    and the MLP of the first block); ``backbone.passes`` counts t. Starts without a set, see `expand`.

    Args:
        backbone: frozen here. rank, dropout, scale: see `ChannelAdapter`.

    Shapes: a batch -> ``[B, t d]``.

    Raises:
        ModelError: a backbone that cannot be taken apart into blocks.
    """

    def __init__(self, backbone: Backbone, *, rank: int, dropout: float, scale: float) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.model = transformer(backbone)
        self.rank, self.dropout, self.scale = rank, dropout, scale
        self.sets = nn.ModuleList()
        self.width = 0

    def expand(self) -> None:
        """Freeze all sets and append one that starts as the pre-trained network."""
        self.sets.requires_grad_(False)
        adapters = nn.ModuleList(
            ChannelAdapter(self.model.width, rank=self.rank, dropout=self.dropout, scale=self.scale)
            for _ in self.model.blocks
        )
        self.sets.append(adapters.to(self.device))
        self.width = len(self.sets) * self.model.width

    @property
    def card(self) -> BackboneCard:
        """The backbone's."""
        return self.backbone.card

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def newest(self, x: Batch) -> Tensor:
        """Features with the newest adapters alone, ``[B, d]``."""
        return self._pass(stem(self.model, x), -1)

    def forward(self, x: Batch) -> Tensor:
        start = stem(self.model, x)
        return torch.cat([self._pass(start, i) for i in range(len(self.sets))], dim=1)

    def _pass(self, start: Stem, index: int) -> Tensor:
        if not torch.compiler.is_compiling():
            self.backbone.passes += len(start.attended)
        adapters = self.sets[index]
        assert isinstance(adapters, nn.ModuleList)
        return trunk(self.model, start, adapters=adapters)
