"""What ridge regression on one-hot labels needs of its samples: rows while they are few, sums after that."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from tangentcl.errors import DataError
from tangentcl.heads.head import FittedShapes

COLUMNS = 512  # width of the blocks of a Gram matrix; those below the diagonal are mirrored, not computed
EXACT_WIDTH = 2048  # up to here products of float32 rows are taken in float64
REFINEMENTS = 6
SETTLED, ENOUGH = 1e-12, 1e-6  # relative residuals of weights, and of those that only tell strengths apart


def add_gram(total: Tensor, rows: Tensor, sign: int = 1, columns: int = COLUMNS) -> None:
    """``total += sign * rows^T rows``: blocks on and above the diagonal are multiplied, the others mirrored.

    Each block's product has the precision of ``rows``; the sum has that of ``total``.

    Args:
        total: [M, M], symmetric. rows: [n, M].
    """
    edges = [*range(0, rows.shape[1], columns), rows.shape[1]]
    for a, b in itertools.pairwise(edges):
        product = rows[:, a:b].T @ rows[:, a:]  # [b - a, M - a]
        total[a:b, a:].add_(product, alpha=sign)
        total[b:, a:b] = total[a:b, b:].T


def solve_spd(matrix: Tensor, strength: float, right: Tensor, *, single: bool, tolerance: float = SETTLED) -> Tensor:
    r""":math:`(G + \lambda I)^{-1} B` in float64.

    With ``single`` the factor is of float32, at half the cost, and its error is taken out by refinement: residuals in
    float64 are solved for until they are ``tolerance`` of the right-hand side. Where that fails, or the factor does
    not exist, the factor is made in float64 (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 12).

    Args:
        matrix: G, symmetric float64 [M, M]. strength: lambda. right: B, float64 [M, k].

    Raises:
        DataError: the system is singular at this strength.

    >>> solve_spd(torch.eye(2).double(), 1.0, torch.ones(2, 1).double(), single=True).flatten()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if single:
        found = _refined(matrix, strength, right, tolerance)
        if found is not None:
            return found
    shifted = matrix.clone()
    shifted.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed):
        raise DataError(
            f"the ridge system of size {len(matrix)} is singular at strength {strength:g}: features repeat or are "
            "constant. Try a larger strength."
        )
    return torch.cholesky_solve(right, factor)


def _refined(matrix: Tensor, strength: float, right: Tensor, tolerance: float) -> Tensor | None:
    shifted = matrix.float()
    shifted.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed):
        return None
    size = float(right.norm())
    found, before = torch.cholesky_solve(right.float(), factor).double(), float("inf")
    for _ in range(REFINEMENTS):
        residual = right - matrix @ found - strength * found
        error = float(residual.norm())
        if error <= tolerance * size:
            return found
        if not error < before / 2:
            break
        before = error
        found = found + torch.cholesky_solve(residual.float(), factor).double()
    return found if before <= max(1e-9, tolerance) * size else None


