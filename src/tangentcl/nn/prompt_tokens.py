"""Prompt tokens at the input of a transformer (Lester et al., EMNLP 2021; Jia et al., ECCV 2022, "shallow")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tangentcl.errors import ModelError
from tangentcl.nn.blocks import Tokens, Transformer

READS = ("prompts", "backbone")


def prompted(model: Transformer, tokens: Tokens, prompts: Tensor, read: str = "prompts") -> Tensor:
    """Features ``[B, d]`` of one pass with prompt tokens before those of the input.

    Prompts have no position, and go through the blocks as tokens do. They stand before the first block, so behind the
    embedding's norm where there is one (BERT).

    Args:
        prompts: ``[B, P, d]``, each sample's own.
        read: ``"prompts"``, the mean of the prompts' outputs behind the final norm, or ``"backbone"``, as the backbone
            reads the input's tokens.

    Raises:
        ModelError: prompts of another shape, or none to read.
    """
    b, n, d = tokens.values.shape
    if prompts.ndim != 3 or (prompts.shape[0], prompts.shape[2]) != (b, d):
        raise ModelError(f"expected prompts [{b}, P, {d}], got {list(prompts.shape)}")
    p = prompts.shape[1]
    if read == "prompts" and not p:
        raise ModelError("there is no prompt to read; try read='backbone'")
    values = torch.cat([prompts.to(tokens.values.dtype), tokens.values], dim=1)  # [B, P + N, d]
    mask = tokens.mask
    if mask is not None:
        mask = torch.cat([mask.new_ones(b, p), mask], dim=1)
    n_read = p if read == "prompts" else p + (model.n_read or n)
    for i, block in enumerate(model.blocks):
        attended = block.attend(values, mask, n_read if i == len(model.blocks) - 1 else None)
        values = block.add(attended, block.update(attended))
    if read == "backbone":
        return model.read(values[:, p:], tokens)
    features = model.norm(values).mean(1)  # the last block gave the prompts alone
    return F.normalize(features, dim=-1) if model.normalize else features
