"""A random projection of the Jacobian, to bound what has to be stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError
from tangentcl.kernels.kernel import Kernel
from tangentcl.kernels.network import Outputs
from tangentcl.kernels.ntk import EmpiricalNTK
from tangentcl.linalg import GramOperator


class SketchedNTK(Kernel):
    r""":math:`K(x_1, x_2) \approx (J_1 S)(J_2 S)^\top` with a sparse random :math:`S \in R^{P \times p}`.

    Every parameter goes with a random sign to one random column (count sketch), so a row costs O(P); in expectation
    :math:`S S^\top = I`. Entries are off by about :math:`\|J_i\| \|J_j\| / \sqrt{p}`. It saves storage
    only: while there are fewer than 2 p rows the exact product is as cheap.

    Source: Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002; as a sparse
    Johnson-Lindenstrauss transform: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.

    Args:
        size: p. seed: of S; kernels with the same seed and parameters may be compared. Others: as of `EmpiricalNTK`.

    Attributes:
        error: standard deviation of an entry, relative to the norms of its two rows, 1 / sqrt(p).

    >>> kernel = SketchedNTK(nn.Linear(4, 3), size=64)
    >>> K = kernel(torch.ones(2, 4))
    >>> K.shape, K.A.shape, kernel.exact, kernel.error
    ((6, 6), torch.Size([6, 64]), False, 0.125)
    """

    exact = False

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs | None = None,
        parameters: Sequence[str] | None = None,
        *,
        size: int = 4096,
        seed: int = 0,
        backend: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        if size < 1:
            raise ConfigError(f"the size of a sketch must be at least 1, got {size}")
        self.full = EmpiricalNTK(model, outputs, parameters, backend=backend, chunk_size=chunk_size)
        self.size, self.seed, self.error = size, seed, size**-0.5
        self.approximation = f"Jacobian rows hashed to {size} numbers (count sketch, seed {seed})"

    @property
    def n_outputs(self) -> int:  # type: ignore[override]
        """C; known once the kernel was called."""
        return self.full.n_outputs

    def __call__(self, x1: Any, x2: Any = None) -> GramOperator:
        A = self.rows(x1)
        return GramOperator(A, None if x2 is None else self.rows(x2))

    def rows(self, x: Any) -> Tensor:
        """``J S``, [n C, p]: what to store of old samples."""
        blocks = []
        columns, signs = torch.empty(0), torch.empty(0)
        for J in self.full.jacobian_blocks(x):
            if not len(columns):
                generator = torch.Generator().manual_seed(self.seed)
                columns = torch.randint(self.size, (J.shape[1],), generator=generator).to(J.device)
                signs = (torch.randint(2, (J.shape[1],), generator=generator) * 2 - 1).to(J)
            blocks.append(J.new_zeros(len(J), self.size).index_add_(1, columns, J * signs))
        return torch.cat(blocks)
