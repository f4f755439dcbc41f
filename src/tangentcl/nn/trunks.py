"""One pass of a frozen transformer per adaptation branch, sharing what the branches have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tangentcl.nn.blocks import Tokens, Transformer, with_prompts

Modules = Sequence[nn.Module] | nn.ModuleList  # one for each block
KEEP_PROMPT = 0.1  # share of the old prompt in what the MLP of a later block sees


@dataclass(frozen=True)
class Stem:
    """What is the same in every branch: the embedded input, and attention and MLP update of the first block.

    Attributes:
        tokens: the embedded input.
        attended: ``[B, N, d]`` after the attention of block 0.
        update: ``[B, N, d]``, what its MLP adds.
    """

    tokens: Tokens
    attended: Tensor
    update: Tensor


@torch.no_grad()
def stem(model: Transformer, x: Tensor | dict[str, Tensor]) -> Stem:
    """The common beginning of all branches, without gradient: nothing in it is trained."""
    tokens = model.embed(x)
    attended = model.blocks[0].attend(tokens.values, tokens.mask)
    return Stem(tokens, attended, model.blocks[0].update(attended))


def channel_trunk(model: Transformer, start: Stem, adapters: Modules | None) -> Tensor:
    r"""Features ``[B, d]`` with a channel adapter :math:`A_l` beside the MLP of each block.

    Pre-norm :math:`x \leftarrow x + \mathrm{MLP}(\mathrm{LN}\,x) + A_l(x)`, post-norm
    :math:`x \leftarrow \mathrm{LN}(x + \mathrm{MLP}(x) + A_l(x))`, with x the tokens after attention.

    Args:
        adapters: one per block; None gives the features of the backbone.
    """
    x, mask, last = start.attended, start.tokens.mask, len(model.blocks) - 1
    for i, block in enumerate(model.blocks):
        if i > 0:
            x = block.attend(x, mask, model.n_read if i == last else None)
        update = start.update if i == 0 else block.update(x)
        x = block.add(x, update if adapters is None else update + adapters[i](x))
    return model.read(x, start.tokens)


def patch_trunk(model: Transformer, start: Stem, prompts: Modules) -> Tensor:
    r"""Features ``[B, d]`` with prompt tokens, made of a block's tokens between its attention and its MLP.

    With tokens x and prompts r after attention, :math:`r \leftarrow r + \mathrm{MLP}(\mathrm{LN}(S_l(x) + 0.1\,r))`;
    in the first block, where there is no r yet, the prompts are what the MLP makes of :math:`S_0(x)` alone. Prompts
    stand after the tokens: behind the embedding the order of tokens has no meaning.

    Args:
        prompts: one for each block but the last, whose prompts nothing would look at.
    """
    n, last, tokens = start.attended.shape[1], len(model.blocks) - 1, start.tokens
    x: Tensor = model.blocks[0].add(start.attended, start.update)
    if last == 0:
        return model.read(x, tokens)
    r = model.blocks[0].add(None, model.blocks[0].update(prompts[0](start.attended, tokens)))  # [B, P, d]
    mask = with_prompts(tokens.mask, r.shape[1])
    for i, block in enumerate(model.blocks[1:], start=1):
        both = torch.cat([x, r], dim=1)  # [B, N + P, d]
        if i == last:
            x = block.attend(both, mask, model.n_read or n)
            x = block.add(x, block.update(x))
            break
        both = block.attend(both, mask)
        x, r = both[:, :n], both[:, n:]
        made = prompts[i](x, tokens) + KEEP_PROMPT * r
        both = block.add(both, block.update(torch.cat([x, made], dim=1)))
        x, r = both[:, :n], both[:, n:]
    return model.read(x, tokens)
