"""Jacobians of a few samples, and kernel matrices from them, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tangentcl.kernels.batch import chunks, n_samples

COLUMNS = 65536  # one float32 product over ten million parameters was off by 4e-3; its blocks are added in float64


@dataclass(frozen=True)
class Factors:
    """Per-sample gradients of one weight shared by tokens, :math:`G_{ic} = \\sum_t g_{ict} a_{it}^\\top`, not formed.

    Shapes: a [n, T, d_in], g [n, C, T, d_out].
    """

    a: Tensor
    g: Tensor

    def gram(self, other: Factors) -> Tensor:
        r"""Inner products :math:`\sum_{ts} (a_{it}^\top a_{js}) (g_{ict}^\top g_{jks})` of all pairs, [n C, m C]."""
        n, C, T, _ = self.g.shape
        m, D, S, d = other.g.shape
        A = self.a.flatten(0, 1) @ other.a.flatten(0, 1).T  # [n T, m S]
        blocks = []
        for c in range(C):
            G = self.g[:, c].reshape(n * T, d) @ other.g.reshape(m * D * S, d).T  # [n T, m C S]
            G = G.view(n, T, m, D, S) * A.view(n, T, m, 1, S)
            blocks.append(G.sum(dim=(1, 4)))  # [n, m, C]
        return torch.stack(blocks, dim=1).reshape(n * C, m * D)


@dataclass(frozen=True)
class Tangent:
    """The Jacobian of some samples: explicit rows [n C, P'], and factors for the parameters that are not in them."""

    rows: Tensor
    factors: dict[str, Factors] = field(default_factory=dict)

    def outputs(self, x: Any) -> int:
        """C, where this is the Jacobian of the samples ``x``."""
        return len(self.rows) // n_samples(x)

    def gram(self, other: Tangent) -> Tensor:
        """The kernel between two sets of samples, [n C, m C]."""
        K = self.rows.new_zeros(len(self.rows), len(other.rows), dtype=torch.float64)
        for ours, theirs in zip(self.rows.split(COLUMNS, dim=1), other.rows.split(COLUMNS, dim=1)):
            K += ours @ theirs.T
        for name, factor in self.factors.items():
            K += factor.gram(other.factors[name])
        return K.to(self.rows.dtype)


TangentOf = Callable[[Any], Tangent]


def _tiles(x: Any, tangent: TangentOf, chunk: int, tile: int) -> Iterator[tuple[int, list[Tangent]]]:
    """Index of the first chunk and the tangents of ``tile`` chunks, for one tile after the other."""
    held: list[Tangent] = []
    first = 0
    for i, part in enumerate(chunks(x, chunk)):
        held.append(tangent(part))
        if len(held) == tile:
            yield first, held
            held, first = [], i + 1
    if held:
        yield first, held


def kernel_matrix(x1: Any, x2: Any, tangent: TangentOf, *, chunk: int, tile: int) -> Tensor:
    """K(x1, x2), or K(x1, x1) without ``x2``, [n1 C, n2 C].

    At most ``tile + 1`` chunks of ``chunk`` samples are held at a time; for more than one tile the other samples'
    Jacobians are computed once per tile.
    """
    if x2 is None:
        return _symmetric(x1, tangent, chunk, tile)
    K: Tensor | None = None
    for first, held in _tiles(x2, tangent, chunk, tile):
        for i, part in enumerate(chunks(x1, chunk)):
            own = tangent(part)
            for j, other in enumerate(held, start=first):
                K = _put(K, own.gram(other), i, j, own.outputs(part), chunk, n_samples(x1), n_samples(x2))
        held.clear()  # before the next tile is made
    assert K is not None  # no batch is empty
    return K


def _symmetric(x: Any, tangent: TangentOf, chunk: int, tile: int) -> Tensor:
    """Only blocks on and above the diagonal are computed."""
    n, parts = n_samples(x), list(chunks(x, chunk))
    K: Tensor | None = None
    for first, held in _tiles(x, tangent, chunk, tile):
        C = held[0].outputs(parts[first])
        for k in range(first, len(parts)):
            later = held[k - first] if k < first + len(held) else tangent(parts[k])
            for i, own in enumerate(held[: k - first + 1], start=first):
                block = own.gram(later)
                block = (block + block.T) / 2 if i == k else block  # a GEMM is symmetric up to rounding only
                K = _put(K, block, i, k, C, chunk, n, n)
                K = _put(K, block.T, k, i, C, chunk, n, n)
        held.clear()  # before the next tile is made
    assert K is not None  # no batch is empty
    return K


def _put(K: Tensor | None, block: Tensor, i: int, j: int, C: int, chunk: int, n1: int, n2: int) -> Tensor:
    """The kernel, made at the first call, with a block at chunks i and j."""
    K = block.new_empty(n1 * C, n2 * C) if K is None else K
    top, left = i * chunk * C, j * chunk * C
    K[top : top + len(block), left : left + block.shape[1]] = block
    return K
