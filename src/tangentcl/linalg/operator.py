"""Linear operators known by what they do to vectors, on torch tensors.

scipy and pylops have such operators for numpy arrays only. linear_operator has them for torch, but switches to
conjugate gradients and to a jittered Cholesky factor by size, where a forecast has to stay exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tangentcl.errors import DataError

BLOCK = 4096  # rows converted to the precision of the computation at a time


class LinearOperator(ABC):
    """A linear map ``R^columns -> R^rows`` that is never written down.

    ``operator @ x`` takes a vector [columns] or several [columns, k].
    """

    shape: tuple[int, int]

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """The map applied to each column of ``x``: [columns, k] -> [rows, k]."""

    @property
    @abstractmethod
    def T(self) -> LinearOperator:
        """The transposed map."""

    def __matmul__(self, x: Tensor) -> Tensor:
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[1]:
            raise DataError(
                f"an operator of shape {list(self.shape)} takes [{self.shape[1]}] or [{self.shape[1]}, k], "
                f"got {list(x.shape)}"
            )
        return self.matmul(x[:, None])[:, 0] if x.ndim == 1 else self.matmul(x)

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix, [rows, columns]. For small operators and tests."""
        return self.matmul(torch.eye(self.shape[1], dtype=dtype))


class GramOperator(LinearOperator):
    r"""Inner products of two sets of features, :math:`G = A B^\top + b^2 1 1^\top`, in O((n1 + n2) d) per vector.

    ``b`` is the value of a constant feature (0: none). The factors may be in a lower precision than the vectors; they
    are converted in blocks of rows.

    Shapes: A [n1, d], B [n2, d]; the operator is [n1, n2].

    >>> A, B = torch.eye(2), torch.ones(3, 2)
    >>> GramOperator(A, B, constant=1.0).to_dense()
    tensor([[2., 2., 2.],
            [2., 2., 2.]], dtype=torch.float64)
    """

    def __init__(self, A: Tensor, B: Tensor | None = None, constant: float = 0.0) -> None:
        B = A if B is None else B
        if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1]:
            raise DataError(f"features must be [n1, d] and [n2, d], got {list(A.shape)} and {list(B.shape)}")
        self.A, self.B, self.constant = A, B, constant
        self.shape = (len(A), len(B))

    @property
    def symmetric(self) -> bool:
        """Whether both factors are the same tensor."""
        return self.A is self.B

    @property
    def T(self) -> GramOperator:
        return GramOperator(self.B, self.A, self.constant)

    def matmul(self, x: Tensor) -> Tensor:
        inner = torch.zeros(self.B.shape[1], x.shape[1], dtype=x.dtype, device=x.device)  # B^T x, [d, k]
        for block, rows in zip(self.B.split(BLOCK), x.split(BLOCK)):
            inner.addmm_(block.to(x.dtype).T, rows)
        result = torch.cat([block.to(x.dtype) @ inner for block in self.A.split(BLOCK)])  # [n1, k]
        return result + self.constant**2 * x.sum(dim=0) if self.constant else result


class KroneckerIdentity(LinearOperator):
    r""":math:`G \otimes I_C`: the same map on each of C outputs. Outputs flatten sample-major, ``i * C + c``.

    >>> operator = KroneckerIdentity(GramOperator(torch.eye(2)), 3)
    >>> operator.shape, operator.apply(torch.ones(2, 3)).shape
    ((6, 6), torch.Size([2, 3]))
    """

    def __init__(self, base: LinearOperator, n_outputs: int) -> None:
        self.base, self.n_outputs = base, n_outputs
        self.shape = (base.shape[0] * n_outputs, base.shape[1] * n_outputs)

    @property
    def T(self) -> KroneckerIdentity:
        return KroneckerIdentity(self.base.T, self.n_outputs)

    def matmul(self, x: Tensor) -> Tensor:
        return (self.base @ x.reshape(self.base.shape[1], -1)).reshape(self.shape[0], x.shape[1])

    def apply(self, x: Tensor) -> Tensor:
        """The map on vectors kept in the shape of outputs, [n2, C] -> [n1, C]."""
        return self.base @ x


class DenseOperator(LinearOperator):
    """A matrix that was written down. It may be in a lower precision than the vectors.

    >>> DenseOperator(torch.ones(2, 3)) @ torch.ones(3).double()
    tensor([3., 3.], dtype=torch.float64)
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2:
            raise DataError(f"expected a matrix, got {list(matrix.shape)}")
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])

    @property
    def T(self) -> DenseOperator:
        return DenseOperator(self.matrix.T)

    def matmul(self, x: Tensor) -> Tensor:
        return torch.cat([block.to(x.dtype) @ x for block in self.matrix.split(BLOCK)])

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.matrix.to(dtype)