def extended(known: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` in float64, [n, m], of which the first rows and columns are ``known`` already."""
    n, m = known.shape
    if (n, m) == (len(a), len(b)):
        return known
    b = b.double()
    top = known if m == len(b) else torch.cat([known, a[:n].double() @ b[m:].T], 1)
    return torch.cat([top, a[n:].double() @ b.T]) if n < len(a) else top


class RidgeSums(FittedShapes):
    r"""Weighted sums :math:`G = \sum w h h^\top` and :math:`Q = \sum w\, y h^\top` over samples with one-hot labels y.

    While there are fewer samples than the features are wide, the rows :math:`\sqrt w\,h` are kept in place of G, which
    is smaller, and systems are solved in their number (the dual); from then on G, in float64. Both hold the same.

    Args:
        width: of the features, M.

    Attributes:
        cross: Q, float64 [C, M]. rows: [r, M], labels [r] and root_weights [r], empty once ``gram``, float64 [M, M],
            is there. mass: sum of weights. n: number of samples.
    """

    free = ("rows", "labels", "root_weights", "gram")
    rows: Tensor
    labels: Tensor
    root_weights: Tensor
    gram: Tensor
    cross: Tensor
    mass: Tensor
    n: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("rows", torch.zeros(0, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("root_weights", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("gram", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("cross", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("mass", torch.zeros((), dtype=torch.float64))
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))
        self._kernel = torch.zeros(0, 0, dtype=torch.float64)  # of the rows, and with those of another: both only grow
        self._between = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def kernel(self) -> Tensor:
        """Inner products of the rows, float64 [r, r]."""
        n, rows = len(self._kernel), self.rows
        if n < len(rows):
            below = rows[n:].double() @ rows.double().T
            self._kernel = torch.cat([torch.cat([self._kernel, below[:, :n].T], 1), below])
        return self._kernel

    def kernel_with(self, other: RidgeSums) -> Tensor:
        """Inner products of another's rows with these, float64 [s, r]; of one other, always the same."""
        self._between = extended(self._between, other.rows, self.rows)
        return self._between

    def _forget_kernels(self) -> None:
        self._kernel, self._between = self._kernel.new_zeros(0, 0), self._between.new_zeros(0, 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forget_kernels()
        found = super()._apply(fn, recurse)
        self._kernel, self._between = self._kernel.to(self.cross), self._between.to(self.cross)
        return found

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._forget_kernels()

    @property
    def is_dense(self) -> bool:
        """Whether G is there, not rows."""
        return bool(self.gram.numel())

    @property
    def trace(self) -> float:
        """Of G: the sum of squared lengths."""
        return float(self.gram.trace() if self.is_dense else self.rows.double().square().sum())

    def append(self, n_new: int) -> None:
        """Classes without samples: zero rows of Q, since their label is 0 on every sample so far."""
        self.cross = torch.cat([self.cross, self.cross.new_zeros(n_new, self.width)])

    def add(self, features: Tensor, labels: Tensor, weights: Tensor, sign: int = 1) -> None:
        """Add samples, or take them out again with ``sign`` -1.

        Args:
            features: [n, M]. labels: [n]. weights: float64 [n].
        """
        if not len(labels):
            return
        root = weights.sqrt()
        rows = features if bool((root == 1).all()) else features * root[:, None].to(features)
        self._add_cross(rows, labels, root, sign)
        self.mass += sign * weights.sum()
        self.n += sign * len(labels)
        if sign > 0 and not self.is_dense and len(self.rows) + len(rows) < self.width:
            self.rows = torch.cat([self.rows.to(rows), rows])
            self.labels = torch.cat([self.labels, labels])
            self.root_weights = torch.cat([self.root_weights, root])
            return
        self._make_dense()
        self._multiply(rows, sign)

    def _add_cross(self, rows: Tensor, labels: Tensor, root: Tensor, sign: int) -> None:
        """Q, as a product with the one-hot labels of the classes that came."""
        present, places = labels.unique(return_inverse=True)
        dtype = torch.float64 if self.width <= EXACT_WIDTH else rows.dtype
        hot = (F.one_hot(places, len(present)) * root[:, None]).to(dtype)
        self.cross[present] += sign * (hot.T @ rows.to(dtype)).double()

    def take_in(self, other: Self) -> None:
        """Add another's sums."""
        if not self.is_dense and not other.is_dense and len(self.rows) + len(other.rows) < self.width:
            self.rows = torch.cat([self.rows.to(other.rows), other.rows])
            self.labels = torch.cat([self.labels, other.labels])
            self.root_weights = torch.cat([self.root_weights, other.root_weights])
        else:
            self._make_dense()
            if other.is_dense:
                self.gram += other.gram
            else:
                self._multiply(other.rows, 1)
        self.cross += other.cross
        self.mass += other.mass
        self.n += other.n

    def joined(self, other: Self) -> RidgeSums:
        """The sums over both, as a new object."""
        both = RidgeSums(self.width).to(self.cross.device)
        both.cross, both.mass, both.n = self.cross + other.cross, self.mass + other.mass, self.n + other.n
        if not self.is_dense and not other.is_dense and len(self.rows) + len(other.rows) < self.width:
            both.rows = torch.cat([self.rows.to(other.rows), other.rows])
            both.labels = torch.cat([self.labels, other.labels])
            both.root_weights = torch.cat([self.root_weights, other.root_weights])
            between = self.kernel_with(other)
            both._kernel = torch.cat([torch.cat([self.kernel, between.T], 1), torch.cat([between, other.kernel], 1)])
            return both
        dense = [one for one in (self, other) if one.is_dense]
        both.gram = dense[0].gram + dense[1].gram if len(dense) == 2 else self.cross.new_zeros(self.width, self.width)
        if len(dense) < 2:
            for one in (self, other):
                if one.is_dense:
                    both.gram += one.gram
                else:
                    both._multiply(one.rows, 1)
        return both

    def _multiply(self, rows: Tensor, sign: int) -> None:
        rows = rows.double() if self.width <= EXACT_WIDTH else rows
        add_gram(self.gram, rows, sign)

    def _make_dense(self) -> None:
        if self.is_dense:
            return
        self.gram = self.cross.new_zeros(self.width, self.width)
        self._multiply(self.rows, 1)
        self.rows, self.labels, self.root_weights = self.rows[:0], self.labels[:0], self.root_weights[:0]
        self._forget_kernels()

    @property
    def targets(self) -> Tensor:
        r"""Of the rows: :math:`\sqrt w\,y`, float64 [r, C]."""
        return F.one_hot(self.labels, len(self.cross)).double() * self.root_weights[:, None]

    def weights(self, strength: float, tolerance: float = SETTLED) -> Tensor:
        r""":math:`W = (G + \lambda I)^{-1} Q^\top`, float64 [M, C].

        Raises:
            DataError: the system is singular at this strength.
        """
        if self.is_dense:
            return solve_spd(self.gram, strength, self.cross.T, single=self.width > EXACT_WIDTH, tolerance=tolerance)
        return self.rows.double().T @ solve_spd(self.kernel, strength, self.targets, single=False)

    def error_on(self, held: RidgeSums, strength: float) -> float:
        """Squared error on another's samples at this strength."""
        if self.is_dense or held.is_dense:
            return held.squared_error(self.weights(strength, ENOUGH))
        dual = solve_spd(self.kernel, strength, self.targets, single=self.width > EXACT_WIDTH, tolerance=ENOUGH)
        return float((held.targets - self.kernel_with(held) @ dual).square().sum())

    def solve(self, strength: float, right: Tensor) -> Tensor:
        r""":math:`(G + \lambda I)^{-1} B` for any B, float64 [M, k]."""
        if self.is_dense:
            return solve_spd(self.gram, strength, right, single=self.width > EXACT_WIDTH)
        rows = self.rows.double()  # (H'H + l)^-1 = (I - H' (HH' + l)^-1 H) / l
        return (right - rows.T @ solve_spd(self.kernel, strength, rows @ right, single=False)) / strength

    def squared_error(self, weights: Tensor) -> float:
        r""":math:`\sum w \|y - W^\top h\|^2 = \sum w - 2\,\mathrm{tr}\,QW + \mathrm{tr}\,W^\top G W`."""
        if not self.is_dense:
            return float((self.targets - self.rows.double() @ weights).square().sum())
        return float(self.mass - 2 * (self.cross.T * weights).sum() + (weights * (self.gram @ weights)).sum())

    def spectrum(self) -> tuple[Tensor, Tensor]:
        r"""Eigenvalues s > 0 of G, [m], and the labels' energy on each, :math:`\|u_i^\top Y\|^2` [m], in float64."""
        if self.is_dense:
            values, vectors = torch.linalg.eigh(self.gram)
            kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
            inside = self.cross @ vectors[:, kept]  # V^T Q
            return values[kept], inside.square().sum(0) / values[kept]
        rows = self.rows.double()
        values, vectors = torch.linalg.eigh(self.kernel)
        kept = values > values[-1:].clamp(min=0) * max(rows.shape) * torch.finfo(torch.float64).eps
        return values[kept], (vectors[:, kept].T @ self.targets).square().sum(1)
