"""A pre-trained transformer taken apart into blocks, so that modules can be put between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.nn.frozen_linear import FrozenLinear
from tangentcl.nn.pooling import pool_image, pool_text

FUSED_FROM = 64  # tokens; below, attention written out is faster on a CPU than the fused kernel
Layer = Callable[[Tensor], Tensor]
Prefix = tuple[Tensor, Tensor]  # keys and values [B, P, d]


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
    """What makes queries, keys and values of tokens: ``[B, N, d] -> [B, N, d]`` each."""

    def query(self, x: Tensor) -> Tensor: ...

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def weights(self, device_type: str) -> tuple[Tensor, Tensor | None] | None:
        """Weight ``[3 d, d]`` and bias ``[3 d]`` of queries, keys and values, or None where they are not frozen."""
        ...


class SeparateProjections:
    """Three linear layers, computed as one where they are frozen."""

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module) -> None:
        self._query, self._key_value, self._all = FrozenLinear([q]), FrozenLinear([k, v]), FrozenLinear([q, k, v])

    def query(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        return self._query(x)[0]

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, d]`` -> keys and values, ``[B, N, d]`` each."""
        k, v = self._key_value(x)
        return k, v

    def all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, N, d]`` -> queries, keys and values, ``[B, N, d]`` each."""
        q, k, v = self._all(x)
        return q, k, v

    def weights(self, device_type: str) -> tuple[Tensor, Tensor | None] | None:
        """See `Projections`."""
        return self._all.weights(device_type)


class JoinedProjection:
    """One linear layer of 3 d outputs: queries, keys, values (timm)."""

    def __init__(self, qkv: nn.Linear) -> None:
        self.qkv, self._all = qkv, FrozenLinear([qkv])

    def query(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        d = self.qkv.out_features // 3
        return F.linear(x, self.qkv.weight[:d], None if self.qkv.bias is None else self.qkv.bias[:d])

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, d]`` -> keys and values, ``[B, N, d]`` each."""
        d = self.qkv.out_features // 3
        both = F.linear(x, self.qkv.weight[d:], None if self.qkv.bias is None else self.qkv.bias[d:])
        return both[..., :d], both[..., d:]

    def all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, N, d]`` -> queries, keys and values, ``[B, N, d]`` each."""
        q, k, v = self._all(x)[0].chunk(3, dim=-1)
        return q, k, v

    def weights(self, device_type: str) -> tuple[Tensor, Tensor | None] | None:
        """See `Projections`."""
        return self._all.weights(device_type)


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
    _output: FrozenLinear = field(init=False, repr=False)
    _mlp: tuple[FrozenLinear, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_output", FrozenLinear([self.output]))
        object.__setattr__(self, "_mlp", tuple(FrozenLinear([layer]) for layer in self.mlp))

    def attend(
        self, x: Tensor, mask: Tensor | None = None, n_read: int | None = None, prefix: Prefix | None = None
    ) -> Tensor:
        """The attention sub-layer: ``[B, N, d] -> [B, n_read, d]``.

        Args:
            x: tokens ``[B, N, d]``.
            mask: what each token counts, 0 for padding, ``[B, N]``; None for 1.
            n_read: only the first ``n_read`` tokens are computed; all are looked at. None for all.
            prefix: keys and values that stand beside those of the tokens, as the heads see them: after projection
                and after ``k_norm``.
        """
        looked_at = self.norm1(x) if self.pre_norm else x
        kept = x if n_read is None else x[:, :n_read]
        update = self.scale1(self._output(self._mixed(looked_at, mask, n_read, prefix))[0])  # [B, n_read, d]
        return kept + update if self.pre_norm else self.norm1(kept + update)

    def _mixed(self, x: Tensor, mask: Tensor | None, n_read: int | None, prefix: Prefix | None) -> Tensor:
        """What the heads see, side by side: ``[B, N, d] -> [B, n_read, d]``."""
        if n_read is None:
            queries, keys, values = self.projections.all(x)
        else:
            few = n_read * self.heads * 4 <= x.shape[-1] and x.shape[1] > self.heads
            plain = few and prefix is None and isinstance(self.k_norm, nn.Identity)
            weights = self.projections.weights(x.device.type) if plain else None
            if weights is not None:
                q = self.q_norm(self._heads(self.projections.query(x[:, :n_read])))
                return attention_of_few(x, q, *weights, mask)
            queries, (keys, values) = self.projections.query(x[:, :n_read]), self.projections.key_value(x)
        q, k = self.q_norm(self._heads(queries)), self.k_norm(self._heads(keys))  # [B, heads, n_read or N, d / heads]
        v = self._heads(values)
        if prefix is not None:
            k, v = (torch.cat([t, self._heads(p.to(t.dtype))], dim=2) for t, p in zip((k, v), prefix))
            mask = with_prompts(mask, prefix[0], x)
        return attention(q, k, v, mask).transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def update(self, x: Tensor) -> Tensor:
        """What the MLP sub-layer adds to tokens, ``[B, N, d] -> [B, N, d]``."""
        h = self.norm2(x) if self.pre_norm else x
        for layer in self._mlp:
            (h,) = layer(h)
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
    """Softmax attention (Vaswani et al. 2017, equation 1), by the fused kernel where that is faster.

    On a CPU it is slower with few tokens, and in bf16, where its gradient takes three times as long.

    Args:
        q: ``[B, heads, M, e]``. k, v: ``[B, heads, N, e]``.
        mask: what each token counts, 0 for padding, ``[B, N]``.

    >>> one = torch.ones(1, 1, 2, 1)
    >>> attention(one, one, torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[1, 0]])).flatten()
    tensor([1., 1.])
    """
    bias = None if mask is None else log_weights(mask, q.dtype)  # [B, 1, 1, N]
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if k.shape[-2] >= FUSED_FROM and not slow:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    b, heads, _, e = q.shape
    added = q.new_zeros(()) if bias is None else bias.expand(b, heads, 1, -1).flatten(0, 1)  # [B heads, 1, N]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    scores = torch.baddbmm(added, q, k.transpose(1, 2), beta=0 if bias is None else 1, alpha=e**-0.5)
    return (scores.softmax(-1) @ v).unflatten(0, (b, heads))  # scores are [B heads, M, N]


def attention_of_few(x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None = None) -> Tensor:
    r"""Attention of a few queries without keys and values of all tokens, ``[B, M, d]``.

    A head's score is :math:`q^\top (W_k x + b_k) = (W_k^\top q)^\top x + q^\top b_k`, where the last term is the same
    for all tokens and drops out of the softmax; and with weights p that sum to one
    :math:`\sum_n p_n (W_v x_n + b_v) = W_v \sum_n p_n x_n + b_v`. So the tokens are met with M heads vectors of length
    d in place of 2 d.

    Args:
        x: tokens that are looked at, ``[B, N, d]``.
        q: ``[B, heads, M, e]``.
        weight, bias: of queries, keys and values, ``[3 d, d]`` and ``[3 d]``.
        mask: what each token counts, 0 for padding, ``[B, N]``.

    >>> x, w = torch.randn(2, 5, 4), torch.randn(12, 4)
    >>> q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (x @ w.T).chunk(3, dim=-1))
    >>> whole = attention(q[:, :, :1], k, v).transpose(1, 2).flatten(2)
    >>> bool(torch.allclose(attention_of_few(x, q[:, :, :1], w, None), whole, atol=1e-5))
    True
    """
    b, heads, m, e = q.shape
    _, w_k, w_v = weight.unflatten(0, (3, heads, e))  # [heads, e, d]
    asked = (q * e**-0.5).transpose(0, 1).flatten(1, 2) @ w_k  # [heads, B M, d]
    asked = asked.unflatten(1, (b, m)).transpose(0, 1).flatten(1, 2)  # [B, heads M, d]
    scores = asked @ x.to(asked.dtype).transpose(1, 2)  # [B, heads M, N]
    scores = scores if mask is None else scores + log_weights(mask, scores.dtype)[:, 0]
    seen = (scores.softmax(-1) @ x.to(asked.dtype)).unflatten(1, (heads, m))  # [B, heads, M, d]
    values = seen.transpose(0, 1).flatten(1, 2) @ w_v.transpose(1, 2)  # [heads, B M, e]
    found = values.unflatten(1, (b, m)).permute(1, 2, 0, 3).flatten(2)  # [B, M, d]
    return found if bias is None else found + bias.chunk(3)[2]


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


def with_prompts(mask: Tensor | None, prompts: Tensor, tokens: Tensor, share: float | None = None) -> Tensor | None:
    r"""What each token counts, ``[B, N]``, continued by what each prompt counts, ``[B, N + P]``.

    Args:
        mask: 1 for tokens, 0 for padding; None where all are tokens.
        prompts: ``[B, P, d]``. tokens: ``[B, N, d]``.
        share: :math:`\rho`, what all prompts count together, in parts of what the n real tokens do: each then has the
            weight :math:`\rho n / P`. None: a prompt counts as a token does.

    >>> prompts, tokens = torch.zeros(1, 2, 8), torch.zeros(1, 3, 8)
    >>> with_prompts(torch.tensor([[1, 1, 0]]), prompts, tokens)
    tensor([[1, 1, 0, 1, 1]])
    >>> with_prompts(torch.tensor([[1, 1, 0]]), prompts, tokens, share=0.1)
    tensor([[1.0000, 1.0000, 0.0000, 0.1000, 0.1000]])
    """
    if share is None:
        return None if mask is None else torch.cat([mask, mask.new_ones(prompts.shape[:2])], dim=1)
    counted = tokens.new_ones(tokens.shape[:2]) if mask is None else mask
    counted = counted.to(torch.promote_types(tokens.dtype, torch.float32))
    each = share / prompts.shape[1] * counted.sum(1, keepdim=True)  # [B, 1]
    return torch.cat([counted, each.expand(-1, prompts.shape[1])], dim=1)


def log_weights(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to scores, ``[B, N] -> [B, 1, 1, N]``: a token of weight w counts as w tokens do.

    >>> log_weights(torch.tensor([[1.0, 0.5]]), torch.float32).flatten()
    tensor([ 0.0000, -0.6931])
    >>> log_weights(torch.tensor([[1, 0]]), torch.float16).flatten()
    tensor([     0., -65504.], dtype=torch.float16)
    """
    wide = mask.to(torch.promote_types(dtype, torch.float32))
    return wide.log().clamp(min=torch.finfo(dtype).min).to(dtype)[:, None, None, :]
