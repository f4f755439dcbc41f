"""Three features per sample: a channel branch, a patch branch, and their fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.nn.backbone import Backbone, BackboneCard, Batch
from tangentcl.nn.blocks import Transformer
from tangentcl.nn.ema_bank import EmaBank
from tangentcl.nn.fusion import OTHER, OWN, Fusion, SectionAttention
from tangentcl.nn.stem_bank import stem_of
from tangentcl.nn.trunks import Stem, stacked, stem, trunk

FUSIONS = ("linear", "attention", "released", "sum")
Ema = Literal["mean", "decay", "off"]
STACK_TOKENS = 512  # batch times tokens up to which branches share a pass; see benchmarks/ntk_cl.py


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
        channel: `ChannelAdapter` for each block from ``first_block`` on, or None to leave the branch out.
        patch: prompts for each of these blocks but the last, or None.
        joint: both kinds of modules in one pass, which makes one view; half the cost, and another method.
        first_block: the first block with modules.
        prompt_share: what prompts count in attention, see `tangentcl.nn.blocks.with_prompts`.
        ptm_section: whether the pre-trained feature is a section.
        fuse_ptm: whether the fusion's map acts on that section too. It then moves, so it is left out by default.
        ema, ema_decay, frozen_dropout: see `EmaBank`.
        fusion: ``"linear"`` or ``"released"`` (see `Fusion`), ``"attention"`` (see `SectionAttention`), ``"sum"``
            (c + 0.1 p, nothing learned).
        head_dropout: of ``fusion="released"``.

    Shapes: a batch -> the fused feature ``[B, S d]``; `views` gives all three.

    Raises:
        ConfigError: no branch, an unknown fusion, or ``joint`` without both kinds.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Transformer,
        *,
        channel: nn.ModuleList | None,
        patch: nn.ModuleList | None,
        joint: bool = False,
        first_block: int = 0,
        prompt_share: float | None = None,
        ptm_section: bool = False,
        fuse_ptm: bool = False,
        ema: Ema = "mean",
        ema_decay: float = 0.0,
        frozen_dropout: bool = False,
        fusion: str = "linear",
        head_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if channel is None and patch is None:
            raise ConfigError("at least one branch is needed: channel adapters, patch prompts or both")
        if joint and (channel is None or patch is None):
            raise ConfigError("a joint branch needs channel adapters and patch prompts")
        if fusion not in FUSIONS:
            raise ConfigError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}.{nearest(fusion, FUSIONS)}")
        self.backbone, self.model, self.first_block = backbone.requires_grad_(False), model, first_block
        self.ptm_section, self.prompt_share = ptm_section, prompt_share
        self.current = nn.ModuleDict({k: v for k, v in (("channel", channel), ("patch", patch)) if v is not None})
        self.branches = (tuple(self.current),) if joint else tuple((kind,) for kind in self.current)
        decay = ema_decay if ema == "decay" else None
        self.bank = None if ema == "off" else EmaBank(self.current, decay=decay, dropout=frozen_dropout)
        self.n_sections = 1 + int(ptm_section) + int(ema != "off")
        self.width = self.n_sections * backbone.width
        self.fuse_ptm = fuse_ptm
        released = fusion == "released"
        learned = fusion != "sum" and len(self.branches) == 2
        dropped = head_dropout if released else 0.0
        width = self.width - (0 if fuse_ptm or not ptm_section else backbone.width)
        self.fusion: nn.Module | None = None
        if learned and fusion == "attention":
            self.fusion = SectionAttention(backbone.width, heads=model.blocks[-1].heads)
        elif learned:
            self.fusion = Fusion(width, from_zero=not released, head_dropout=dropped)

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

    def views(self, x: Batch, frozen: Tensor | None = None, *, ptm: bool = True) -> Views:
        """All features of a batch.

        Args:
            x: as the backbone takes it, or the stems of one (`tangentcl.nn.stem_bank`).
            frozen: what `frozen` gives for it, with the same ``ptm``, if known already.
            ptm: False leaves the pre-trained section out, and the pass that makes it.
        """
        ptm = ptm and self.ptm_section
        start = stem_of(x, self.first_block) or stem(self.model, x, self.first_block)
        if frozen is None and _worth_stacking(start):
            passes = self._stacked(start, ptm)
        else:
            fixed = self._frozen(start, ptm) if frozen is None else self._split(frozen, ptm)
            passes = [*fixed, *(self._pass(start, self.current, branch) for branch in self.branches)]
        return self._fused(passes, ptm)

    def forward(self, x: Batch) -> Tensor:
        return self.views(x).fused

    @property
    def all_width(self) -> int:
        """Numbers of `all_views`."""
        own = self.width - self.backbone.width * int(self.ptm_section)  # of one view, without what they share
        return self.width + (2 * own if len(self.branches) == 2 else 0)

    def all_views(self, x: Batch) -> Tensor:
        """The fused view, then the sections of the channel and of the patch view without the pre-trained one, [B, D].

        With one branch it is the one view.
        """
        views, shared = self.views(x), self.backbone.width * int(self.ptm_section)
        rest = [view[:, shared:] for view in (views.channel, views.patch) if view is not None]
        return torch.cat([views.fused, *rest], dim=1)

    @torch.no_grad()
    def frozen(self, x: Batch, *, ptm: bool = True) -> Tensor:
        """Features that do not change during a task, ``[B, n_frozen d]``: pre-trained, then the running means'."""
        return torch.cat(self._frozen(stem(self.model, x, self.first_block), ptm and self.ptm_section), dim=1)

    def n_frozen(self, *, ptm: bool = True) -> int:
        """Number of features that `frozen` gives."""
        return int(ptm and self.ptm_section) + len(self.branches) * int(self.bank is not None)

    def _split(self, frozen: Tensor, ptm: bool) -> list[Tensor]:
        expected = self.n_frozen(ptm=ptm) * self.backbone.width
        if frozen.ndim != 2 or frozen.shape[1] != expected:
            raise ModelError(f"expected frozen features [B, {expected}], got {list(frozen.shape)}")
        return list(frozen.split(self.backbone.width, dim=1))

    @torch.no_grad()
    def _frozen(self, start: Stem, ptm: bool) -> list[Tensor]:
        passes = [trunk(self.model, start)] if ptm else []
        if self.bank is not None:
            passes += [self._pass(start, self.bank.copy, branch) for branch in self.branches]
        return passes

    def _pass(self, start: Stem, modules: nn.Module, branch: Sequence[str]) -> Tensor:
        chosen = {name: modules[kind] for kind, name in NAMES.items() if kind in branch}  # type: ignore[index]
        return trunk(self.model, start, **chosen, prompt_share=self.prompt_share)

    def _stacked(self, start: Stem, ptm: bool) -> list[Tensor]:
        """The same passes in the same order, those of one branch as one batch."""
        first = [trunk(self.model, start)] if ptm and self.branches[0] != ("channel",) else []
        fixed: list[Tensor] = []
        live: list[Tensor] = []
        sets = [self.current, *([] if self.bank is None else [self.bank.copy])]
        for branch in self.branches:
            extra = [None] if ptm and branch == ("channel",) else []  # no adapter is an adapter that adds nothing
            chosen = {
                name: stacked([*(modules[kind] for modules in sets), *extra])  # type: ignore[index]
                for kind, name in NAMES.items()
                if kind in branch
            }
            n = len(sets) + len(extra)
            found = trunk(self.model, start.repeated(n), **chosen, prompt_share=self.prompt_share).chunk(n)
            live.append(found[0])
            fixed += found[1 : len(sets)]
            first += found[len(sets) :]
        return [*first, *fixed, *live]

    def _fused(self, passes: list[Tensor], ptm: bool) -> Views:
        """Views of passes in the order [pre-trained, the running means', the current ones']."""
        n, rest = len(self.branches), passes[int(ptm) :]
        views = [torch.cat([*passes[: int(ptm)], *rest[i::n]], dim=1) for i in range(n)]  # [B, S d] each
        if n == 1:
            return Views(fused=views[0])
        channel, patch = views
        kept = self.backbone.width if ptm and not self.fuse_ptm else 0
        c, p = channel[:, kept:], patch[:, kept:]
        fused = OWN * c + OTHER * p if self.fusion is None else self.fusion(c, p)
        return Views(torch.cat([channel[:, :kept], fused], dim=1), channel, patch)


class FeaturesOf:
    """Other features of a network than its own, as `tangentcl.nn.extract_features` takes them.

    Args:
        network: whose they are. features: a batch -> ``[B, width]``. width: of them.
    """

    def __init__(self, network: TwoBranches, features: Callable[[Batch], Tensor], width: int) -> None:
        self.features, self.width = features, width
        self.card, self.device = network.card, network.device
        self.modules, self.eval = network.modules, network.eval

    def __call__(self, x: Batch) -> Tensor:
        return self.features(x)


NAMES = {"channel": "adapters", "patch": "prompts"}  # keywords of `trunk`


def _worth_stacking(start: Stem) -> bool:
    return not torch.is_grad_enabled() and start.attended.shape[0] * start.attended.shape[1] <= STACK_TOKENS
