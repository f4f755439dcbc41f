"""Three features per sample: a channel branch, a patch branch, and their fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, nearest
from tangentcl.nn.backbone import Backbone, BackboneCard, Batch
from tangentcl.nn.blocks import Transformer
from tangentcl.nn.ema_bank import EmaBank
from tangentcl.nn.fusion import OTHER, OWN, Fusion
from tangentcl.nn.trunks import Stem, channel_trunk, patch_trunk, stem

FUSIONS = ("linear", "released", "sum")
Ema = Literal["mean", "decay", "off"]


@dataclass(frozen=True)
class Views:
    """The features of a batch, ``[B, S d]`` each: S sections, in the order [pre-trained | running mean | current].

    With one branch there is one view, ``fused``, and the others are None.
    """

    fused: Tensor
    channel: Tensor | None = None
    patch: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The views that exist, by name."""
        views = {"channel": self.channel, "patch": self.patch, "fused": self.fused}
        return {name: view for name, view in views.items() if view is not None}


class TwoBranches(nn.Module):
    """Adaptation modules around a frozen transformer, their running means, and the fusion of what they see.

    A *section* is the feature of one pass through the backbone: as pre-trained (``ptm_section``), with the running
    mean of the adaptation modules of past tasks (unless ``ema="off"``), and with the current ones. A *view* is the
    sections of one branch side by side. Passes without current modules have no gradient.

    Args:
        backbone: frozen here.
        model: the same backbone, taken apart into blocks.
        channel: `ChannelAdapter` for each block, or None to leave the branch out.
        patch: prompts for each block but the last, or None.
        ptm_section: whether the pre-trained feature is a section.
        ema, ema_decay, frozen_dropout: see `EmaBank`.
        fusion: ``"linear"`` or ``"released"`` (see `Fusion`), ``"sum"`` (c + 0.1 p, nothing learned).
        head_dropout: of ``fusion="released"``.

    Shapes: a batch -> the fused feature ``[B, S d]``; `views` gives all three.

    Raises:
        ConfigError: no branch, or an unknown fusion.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Transformer,
        *,
        channel: nn.ModuleList | None,
        patch: nn.ModuleList | None,
        ptm_section: bool = False,
        ema: Ema = "mean",
        ema_decay: float = 0.0,
        frozen_dropout: bool = False,
        fusion: str = "linear",
        head_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if channel is None and patch is None:
            raise ConfigError("at least one branch is needed: channel adapters, patch prompts or both")
        if fusion not in FUSIONS:
            raise ConfigError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}.{nearest(fusion, FUSIONS)}")
        self.backbone, self.model = backbone.requires_grad_(False), model
        self.ptm_section = ptm_section
        self.current = nn.ModuleDict({k: v for k, v in (("channel", channel), ("patch", patch)) if v is not None})
        decay = ema_decay if ema == "decay" else None
        self.bank = None if ema == "off" else EmaBank(self.current, decay=decay, dropout=frozen_dropout)
        self.n_sections = 1 + int(ptm_section) + int(ema != "off")
        self.width = self.n_sections * backbone.width
        released = fusion == "released"
        learned = fusion != "sum" and len(self.current) == 2
        dropped = head_dropout if released else 0.0
        self.fusion = Fusion(self.width, from_zero=not released, head_dropout=dropped) if learned else None

    @property
    def card(self) -> BackboneCard:
        """The backbone's."""
        return self.backbone.card

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def anchored(self) -> dict[str, Tensor]:
        """Parameters that go on from task to task, by name: adaptation modules and fusion."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def views(self, x: Batch) -> Views:
        """All features of a batch."""
        start = stem(self.model, x)
        with torch.no_grad():
            fixed = [channel_trunk(self.model, start, None)] if self.ptm_section else []
        views = {name: self._view(name, start, fixed) for name in self.current}
        if len(views) == 1:
            return Views(fused=next(iter(views.values())))
        channel, patch = views["channel"], views["patch"]
        fused = OWN * channel + OTHER * patch if self.fusion is None else self.fusion(channel, patch)
        return Views(fused, channel, patch)

    def _view(self, name: str, start: Stem, fixed: list[Tensor]) -> Tensor:
        trunk = channel_trunk if name == "channel" else patch_trunk
        sections = list(fixed)
        if self.bank is not None:
            with torch.no_grad():
                sections.append(trunk(self.model, start, self.bank.copy[name]))  # type: ignore[index]
        sections.append(trunk(self.model, start, self.current[name]))  # type: ignore[arg-type]
        return torch.cat(sections, dim=1)  # [B, S d]

    def forward(self, x: Batch) -> Tensor:
        return self.views(x).fused
