"""Second moments of many rows: in one pass, in any batches, in several processes whose sketches are merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.linalg.operator import BLOCK


class Sketch(ABC):
    r"""What is kept of rows A [n, d]: a matrix close to :math:`M = A^\top A`.

    Every sketch stands for :math:`\hat M = S^\top S + \mathrm{diag}(r)` and knows how far off it can be: M is between
    :math:`S^\top S` and that plus a remainder whose spectral norm is at most ``shed``. All is float64 on the CPU.

    Attributes:
        d: width of the rows.
        n: rows seen.
        total: sum of their squares, the trace of M, exact.
    """

    kind: ClassVar[str]

    def __init__(self, d: int) -> None:
        if d < 1:
            raise ConfigError(f"rows must have at least one column, got d={d}")
        self.d, self.n, self.total, self._shed = d, 0, 0.0, 0.0

    @property
    def shed(self) -> float:
        """Bound on the spectral norm of what S leaves out."""
        return self._shed

    def update(self, rows: Tensor) -> None:
        """Add rows [m, d]. How a stream of rows is cut into batches makes no difference beyond rounding.

        Raises:
            DataError: another width, or a value that is not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != self.d:
            raise DataError(f"a sketch of width {self.d} takes rows [m, {self.d}], got {list(rows.shape)}")
        for block in rows.detach().split(BLOCK):
            values = block.to("cpu", torch.float64)
            if not bool(values.isfinite().all()):
                raise DataError(f"rows of a sketch must be finite; one from row {self.n} on is not")
            self._add(values)
            self.n += len(values)
            self.total += float(values.square().sum())

    def merge(self, other: Sketch) -> None:
        """Add the rows of another sketch of the same kind and size; ``other`` stays as it is.

        Raises:
            DataError: another kind or width.
        """
        if type(other) is not type(self) or other.d != self.d:
            raise DataError(
                f"a {self.kind} sketch of width {self.d} cannot take a {other.kind} sketch of width {other.d}; "
                "only sketches of one kind and width can be merged"
            )
        self._absorb(other)
        self.n += other.n
        self.total += other.total
        self._shed += other.shed

    def energy(self, delta: Tensor) -> Tensor:
        r"""Estimate of :math:`\|A \delta_c\|^2` for every column of ``delta`` [d, C], float64 [C].

        Raises:
            DataError: another width.
        """
        delta = self._checked(delta)
        rows, diagonal = self.factors()
        return (rows @ delta).square().sum(dim=0) + diagonal @ delta.square()

    def bounds(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        r"""Between which values :math:`\|A \delta_c\|^2` lies, whatever the rows were, two float64 [C]."""
        delta = self._checked(delta)
        low = (self.factors()[0] @ delta).square().sum(dim=0)
        return low, low + self._slack(delta)

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """S [m, d] and r [d] of the matrix that stands for M; see the class."""

    def matrix(self) -> Tensor:
        """The matrix that stands for M, float64 [d, d]."""
        rows, diagonal = self.factors()
        return rows.T @ rows + torch.diag(diagonal)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a file has to hold besides `header`; `restored` is the inverse of the two."""

    @property
    def header(self) -> dict[str, Any]:
        """Kind and sizes as JSON values."""
        return {"kind": self.kind, "d": self.d, "n": self.n, "total": self.total, "shed": self.shed}

    def _slack(self, delta: Tensor) -> Tensor:
        return self.shed * delta.square().sum(dim=0)

    def _checked(self, delta: Tensor) -> Tensor:
        if delta.ndim != 2 or len(delta) != self.d:
            raise DataError(f"a sketch of width {self.d} takes a change [{self.d}, C], got {list(delta.shape)}")
        return delta.detach().to("cpu", torch.float64)

    @abstractmethod
    def _add(self, rows: Tensor) -> None: ...

    @abstractmethod
    def _absorb(self, other: Any) -> None: ...

    @abstractmethod
    def _restore(self, tensors: Mapping[str, Tensor]) -> None: ...


class SecondMoment(Sketch):
    r"""The exact second moment :math:`A^\top A`, d (d + 1) / 2 numbers.

    >>> moment = SecondMoment(2)
    >>> moment.update(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> moment.energy(torch.eye(2)), moment.n, moment.total
    (tensor([1., 5.], dtype=torch.float64), 2, 6.0)
    """

    kind = "exact"

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self._matrix = torch.zeros(d, d, dtype=torch.float64)

    def energy(self, delta: Tensor) -> Tensor:
        delta = self._checked(delta)
        return (delta * (self._matrix @ delta)).sum(dim=0).clamp(min=0.0)

    def bounds(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy(delta), self.energy(delta)

    def factors(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._matrix)
        rows = (vectors * values.clamp(min=0.0).sqrt()).T.flip(0)
        return rows, torch.zeros(self.d, dtype=torch.float64)

    def matrix(self) -> Tensor:
        return self._matrix.clone()

    def tensors(self) -> dict[str, Tensor]:
        i, j = torch.triu_indices(self.d, self.d)
        return {"triangle": self._matrix[i, j]}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        i, j = torch.triu_indices(self.d, self.d)
        triangle = expected(tensors, "triangle", (len(i),))
        self._matrix[i, j] = triangle
        self._matrix[j, i] = triangle

    def _add(self, rows: Tensor) -> None:
        moment = rows.T @ rows
        self._matrix += (moment + moment.T) / 2  # a product's triangles may round apart, and a file keeps one

    def _absorb(self, other: Any) -> None:
        self._matrix += other._matrix


def expected(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a file, or DataError where it is missing or another one."""
    found = tensors.get(name)
    if found is None or found.shape != shape or found.dtype != torch.float64 or not bool(found.isfinite().all()):
        got = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise DataError(f"a sketch needs finite float64 '{name}' {list(shape)}, got {got}")
    return found.clone()
