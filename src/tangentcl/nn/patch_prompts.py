"""S1 of NTK-CL: prompt tokens that a block makes of its own tokens, in four forms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.nn.blocks import Tokens

FORMS = ("linear", "dct", "attention", "static")


class PatchPrompts(nn.Module, ABC):
    r"""Prompts :math:`P = \mathrm{LN}_{\gamma,\beta}(M x)`, where M mixes tokens and leaves channels alone.

    Every form starts with :math:`\gamma = \beta = 0` and a random M: then :math:`\gamma` and :math:`\beta` have a
    gradient from the first step and M from the second. The released code starts M and :math:`\gamma` both at zero,
    which is a saddle that training never leaves. A bias after M shifts all channels of a token alike, and the norm
    takes it away again, so there is none.

    Args:
        width: d. n_prompts: P.

    Shapes: tokens ``[B, N, d]`` -> prompts ``[B, P, d]``.
    """

    def __init__(self, width: int, n_prompts: int) -> None:
        super().__init__()
        if n_prompts < 1:
            raise ConfigError(f"the number of prompts must be at least 1, got {n_prompts}")
        self.n_prompts = n_prompts
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.norm.weight)

    @abstractmethod
    def mixed(self, x: Tensor, tokens: Tokens) -> Tensor:
        """M x, ``[B, P, d]``, of values ``x`` with the mask, grid and prefix of ``tokens``."""

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        return self.norm(self.mixed(x, tokens))


def _mixtures(weight: Tensor, x: Tensor) -> Tensor:
    """``[P, N], [B, N, d] -> [B, P, d]``; as a batch of products, since ``weight @ x`` copies x transposed."""
    return torch.bmm(weight.to(x.dtype).expand(x.shape[0], -1, -1), x)


class LinearPrompts(PatchPrompts):
    """One weight for each prompt and token, ``[P, N]``: the token map of the paper, for one number of tokens.

    Args:
        n_tokens: N, including the class token.

    Raises:
        ModelError: another number of tokens in ``forward``.
    """

    def __init__(self, width: int, n_prompts: int, *, n_tokens: int) -> None:
        super().__init__(width, n_prompts)
        self.weight = nn.Parameter(torch.empty(n_prompts, n_tokens))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def mixed(self, x: Tensor, tokens: Tokens) -> Tensor:
        """``W x``."""
        if x.shape[1] != self.weight.shape[1]:
            raise ModelError(
                f"these prompts were made for {self.weight.shape[1]} tokens, the batch has {x.shape[1]}. "
                "Try prompts='dct' or prompts='attention', which take any number."
            )
        return _mixtures(self.weight, x if tokens.mask is None else x * tokens.mask[..., None])


class DctPrompts(PatchPrompts):
    r"""A token map that is a smooth function of position, for any number of tokens.

    :math:`W_p(i; N) = \sum_{k<K} A_{pk} \cos(\pi k (i + \frac12) / N)` over the N real tokens of a text. On the grid
    of an image the cosines of rows and columns are multiplied, :math:`\lfloor\sqrt K\rfloor` of each, and tokens
    before the patches have a free weight. With K = N every `LinearPrompts` map of a sequence is one of these.

    Args:
        modes: K.
        n_prefix: tokens before the patches of an image; None for texts.
    """

    def __init__(self, width: int, n_prompts: int, *, modes: int = 16, n_prefix: int | None = None) -> None:
        super().__init__(width, n_prompts)
        if modes < 1:
            raise ConfigError(f"the number of modes must be at least 1, got {modes}")
        self.modes, self.side = modes, math.isqrt(modes)
        n_modes = modes if n_prefix is None else self.side**2
        self.amplitude = nn.Parameter(torch.randn(n_prompts, n_modes) / n_modes**0.5)
        self.prefix = nn.Parameter(torch.randn(n_prompts, n_prefix)) if n_prefix else None

    def mixed(self, x: Tensor, tokens: Tokens) -> Tensor:
        """``W x`` with weights drawn for this number of tokens; padding has none."""
        if tokens.grid is not None:
            return _mixtures(self._weights_on(tokens.grid, x), x)
        mask = x.new_ones(x.shape[:2]) if tokens.mask is None else tokens.mask.to(x.dtype)
        length = mask.sum(1, keepdim=True).clamp(min=1)  # [B, 1]
        place = (mask.cumsum(1) - 0.5) / length  # (i + 1/2) / N of the i-th real token [B, N]
        waves = cosines(place, self.modes) * mask[:, None]  # [B, K, N]
        return self.amplitude @ waves / length[..., None] @ x

    def _weights_on(self, grid: tuple[int, int], x: Tensor) -> Tensor:
        places = [(torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n for n in grid]
        rows, columns = (cosines(place, self.side) for place in places)  # [K', h], [K', w]
        waves = torch.einsum("kh,lw->klhw", rows, columns).flatten(2).flatten(0, 1)  # [K'^2, h w]
        weights = self.amplitude @ waves / waves.shape[1]  # [P, h w]
        return weights if self.prefix is None else torch.cat([self.prefix, weights], dim=1)


def cosines(place: Tensor, n: int) -> Tensor:
    r""":math:`\cos(\pi k u)` for k below ``n`` at places u in [0, 1], ``[..., N] -> [..., n, N]``.

    >>> cosines(torch.tensor([0.25, 0.75]), 2)
    tensor([[ 1.0000,  1.0000],
            [ 0.7071, -0.7071]])
    """
    k = torch.arange(n, device=place.device, dtype=place.dtype)
    return torch.cos(torch.pi * k[:, None] * place[..., None, :])


class AttentionPrompts(PatchPrompts):
    r"""Prompts pooled by content: :math:`\mathrm{softmax}(Q (x W_k)^\top / \sqrt r)\,x` over the real tokens.

    For texts, where an absolute position means little.

    Args:
        rank: r, width of queries and keys.
    """

    def __init__(self, width: int, n_prompts: int, *, rank: int = 16) -> None:
        super().__init__(width, n_prompts)
        if rank < 1:
            raise ConfigError(f"the rank of attention prompts must be at least 1, got {rank}")
        self.query = nn.Parameter(torch.randn(n_prompts, rank))
        self.key = nn.Linear(width, rank, bias=False)

    def mixed(self, x: Tensor, tokens: Tokens) -> Tensor:
        """The weighted mean of tokens for each prompt."""
        scores = self.query @ self.key(x).transpose(1, 2) / self.query.shape[1] ** 0.5  # [B, P, N]
        if tokens.mask is not None:
            scores = scores.masked_fill(tokens.mask[:, None] == 0, -torch.inf)
        return scores.softmax(-1) @ x


class StaticPrompts(nn.Module):
    """One learned vector, P times, whatever the tokens are: what the released code amounts to.

    Shapes: tokens ``[B, N, d]`` -> prompts ``[B, P, d]``.
    """

    def __init__(self, width: int, n_prompts: int) -> None:
        super().__init__()
        self.n_prompts = n_prompts
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        return self.vector.to(x.dtype).expand(x.shape[0], self.n_prompts, -1)


def make_prompts(
    form: str,
    width: int,
    n_prompts: int,
    *,
    n_tokens: int,
    n_prefix: int | None,
    modes: int = 16,
    rank: int = 16,
) -> PatchPrompts | StaticPrompts:
    """Prompts of one of `FORMS`; ``n_prefix`` is None for texts.

    Raises:
        ConfigError: an unknown form.

    >>> make_prompts("dct", 8, 2, n_tokens=17, n_prefix=1).amplitude.shape
    torch.Size([2, 16])
    """
    if form == "linear":
        return LinearPrompts(width, n_prompts, n_tokens=n_tokens)
    if form == "dct":
        return DctPrompts(width, n_prompts, modes=modes, n_prefix=n_prefix)
    if form == "attention":
        return AttentionPrompts(width, n_prompts, rank=rank)
    if form == "static":
        return StaticPrompts(width, n_prompts)
    raise ConfigError(f"prompts must be one of {', '.join(FORMS)}, got {form!r}.{nearest(form, FORMS)}")
