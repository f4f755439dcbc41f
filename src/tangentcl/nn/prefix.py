"""Prefix tuning: keys and values that blocks attend to beside those of their tokens, chosen or mixed per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.nn.blocks import Prefix, Tokens, Transformer

Prefixes = Mapping[int, Prefix]  # by the index of a block: keys and values, [B, P, d] each
PAPER_DEPTH = 12  # blocks of the ViT-B/16 whose block indices papers give


def prefixed(model: Transformer, tokens: Tokens, prefixes: Prefixes) -> Tensor:
    r"""Features ``[B, d]`` of one pass in which some blocks attend to a prefix of each sample's own.

    In a block with prefix :math:`(P^K, P^V)` a head computes

    .. math:: \mathrm{softmax}\Big(\frac{Q [K; P^K]^\top}{\sqrt{d_h}}\Big) [V; P^V],

    where Q, K, V are what the block projects its tokens to, so that the number of tokens stays. The prefix is a key and
    a value as the heads see them, behind the projections, and is cut into heads as they are. This is what the released
    codes of DualPrompt and CODA-Prompt do; in DualPrompt's formula the prefix stands before the projections, which for
    keys and values that are learned freely is the same up to an affine map. Keys have no order: behind the tokens, as
    here, or before them is one. Padding is not looked at, a prefix always is, by texts of any length.

    Without prefixes these are the backbone's own features.

    Raises:
        ModelError: a prefix for a block that does not exist, or of another shape.
    """
    _check(model, tokens, prefixes)
    values, last = tokens.values, len(model.blocks) - 1
    for i, block in enumerate(model.blocks):
        attended = block.attend(values, tokens.mask, model.n_read if i == last else None, prefixes.get(i))
        values = block.add(attended, block.update(attended))
    return model.read(values, tokens)


def _check(model: Transformer, tokens: Tokens, prefixes: Prefixes) -> None:
    b, _, d = tokens.values.shape
    for i, (keys, values) in prefixes.items():
        if not 0 <= i < len(model.blocks):
            raise ModelError(f"a prefix for block {i} of a transformer with blocks 0 to {len(model.blocks) - 1}.")
        if keys.shape != values.shape or (keys.shape[0], keys.shape[-1], keys.ndim) != (b, d, 3):
            raise ModelError(
                f"expected keys and values [{b}, P, {d}] for block {i}, got {list(keys.shape)} and {list(values.shape)}"
            )


def first_blocks(depth: int, n: int) -> int:
    """The first ``n`` blocks of the papers' 12 as a number of blocks of a network of another depth.

    In networks of 12 blocks and more it is ``n`` itself; in shallower ones the same share of the depth, rounded up.

    >>> first_blocks(12, 5), first_blocks(24, 5), first_blocks(6, 5), first_blocks(2, 5)
    (5, 5, 3, 1)
    """
    return min(n, math.ceil(n * depth / PAPER_DEPTH))


def check_blocks(name: str, blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Indices of blocks in ascending order.

    Raises:
        ConfigError: none, one twice, or one that a network of this depth does not have.

    >>> check_blocks("blocks", [1, 0], 6)
    (0, 1)
    """
    found = tuple(sorted(set(blocks)))
    if not found or len(found) < len(blocks) or not 0 <= found[0] <= found[-1] < depth:
        raise ConfigError(f"{name} must be different block indices from 0 to {depth - 1}, got {list(blocks)}")
    return found


class PrefixPool(nn.Module):
    """Prefixes that arrive group by group, one for each block of a list; the newest group trains, earlier ones rest.

    A group is a parameter ``[m, L, 2, P, d]``: m prefixes for L blocks, keys before values. Shapes change in `append`
    alone, so that a state dict loads into a pool that was led through the same calls.

    Args:
        width: d.
        blocks: indices of the L blocks.
        length: P, keys of a prefix, and as many values.

    Raises:
        ConfigError: a length below 1.

    >>> pool = PrefixPool(8, blocks=(0, 2), length=3)
    >>> pool.append(pool.drawn(4))
    >>> keys, values = pool.chosen(torch.tensor([3, 0]))[2]
    >>> keys.shape, bool((keys[1] == pool.groups[0][0, 1, 0]).all())
    (torch.Size([2, 3, 8]), True)
    """

    def __init__(self, width: int, blocks: Sequence[int], length: int) -> None:
        super().__init__()
        if length < 1:
            raise ConfigError(f"the length of a prefix must be at least 1, got {length}")
        self.width, self.blocks, self.length = width, tuple(blocks), length
        self.groups = nn.ParameterList()

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def drawn(self, m: int) -> Tensor:
        """``[m, L, 2, P, d]``, uniform on [-1, 1], by the global generator on the CPU."""
        return torch.empty(m, len(self.blocks), 2, self.length, self.width).uniform_(-1, 1)

    def append(self, group: Tensor) -> None:
        """Take a new group ``[m, L, 2, P, d]``, which trains, and freeze the earlier ones.

        Raises:
            ModelError: another shape.
        """
        expected = (len(self.blocks), 2, self.length, self.width)
        if group.ndim != 5 or group.shape[1:] != expected:
            raise ModelError(f"expected prefixes [m, {', '.join(map(str, expected))}], got {list(group.shape)}")
        self.groups.requires_grad_(False)
        self.groups.append(nn.Parameter(group))

    @property
    def all(self) -> Tensor:
        """Every prefix in the order of arrival, ``[M, L, 2, P, d]``."""
        return torch.cat(list(self.groups))

    def same(self, index: int, n: int) -> Prefixes:
        """Prefix ``index`` (from the end, if negative) for each of ``n`` samples."""
        return self._by_block(self.all[index].expand(n, -1, -1, -1, -1))

    def chosen(self, index: Tensor) -> Prefixes:
        """For each sample the prefix of that number, ``[B]``."""
        return self._by_block(self.all[index])

    def mixed(self, weights: Tensor) -> Prefixes:
        """For each sample and block the weighted sum of all prefixes, by ``[B, M, L]``."""
        return self._by_block(torch.einsum("bml,mlspd->blspd", weights, self.all.to(weights.dtype)))

    def _by_block(self, prefixes: Tensor) -> Prefixes:
        """``[B, L, 2, P, d]`` as keys and values of each block."""
        return {block: (prefixes[:, i, 0], prefixes[:, i, 1]) for i, block in enumerate(self.blocks)}

    def extra_repr(self) -> str:
        return f"width={self.width}, blocks={self.blocks}, length={self.length}"
