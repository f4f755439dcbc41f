"""Keep the features of a new task out of the space that old classes occupy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RELEASED_RANK = 40


def old_basis(prototypes: Tensor, *, energy: float = 0.95) -> Tensor:
    r"""Orthonormal columns that carry a share of the energy of old prototypes, ``[D, k]``.

    The left singular vectors of the matrix with unit prototypes as columns, as few as carry ``energy`` of the sum of
    squared singular values, and never more than its rank. No prototype gives k = 0. One decomposition per task, of
    the Gram matrix ``[M, M]`` of prototypes rather than of a ``[D, M]`` one.

    Args:
        prototypes: ``[M, D]``, centred by the caller if the features share a mean direction.
        energy: in (0, 1].

    >>> old_basis(torch.tensor([[2.0, 0.0, 0.0], [3.0, 0.0, 0.0]])).abs()
    tensor([[1.],
            [0.],
            [0.]])
    """
    unit = F.normalize(prototypes.double(), dim=1)  # [M, D]
    if not len(unit):
        return prototypes.new_zeros(prototypes.shape[1], 0)
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)  # largest first
    rank = int((values > values[0] * 1e-10).sum())
    enough = int((values.cumsum(0) < energy * values.sum() * (1 - 1e-12)).sum()) + 1
    k = min(rank, enough)
    return (unit.T @ vectors[:, :k] / values[:k].sqrt()).to(prototypes.dtype)


def projected_energy(z: Tensor, basis: Tensor) -> Tensor:
    r"""Mean energy of unit rows in the old space, :math:`\operatorname{mean}_i \|B^\top z_i\|^2`, in [0, 1].

    With P the old features, singular values :math:`\sigma` and B the first k left singular vectors,
    :math:`\|Z P^\top\|_F^2 \le \sigma_1^2 \sum_i \|B^\top z_i\|^2 + \sigma_{k+1}^2 \sum_i \|z_i - B B^\top z_i\|^2`:
    it bounds the part of the kernel between old and new samples that the features make.

    Args:
        z: ``[B, D]``. basis: ``[D, k]`` with orthonormal columns.

    >>> projected_energy(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0], [0.0]])).item()
    0.36000001430511475
    """
    return (z @ basis.to(z)).square().sum(1).mean()


def cross_kernel_energy(z: Tensor, prototypes: Tensor) -> Tensor:
    r"""Mean squared feature kernel between unit rows and old prototypes, :math:`\|Z P^\top\|_F^2 / (B M)`.

    The quantity that `projected_energy` bounds, measured. Zero without prototypes.

    Args:
        z: ``[B, D]``. prototypes: unit rows ``[M, D]``.

    >>> cross_kernel_energy(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).item()
    0.5
    """
    return (z @ prototypes.to(z).T).square().sum() / max(len(z) * len(prototypes), 1)


def released_direction(prototypes: Tensor, n_seen: int) -> Tensor:
    """The fixed vector r = (I - B B') 1 of the released term, ``[D]``.

    B holds the first 40 left singular vectors of the matrix with unit old prototypes and zeros for the current
    classes as columns; where fewer than 40 columns are not zero, what the decomposition gives for the null space
    fills up, and in the first task the coordinate axes do.

    Args:
        prototypes: of old classes ``[M, D]``. n_seen: number of columns, M and the current classes.
    """
    width = prototypes.shape[1]
    columns = prototypes.new_zeros(width, n_seen)
    columns[:, : len(prototypes)] = F.normalize(prototypes, dim=1).T
    basis = torch.linalg.svd(columns, full_matrices=n_seen < RELEASED_RANK)[0][:, :RELEASED_RANK]
    ones = prototypes.new_ones(width)
    return ones - basis @ (basis.T @ ones)


def released_orthogonality(views: list[Tensor], direction: Tensor) -> Tensor:
    r"""What the released term amounts to: :math:`\sum_i (\hat c_i + \hat p_i) \cdot r`, a sum over the batch.

    The code adds up the signed entries of residuals, which is a linear function of the features and not an energy: it
    can be negative, and alone it sends all features to -r. For comparison only.

    Args:
        views: unit rows ``[B, D]`` of the channel and the patch branch.
        direction: `released_direction`.
    """
    return torch.stack([(view @ direction.to(view)).sum() for view in views]).sum()
