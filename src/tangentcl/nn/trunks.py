"""One pass of a frozen transformer per adaptation branch, sharing what the branches have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.nn.blocks import Tokens, Transformer, with_prompts

Modules = Sequence[nn.Module] | nn.ModuleList
KEEP_PROMPT = 0.1  # share of the old prompt in what the MLP of a later block sees


@dataclass(frozen=True)
class Stem:
    """What is the same in every branch: all up to the MLP of the first adapted block.

    Attributes:
        tokens: the embedded input.
        attended: ``[B, N, d]`` after the attention of block ``first``.
        update: ``[B, N, d]``, what its MLP adds.
        first: the first block that has adaptation modules.
    """

    tokens: Tokens
    attended: Tensor
    update: Tensor
    first: int = 0

    def repeated(self, times: int) -> Stem:
        """The stem of a batch in which every sample stands ``times`` times, one whole batch after the other."""
        mask = self.tokens.mask
        tokens = replace(self.tokens, mask=None if mask is None else mask.repeat(times, 1))
        return Stem(tokens, self.attended.repeat(times, 1, 1), self.update.repeat(times, 1, 1), self.first)


@torch.no_grad()
def stem(model: Transformer, x: Tensor | dict[str, Tensor], first: int = 0) -> Stem:
    """The common beginning of all branches, without gradient: nothing in it is trained.

    Args:
        first: the first block with adaptation modules; those before it are run once, as they were pre-trained.
    """
    tokens = model.embed(x)
    values = tokens.values
    for block in model.blocks[:first]:
        values = block.forward(values, tokens.mask)
    attended = model.blocks[first].attend(values, tokens.mask)
    return Stem(tokens, attended, model.blocks[first].update(attended), first)


def trunk(
    model: Transformer,
    start: Stem,
    *,
    adapters: Modules | None = None,
    prompts: Modules | None = None,
    prompt_share: float | None = None,
) -> Tensor:
    r"""Features ``[B, d]`` of one pass with adaptation modules; without any, those of the backbone.

    *Channel adapters* :math:`A_l` stand beside the MLP of each block, on the input's tokens x after attention:
    pre-norm :math:`x \leftarrow x + \mathrm{MLP}(\mathrm{LN}\,x) + A_l(x)`, post-norm
    :math:`x \leftarrow \mathrm{LN}(x + \mathrm{MLP}(x) + A_l(x))`.

    *Prompts* r are tokens made of a block's tokens between its attention and its MLP:
    :math:`r \leftarrow r + \mathrm{MLP}(\mathrm{LN}(S_l(x) + 0.1\,r))`; in the first block, where there is no r yet,
    they are what the MLP makes of :math:`S_0(x)` alone. They stand after the tokens: behind the embedding the order of
    tokens has no meaning.

    Args:
        adapters: one for each block from ``start.first`` on.
        prompts: one for each of these blocks but the last, whose prompts nothing would look at.
        prompt_share: what prompts count in attention, see `tangentcl.nn.blocks.with_prompts`.
    """
    n, last, tokens = start.attended.shape[1], len(model.blocks) - 1 - start.first, start.tokens
    both, mask = start.attended, tokens.mask  # tokens [B, N, d] and, once there are any, prompts behind them
    for i, block in enumerate(model.blocks[start.first :]):
        if i > 0:
            both = block.attend(both, mask, (model.n_read or n) if i == last else None)
        x, r = _parted(both, n)
        made = None  # what the MLP sees in place of r
        if prompts is not None and i < last:
            made = prompts[i](x, tokens) if r is None else prompts[i](x, tokens) + KEEP_PROMPT * r
        if i > 0:
            update = block.update(both if made is None else torch.cat([x, made], dim=1))
        else:
            update = start.update
        if adapters is not None:
            added = adapters[i](x)
            update = update + (added if r is None else F.pad(added, (0, 0, 0, r.shape[1])))
        both = block.add(both, update)
        if i == 0 and made is not None:
            both = torch.cat([both, block.add(None, block.update(made))], dim=1)
            mask = with_prompts(mask, made, x, prompt_share)
    return model.read(both, tokens)


def _parted(both: Tensor, n: int) -> tuple[Tensor, Tensor | None]:
    if both.shape[1] <= n:  # no prompts, or only what is read
        return both, None
    x, r = both.split([n, both.shape[1] - n], dim=1)
    return x, r


class Stacked(nn.Module):
    """Modules of several branches as one, for their batches one after the other: ``[G B, N, d] -> [G B, M, d]``.

    So several branches are one pass through the frozen weights. With few samples, where a pass takes as long as
    reading the weights does, G branches then cost little more than one.

    Args:
        parts: one for each of the G branches; None adds nothing.
    """

    def __init__(self, parts: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.parts = tuple(parts)  # not registered: the branches own them

    def forward(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        pieces = x.chunk(len(self.parts))
        rest: tuple[Tokens, ...] = ()
        if tokens is not None:
            mask = tokens.mask
            rest = (tokens if mask is None else replace(tokens, mask=mask[: len(pieces[0])]),)
        made = [torch.zeros_like(piece) if f is None else f(piece, *rest) for f, piece in zip(self.parts, pieces)]
        return torch.cat(made)


def stacked(branches: Sequence[Modules | None]) -> list[Stacked]:
    """Block by block, the modules of several branches as one; at least one branch has modules."""
    depth = max(len(branch) for branch in branches if branch is not None)
    return [Stacked([None if branch is None else branch[i] for branch in branches]) for i in range(depth)]
