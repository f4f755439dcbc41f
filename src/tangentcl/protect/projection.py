"""Directions in which weights may not move, and the projection of their displacement away from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError, ModelError
from tangentcl.linalg.streamed_sketch import main_axes

DEPENDENT = 1e-6  # of the length of unit vectors: what is left is rounding of the stored float32 directions


class ProtectedSpace(nn.Module):
    r"""An orthonormal basis U [d, k], and what the rows of a matrix W [m, d] have to give along it.

    `project` is the hard projection of the displacement since `hold` was called, with W_0 the rows at that time:

    .. math:: W \leftarrow W - (W U - W_0 U)\, U^\top = W_0 + (W - W_0)(I - U U^\top).

    Only :math:`W_0 U` [m, k] has to be kept for it. Whatever moved W (a gradient step, momentum, Adam's scaling, weight
    decay), W x is afterwards what it was for every x in the span of U. Projecting the gradient instead holds that for
    plain gradient descent alone: Adam scales coordinates after the projection, and decay does not ask for it.

    Basis and held values are float32, their shapes follow from what was seen and travel in the extra state.

    Args:
        d: length of a direction.

    >>> space = ProtectedSpace(2)
    >>> space.grow(torch.tensor([[1.0], [0.0]]))
    >>> space.hold(torch.tensor([[3.0, 4.0]]))
    >>> space.project(torch.tensor([[5.0, 6.0]]))
    tensor([[3., 6.]])
    """

    basis: Tensor
    held: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(d, 0), persistent=False)
        self.register_buffer("held", torch.zeros(0, 0), persistent=False)

    @property
    def k(self) -> int:
        """Number of protected directions."""
        return self.basis.shape[1]

    def hold(self, rows: Tensor) -> None:
        """What W [m, d] gives along the basis is to stay."""
        with torch.autocast(rows.device.type, enabled=False):
            self.held = rows.detach().to(self.basis) @ self.basis  # [m, k]

    def project(self, rows: Tensor) -> Tensor:
        """W [m, d] with the held values restored along the basis; rows beyond the held ones are free.

        In float32 at least, also within autocast.
        """
        m = len(self.held)
        if not self.held.numel():
            return rows
        exact = rows if rows.dtype == torch.float64 else rows.float()
        with torch.autocast(rows.device.type, enabled=False):
            basis, held = self.basis.to(exact), self.held.to(exact)
            moved = exact[:m] @ basis - held  # [m, k]
            return torch.cat([exact[:m] - moved @ basis.T, exact[m:]]).to(rows)

    def grow(self, directions: Tensor) -> None:
        """Take in further directions [d, j], made orthonormal; those that lie in the space already are left out.

        Nothing is held until `hold` is called again.
        """
        new = orthonormal(directions, self.basis)
        self.basis = torch.cat([self.basis, new.to(self.basis)], dim=1)
        self.held = self.basis.new_zeros(0, self.k)

    def lengthen(self, d: int) -> None:
        """Directions of more parameters: what was appended is not in the space."""
        if d < len(self.basis):
            raise ModelError(f"protected directions of length {len(self.basis)} cannot be cut to {d}")
        self.basis = torch.cat([self.basis, self.basis.new_zeros(d - len(self.basis), self.k)])

    def get_extra_state(self) -> Tensor:
        """Basis and held values, one below the other, ``[d + m, k]``."""
        return torch.cat([self.basis, self.held])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore `get_extra_state`."""
        d = len(self.basis)
        self.basis, self.held = (part.to(self.basis.device, copy=True) for part in (state[:d], state[d:]))


def orthonormal(directions: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns that span, with ``basis`` [d, k], what the directions [d, j] add to it, float64 [d, <= j].

    In float64: what the basis holds is taken out twice, which loses no orthogonality (Giraud, Langou and Rozloznik,
    Computers & Mathematics with Applications 2005), and of the rest the left singular vectors are kept, through a QR
    decomposition since there are few long vectors. Directions are scaled to length one first; a combination of them
    that leaves less than `DEPENDENT` is left out.

    Args:
        directions: [d, j]. basis: orthonormal columns.

    Raises:
        DataError: another length, or values that are not finite.

    >>> orthonormal(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.0], [0.0]])).abs().round(decimals=9)
    tensor([[0.],
            [1.]], dtype=torch.float64)
    """
    if directions.ndim != 2 or len(directions) != len(basis):
        raise DataError(f"expected directions of length {len(basis)} as columns, got {list(directions.shape)}")
    if not bool(directions.isfinite().all()):
        raise DataError("directions to protect must be finite; a gradient or an input of the old task is not")
    old = basis.to("cpu", torch.float64)
    rest = directions.to("cpu", torch.float64)
    rest = rest / rest.norm(dim=0).clamp(min=1e-300)
    for _ in range(2):
        rest = rest - old @ (old.T @ rest)
    q, r = torch.linalg.qr(rest)
    u, sizes, _ = torch.linalg.svd(r)
    return q @ u[:, : len(sizes)][:, sizes > DEPENDENT]


def uncovered_directions(moment: Tensor, basis: Tensor, threshold: float) -> Tensor:
    r"""The fewest directions that, with a basis, hold a share of the energy of some inputs, float64 [d, j].

    With second moment :math:`M = \sum x x^\top` and :math:`P = U U^\top` of the basis, the leading eigenvectors
    :math:`v_1, \dots, v_j` of :math:`(I - P) M (I - P)`, j the smallest number with

    .. math:: \mathrm{tr}(P M) + \sum_{i \le j} \lambda_i \ge \epsilon\, \mathrm{tr}\,M.

    Source: equations 8 and 9 of Saha, Garg and Roy, "Gradient Projection Memory for Continual Learning", ICLR 2021,
    whose singular values of the matrix of inputs are the roots of these eigenvalues.

    Args:
        moment: M [d, d]. basis: U [d, k], orthonormal. threshold: epsilon in (0, 1]; 1 takes every direction.

    >>> uncovered_directions(torch.diag(torch.tensor([6.0, 3.0, 1.0])), torch.eye(3)[:, :1], 0.9).abs().flatten()
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    moment, old = moment.to("cpu", torch.float64), basis.to("cpu", torch.float64)
    total = moment.trace()
    outside = moment - old @ (old.T @ moment)
    outside = outside - (outside @ old) @ old.T  # [d, d]
    axes = main_axes((outside + outside.T) / 2)
    values = axes.square().sum(dim=1)
    real = values > len(moment) * torch.finfo(torch.float64).eps * total
    axes, values = axes[real], values[real]
    missing = threshold * total - (total - outside.trace())
    if missing <= 0:
        return old.new_zeros(len(moment), 0)
    if threshold < 1:
        n = int((values.cumsum(0) < missing * (1 - 1e-12)).sum()) + 1
        axes, values = axes[:n], values[:n]
    return (axes / values.sqrt()[:, None]).T
