"""A pre-trained transformer taken apart into blocks, so that modules can be put between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.nn.hf_features import additive
from tangentcl.nn.pooling import pool_image, pool_text

FUSED_FROM = 64  # tokens; below, attention written out is faster on a CPU than the fused kernel
Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tokens:
    """The embedded input of a transformer.

    Attributes:
        values: ``[B, N, d]``, with positions.
        mask: 1 for real tokens, 0 for padding, ``[B, N]``; None where all are real.
        grid: rows and columns of patches of an image; None for texts.
        n_prefix: tokens before the patches.
    """

    values: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    n_prefix: int = 0


class Projections(Protocol):
    """What makes queries of some tokens, and keys and values of all: ``[B, N, d] -> [B, N, d]`` each."""

    def query(self, x: Tensor) -> Tensor: ...

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class SeparateProjections:
    """Three linear layers."""

    q: nn.Module
    k: nn.Module
    v: nn.Module

    def query(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        return self.q(x)

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, d]`` -> keys and values, ``[B, N, d]`` each."""
        return self.k(x), self.v(x)


@dataclass(frozen=True)
class JoinedProjection:
    """One linear layer of 3 d outputs: queries, keys, values (timm)."""

    qkv: nn.Linear

    def query(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        d = self.qkv.out_features // 3
        return F.linear(x, self.qkv.weight[:d], None if self.qkv.bias is None else self.qkv.bias[:d])

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, d]`` -> keys and values, ``[B, N, d]`` each."""
        d = self.qkv.out_features // 3
        both = F.linear(x, self.qkv.weight[d:], None if self.qkv.bias is None else self.qkv.bias[d:])
        return both[..., :d], both[..., d:]


@dataclass(frozen=True)
class TransformerBlock:
    r"""One block: an attention sub-layer and an MLP sub-layer, each added to its input.

    Pre-norm (Vision Transformers): :math:`x + F(\mathrm{LN}(x))`; post-norm (BERT): :math:`\mathrm{LN}(x + F(x))`.
    It holds the modules of the backbone and no tensor of its own. Dropout and drop-path are left out: the blocks of a
    frozen backbone are in evaluation mode.

    Attributes:
        projections, output, heads: of the attention.
        norm1, norm2: of the two sub-layers.
        mlp: layers applied in order.
        pre_norm: where the norms stand.
        scale1, scale2: applied to what each sub-layer adds (LayerScale).
        q_norm, k_norm: applied per head.
    """

    projections: Projections
    output: Layer
    heads: int
    norm1: nn.Module
    norm2: nn.Module
    mlp: tuple[Layer, ...]
    pre_norm: bool = True
    scale1: nn.Module = field(default_factory=nn.Identity)
    scale2: nn.Module = field(default_factory=nn.Identity)
    q_norm: nn.Module = field(default_factory=nn.Identity)
    k_norm: nn.Module = field(default_factory=nn.Identity)

    def attend(self, x: Tensor, mask: Tensor | None = None, n_read: int | None = None) -> Tensor:
        """The attention sub-layer: ``[B, N, d] -> [B, n_read, d]``.

        Args:
            x: tokens ``[B, N, d]``.
            mask: 1 for tokens that may be looked at, ``[B, N]``; None for all.
            n_read: only the first ``n_read`` tokens are computed; all are looked at. None for all.
        """
        looked_at = self.norm1(x) if self.pre_norm else x
        kept, asking = (x, looked_at) if n_read is None else (x[:, :n_read], looked_at[:, :n_read])
        keys, values = self.projections.key_value(looked_at)
        q = self.q_norm(self._heads(self.projections.query(asking)))  # [B, heads, n_read, d / heads]
        mixed = attention(q, self.k_norm(self._heads(keys)), self._heads(values), mask)
        update = self.scale1(self.output(mixed.transpose(1, 2).flatten(2)))  # [B, n_read, d]
        return kept + update if self.pre_norm else self.norm1(kept + update)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def update(self, x: Tensor) -> Tensor:
        """What the MLP sub-layer adds to tokens, ``[B, N, d] -> [B, N, d]``."""
        h = self.norm2(x) if self.pre_norm else x
        for layer in self.mlp:
            h = layer(h)
        return self.scale2(h)

    def add(self, x: Tensor | None, update: Tensor) -> Tensor:
        """Tokens after the MLP sub-layer; without ``x`` the update stands alone."""
        total = update if x is None else x + update
        return total if self.pre_norm else self.norm2(total)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The block as it was pre-trained, ``[B, N, d] -> [B, N, d]``."""
        attended = self.attend(x, mask)
        return self.add(attended, self.update(attended))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention (Vaswani et al. 2017, equation 1), by the fused kernel where there are many tokens.

    Args:
        q: ``[B, heads, M, e]``. k, v: ``[B, heads, N, e]``.
        mask: 1 for tokens that may be looked at, ``[B, N]``.

    >>> one = torch.ones(1, 1, 2, 1)
    >>> attention(one, one, torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[1, 0]])).flatten()
    tensor([1., 1.])
    """
    bias = None if mask is None else additive(mask, q.dtype)  # [B, 1, 1, N]
    if k.shape[-2] >= FUSED_FROM:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # [B, heads, M, N]
    return (scores if bias is None else scores + bias).softmax(-1) @ v


@dataclass(frozen=True)
class Transformer:
    """A backbone as an embedding, blocks, a final norm and a read-out; made by `tangentcl.nn.layouts.transformer`.

    Attributes:
        embed: a batch -> `Tokens`.
        blocks: at least one.
        norm: after the last block.
        width: d.
        pooling: ``"cls"``, ``"mean"`` or ``"last"``.
        normalize: scale features to length one.
    """

    embed: Callable[[Tensor | dict[str, Tensor]], Tokens]
    blocks: tuple[TransformerBlock, ...]
    norm: nn.Module
    width: int
    pooling: str
    normalize: bool = False

    @property
    def n_read(self) -> int | None:
        """How many tokens the read-out looks at: 1 for the class token, None for all of the input."""
        return 1 if self.pooling == "cls" else None

    def read(self, values: Tensor, tokens: Tokens) -> Tensor:
        """Features ``[B, d]`` of the last block's tokens ``[B, n_read or N, d]``; prompts must be gone."""
        normed = self.norm(values[:, : self.n_read])
        if tokens.mask is None:
            features = pool_image(normed, self.pooling, tokens.n_prefix)
        else:
            features = pool_text(normed, tokens.mask, self.pooling)
        return F.normalize(features, dim=-1) if self.normalize else features

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """Features of the backbone as it was pre-trained, ``[B, d]``, block by block without any short cut."""
        tokens = self.embed(x)
        values = tokens.values
        for block in self.blocks:
            values = block.forward(values, tokens.mask)
        return self.read(values, tokens)


def with_prompts(mask: Tensor | None, n_prompts: int) -> Tensor | None:
    """A mask ``[B, N]`` that also lets ``n_prompts`` tokens at the end be looked at.

    >>> with_prompts(torch.tensor([[1, 0]]), 2)
    tensor([[1, 0, 1, 1]])
    """
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), n_prompts)], dim=1)
