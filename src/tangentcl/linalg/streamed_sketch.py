"""Second moments in bounded memory: low rank plus diagonal, and frequent directions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.linalg.sketch import Sketch, expected

DENSE = 1024  # width up to which new rows wait as their exact second moment, [d, d]
WAITING = 512  # new rows that wait as they are above that; fewer compressions drop less and take less time


class Streamed(Sketch):
    """A sketch of k rows that waits for some new ones, then rotates all onto their main axes and keeps k.

    Up to a width of 1024 new rows wait as their second moment, however many, else up to 512 (or k) of them as they are.
    Reading compresses what waits, so that a sketch read in the middle of a stream ends a little different.

    Args:
        d: width of the rows; k: rows kept.
    """

    def __init__(self, d: int, k: int) -> None:
        super().__init__(d)
        if k < 1:
            raise ConfigError(f"a sketch keeps at least one direction, got k={k}")
        self.k = k
        self._kept = torch.zeros(0, d, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self._dense = torch.zeros(d, d, dtype=torch.float64) if d <= DENSE else None

    @property
    def shed(self) -> float:
        self.rows()
        return self._shed

    @property
    def header(self) -> dict[str, Any]:
        return {**super().header, "k": self.k}

    def rows(self) -> Tensor:
        """S [<= k, d], by descending length; compresses what waits."""
        if self._waiting or (self._dense is not None and bool(self._dense.any())):
            self._compress()
        return self._kept

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows().contiguous().clone()}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        rows = tensors.get("rows")
        m = min(len(rows), self.k) if rows is not None and rows.ndim == 2 else 0
        self._kept = expected(tensors, "rows", (m, self.d))

    def _add(self, rows: Tensor) -> None:
        if self._dense is not None:
            self._dense.addmm_(rows.T, rows)
            return
        while len(rows):
            free = max(self.k, WAITING) - sum(len(part) for part in self._waiting)
            self._waiting.append(rows[:free].clone())
            rows = rows[free:]
            if not len(rows) and len(self._waiting[-1]) < free:
                return
            self._compress()

    def _absorb(self, other: Any) -> None:
        self._add(other.rows())

    def _compress(self) -> None:
        if self._dense is None:
            rows = on_main_axes(torch.cat([self._kept, *self._waiting]))
            self._waiting = []
        else:
            rows = main_axes(self._dense.addmm_(self._kept.T, self._kept))
            self._dense.zero_()
        self._kept = rows if len(rows) <= self.k else self._reduced(rows)

    @abstractmethod
    def _reduced(self, rows: Tensor) -> Tensor:
        """At most k rows in place of more, which are orthogonal and come by descending length."""


class LowRankDiagonal(Streamed):
    r"""The top k directions and the exact diagonal of what is left, :math:`S^\top S + \mathrm{diag}(r)`.

    Trace and diagonal are those of :math:`A^\top A` whatever was dropped. The remainder R that r is the diagonal of is
    positive semidefinite, so :math:`\delta^\top R\,\delta` is at most :math:`(\sum_i \sqrt{r_i}\,|\delta_i|)^2` as well
    as at most ``shed`` times :math:`\|\delta\|^2`; ``shed`` sums the largest eigenvalue dropped in each compression.

    Args:
        d: width of the rows; k: directions kept.

    >>> sketch = LowRankDiagonal(3, k=1)
    >>> sketch.update(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    >>> sketch.energy(torch.eye(3)), sketch.shed
    (tensor([9., 4., 1.], dtype=torch.float64), 4.0)
    """

    kind = "low_rank_diagonal"

    def __init__(self, d: int, k: int) -> None:
        super().__init__(d, k)
        self._left = torch.zeros(d, dtype=torch.float64)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.rows(), self._left

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "diagonal": self._left.clone()}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        super()._restore(tensors)
        self._left = expected(tensors, "diagonal", (self.d,))

    def _slack(self, delta: Tensor) -> Tensor:
        return torch.minimum(super()._slack(delta), (self._left.clamp(min=0.0).sqrt() @ delta.abs()).square())

    def _absorb(self, other: Any) -> None:
        super()._absorb(other)
        self._left = self._left + other._left

    def _reduced(self, rows: Tensor) -> Tensor:
        dropped = rows[self.k :].square()
        self._left = self._left + dropped.sum(dim=0)
        self._shed += float(dropped[0].sum())
        return rows[: self.k]


class FrequentDirections(Streamed):
    r"""k rows S with :math:`0 \preceq A^\top A - S^\top S \preceq \mathrm{shed}\, I`, deterministic.

    Each compression lowers all squared lengths by the (k + 1)-th largest, so ``shed`` is at most the squares outside
    the best j directions of A divided by k + 1 - j, for every j up to k. The matrix that stands for M adds the middle
    of the range, ``shed / 2``, to the diagonal.

    Source: Ghashami, Liberty, Phillips and Woodruff, "Frequent Directions: Simple and Deterministic Matrix Sketching",
    SIAM Journal on Computing 2016, the variant that waits for several rows.

    Args:
        d: width of the rows; k: directions kept.

    >>> sketch = FrequentDirections(3, k=1)
    >>> sketch.update(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    >>> round(sketch.rows().square().sum().item(), 9), sketch.shed
    (5.0, 4.0)
    """

    kind = "frequent_directions"

    def factors(self) -> tuple[Tensor, Tensor]:
        rows = self.rows()
        return rows, torch.full((self.d,), self.shed / 2, dtype=torch.float64)

    def _reduced(self, rows: Tensor) -> Tensor:
        squares = rows.square().sum(dim=1)
        cut = squares[self.k]
        self._shed += float(cut)
        kept = squares[: self.k] > cut
        return rows[: self.k][kept] * (1 - cut / squares[: self.k][kept]).sqrt()[:, None]


def on_main_axes(rows: Tensor) -> Tensor:
    """Orthogonal rows with the same second moment, by descending length, without those of length 0, [<= min(m, d), d].

    By the eigenvectors of the smaller Gram matrix: what is lost is below the rounding of the largest squared length.

    >>> on_main_axes(torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)).abs()
    tensor([[2.0000, 0.0000],
            [0.0000, 1.4142]], dtype=torch.float64)
    """
    m, d = rows.shape
    if m <= d:
        vectors = torch.linalg.eigh(rows @ rows.T).eigenvectors
        turned = (vectors.T @ rows).flip(0)
    else:
        return main_axes(rows.T @ rows)
    squares = turned.square().sum(dim=1)
    order = squares.argsort(descending=True, stable=True)
    return turned[order][squares[order] > 0]


def main_axes(moment: Tensor) -> Tensor:
    """Orthogonal rows with this second moment [d, d], by descending length, without those of length 0."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[:1].clamp(min=0.0)
    return (vectors[:, kept] * values[kept].sqrt()).T.contiguous()  # in the order of memory that a file brings back
