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
ROWS = 256  # turned to float64 at once
SETTLED = 1e-12  # relative residual of weights


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


class Factored:
    r""":math:`G + \lambda I`, factored once and solved for several right-hand sides in float64.

    With ``single`` the factor is of float32, at half the cost, and its error is taken out by refinement: residuals in
    float64 are solved for until they are ``tolerance`` of the right-hand side. Where that fails, or the factor does
    not exist, the factor is made in float64 (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 12).

    Args:
        matrix: G, symmetric float64 [M, M]; not copied in float64. strength: lambda.

    Raises:
        DataError: the system is singular at this strength.

    >>> Factored(torch.eye(2).double(), 1.0, single=True).solve(torch.ones(2, 1).double()).flatten()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, matrix: Tensor, strength: float, *, single: bool) -> None:
        self.matrix, self.strength = matrix, strength
        self._single = cholesky(matrix.float(), strength) if single else None
        self._double: Tensor | None = None

    def solve(self, right: Tensor, tolerance: float | None = SETTLED) -> Tensor:
        r""":math:`(G + \lambda I)^{-1} B`, float64 [M, k], for B, float64 [M, k]; as the factor gives it with None."""
        if self._single is not None and tolerance is None:
            return torch.cholesky_solve(right.float(), self._single).double()
        if self._single is not None and tolerance is not None:
            found = self._refined(self._single, right, tolerance)
            if found is not None:
                return found
            self._single = None
        if self._double is None:
            self._double = cholesky(self.matrix.clone(), self.strength)
            if self._double is None:
                raise singular(len(self.matrix), self.strength)
        return torch.cholesky_solve(right, self._double)

    def _refined(self, factor: Tensor, right: Tensor, tolerance: float) -> Tensor | None:
        size = float(right.norm())
        found, before = torch.cholesky_solve(right.float(), factor).double(), float("inf")
        for _ in range(REFINEMENTS):
            residual = right - self.matrix @ found - self.strength * found
            error = float(residual.norm())
            if error <= tolerance * size:
                return found
            if not error < before / 2:
                break
            before = error
            found = found + torch.cholesky_solve(residual.float(), factor).double()
        return found if before <= max(1e-9, tolerance) * size else None


def cholesky(matrix: Tensor, strength: float) -> Tensor | None:
    """The lower factor of ``matrix + strength I`` in the memory of ``matrix``, whose upper triangle is enough.

    None where it is not positive definite.
    """
    matrix.diagonal().add_(strength)
    factor = matrix.mT  # column after column, as LAPACK has it
    failed = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    return None if bool(failed) else factor


def singular(size: int, strength: float) -> DataError:
    """What to raise where a factor does not exist."""
    return DataError(
        f"the ridge system of size {size} is singular at strength {strength:g}: features repeat or are constant. "
        "Try a larger strength."
    )


def power_iteration(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> float:
    """Largest eigenvalue of a symmetric matrix without negative ones, from below.

    >>> round(power_iteration(torch.diag(torch.tensor([3.0, 1.0])).matmul, torch.ones(2), steps=20), 4)
    3.0
    """
    vector, largest = start if bool(start.any()) else torch.ones_like(start), 0.0
    for _ in range(steps):
        vector = product(vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny))
        largest = float(vector.norm())
    return largest


class Grown:
    """A float64 matrix that gets rows and columns, with room for more of them: it is seldom copied."""

    def __init__(self) -> None:
        self._room = torch.zeros(0, 0, dtype=torch.float64)
        self.shape = (0, 0)

    @property
    def value(self) -> Tensor:
        """What is there, a view."""
        return self._room[: self.shape[0], : self.shape[1]]

    def grow(self, n: int, m: int, device: torch.device) -> Tensor:
        """A view of [n, m], in which rows and columns that are new hold anything."""
        known = self.value
        if n > self._room.shape[0] or m > self._room.shape[1]:
            self._room = torch.empty(n + n // 2, m + m // 2, dtype=torch.float64, device=device)
            self._room[: known.shape[0], : known.shape[1]] = known
        self.shape = (n, m)
        return self.value


def inner_products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a b^T`` in float64, for rows ``a`` [n, M], ``b`` [m, M] of any precision."""
    a = a.double()
    for start in range(0, len(b), ROWS):
        out[:, start : start + ROWS] = a @ b[start : start + ROWS].double().T


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
        self._forget_kernels()

    @property
    def kernel(self) -> Tensor:
        """Inner products of the rows, float64 [r, r]; kept, as rows are only added."""
        n, rows = len(self._kernel.value), self.rows
        if n < len(rows):
            kernel = self._kernel.grow(len(rows), len(rows), rows.device)
            inner_products(rows[n:], rows, kernel[n:])
            kernel[:n, n:] = kernel[n:, :n].T
        return self._kernel.value

    def kernel_with(self, other: RidgeSums) -> Tensor:
        """Inner products of another's rows with these, float64 [s, r]; of one other, always the same."""
        s, r = self._between.shape
        if (s, r) != (len(other.rows), len(self.rows)):
            kernel = self._between.grow(len(other.rows), len(self.rows), self.rows.device)
            inner_products(other.rows[:s], self.rows[r:], kernel[:s, r:])
            inner_products(other.rows[s:], self.rows, kernel[s:])
        return self._between.value

    def _forget_kernels(self) -> None:
        self._kernel, self._between = Grown(), Grown()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forget_kernels()
        return super()._apply(fn, recurse)

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
        if self.is_dense:
            return float(self.gram.trace())
        return sum(float(rows.double().square().sum()) for rows in self.rows.split(ROWS))

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

    def weights(self, strength: float) -> Tensor:
        r""":math:`W = (G + \lambda I)^{-1} Q^\top`, float64 [M, C].

        Raises:
            DataError: the system is singular at this strength.
        """
        if self.is_dense:
            return self.system(strength)(self.cross.T, SETTLED)
        return self.across(Factored(self.kernel, strength, single=False).solve(self.targets))

    def system(self, strength: float) -> Callable[[Tensor, float | None], Tensor]:
        r""":math:`B \mapsto (G + \lambda I)^{-1} B`, float64 [M, k], to a relative residual where G is there."""
        if self.is_dense:
            return Factored(self.gram, strength, single=self.width > EXACT_WIDTH).solve
        dual = Factored(self.kernel, strength, single=False)

        def solve(right: Tensor, _: float | None) -> Tensor:  # (H'H + l)^-1 = (I - H' (HH' + l)^-1 H) / l
            return (right - self.across(dual.solve(self.rows.double() @ right))) / strength

        return solve

    def across(self, dual: Tensor) -> Tensor:
        """``rows^T dual`` [M, k] in float64, for dual [r, k]."""
        total = self.cross.new_zeros(self.width, dual.shape[1])
        for rows, part in zip(self.rows.split(ROWS), dual.split(ROWS)):
            total.addmm_(rows.double().T, part)
        return total

    def squared_error(self, weights: Tensor) -> float:
        r""":math:`\sum w \|y - W^\top h\|^2`."""
        nothing = torch.zeros_like(weights)
        return self.errors_along(weights, nothing, nothing)[0]

    def errors_along(self, weights: Tensor, first: Tensor, second: Tensor) -> tuple[float, float, float]:
        r""":math:`E = \sum w \|y - W^\top h\|^2` along a curve of weights, with its first and second derivative.

        From sums: :math:`E = \sum w - 2\,\mathrm{tr}\,QW + \mathrm{tr}\,W^\top G W`.

        Args:
            weights: W [M, C]. first, second: its derivatives.
        """
        if self.is_dense:
            after, along = self.gram @ weights, self.gram @ first
            slope = after - self.cross.T
            error = self.mass + ((slope - self.cross.T) * weights).sum()
            return float(error), 2 * float((slope * first).sum()), _bend((first * along).sum(), (slope * second).sum())
        products = self.cross.new_zeros(3, len(self.rows), weights.shape[1])
        exact = torch.float64 if self.width <= EXACT_WIDTH else self.rows.dtype
        for k, curve in enumerate((weights, first, second)):
            for start in range(0, len(self.rows), ROWS):
                rows = self.rows[start : start + ROWS].to(exact)
                products[k, start : start + ROWS] = (rows @ curve.to(exact)).double()
        residual, along, bend = products[0] - self.targets, products[1], products[2]
        error, slope = residual.square().sum(), 2 * (residual * along).sum()
        return float(error), float(slope), _bend(along.square().sum(), (residual * bend).sum())

    def largest(self, steps: int) -> float:
        """Largest eigenvalue of G, from below, by power iteration."""
        matrix = self.gram if self.is_dense else self.kernel  # of the same eigenvalues
        return power_iteration(matrix.matmul, self.cross.sum(0) if self.is_dense else self.targets.sum(1), steps)

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


def _bend(square: Tensor, rest: Tensor) -> float:
    return 2 * float(square + rest)
