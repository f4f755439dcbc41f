"""The network of NTK-CL around a backbone: which modules stand where."""

from __future__ import annotations

import torch
from torch import nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods.ntkcl_settings import NTKCLSettings
from tangentcl.nn import Backbone
from tangentcl.nn.blocks import Transformer
from tangentcl.nn.branches import TwoBranches
from tangentcl.nn.channel_adapter import ChannelAdapter
from tangentcl.nn.layouts import transformer
from tangentcl.nn.patch_prompts import make_prompts


def make_network(
    backbone: Backbone, chosen: NTKCLSettings, *, rank: int, dropout: float, n_prompts: int, modes: int
) -> TwoBranches:
    """Adaptation modules for the blocks of a backbone, which is frozen.

    Args:
        rank, dropout: of channel adapters. n_prompts, modes: of prompts.

    Raises:
        ModelError: a backbone that cannot be taken apart, or too few blocks for prompts.
        ConfigError: a first block that does not exist.
    """
    model, channel, patch = transformer(backbone), None, None
    if chosen.first_block >= len(model.blocks):
        raise ConfigError(
            f"first_block must be below the {len(model.blocks)} blocks of {backbone.card.name}, "
            f"got {chosen.first_block}"
        )
    adapted = model.blocks[chosen.first_block :]
    if chosen.branches != "patch":
        channel = nn.ModuleList(ChannelAdapter(model.width, rank=rank, dropout=dropout) for _ in adapted)
    if chosen.branches != "channel":
        patch = _prompts(backbone, model, chosen.prompts, n_prompts, modes, len(adapted))
    return TwoBranches(
        backbone,
        model,
        channel=channel,
        patch=patch,
        joint=chosen.branches == "joint",
        first_block=chosen.first_block,
        prompt_share=chosen.prompt_share,
        ptm_section=chosen.ptm_section,
        fuse_ptm=chosen.fusion == "released",
        ema=chosen.ema,
        ema_decay=chosen.ema_decay,
        frozen_dropout=chosen.frozen_dropout,
        fusion=chosen.fusion,
    )


def _prompts(
    backbone: Backbone, model: Transformer, form: str, n_prompts: int, modes: int, n_blocks: int
) -> nn.ModuleList:
    if n_blocks < 2:
        raise ModelError(
            f"{backbone.card.name} would have one adapted block, and prompts of the last block are looked at by "
            "nothing. Try branches='channel', or an earlier first_block."
        )
    with torch.no_grad():
        tokens = model.embed(backbone.sample_input())
    text = tokens.grid is None and tokens.mask is not None
    if form == "auto":
        form = "attention" if text else "linear"
    n_prefix = None if tokens.grid is None else tokens.n_prefix
    n_tokens = tokens.values.shape[1]
    made = (
        make_prompts(form, model.width, n_prompts, n_tokens=n_tokens, n_prefix=n_prefix, modes=modes)
        for _ in range(n_blocks - 1)
    )
    return nn.ModuleList(made)
