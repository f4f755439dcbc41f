"""The space that earlier tasks occupy: principal angles and energies in it (Q4, Q12)."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.linalg.streamed_sketch import main_axes


def main_directions(moment: Tensor, *, energy: float = 0.95, most: int | None = None) -> Tensor:
    """Orthonormal columns that hold a share of a second moment, by descending eigenvalue, float64 [d, r].

    Args:
        moment: [d, d]. energy: share of its trace. most: limit on r.

    Raises:
        ConfigError: a share that is not in (0, 1].

    >>> main_directions(torch.diag(torch.tensor([1.0, 98.0, 1.0]))).abs().flatten().tolist()
    [0.0, 1.0, 0.0]
    """
    if not 0 < energy <= 1:
        raise ConfigError(f"the share of the energy must be above 0 and at most 1, got {energy}")
    rows = main_axes(moment.detach().to("cpu", torch.float64))
    values = rows.square().sum(dim=1)
    enough = int((values.cumsum(0) < energy * values.sum() * (1 - 1e-12)).sum()) + 1
    rows = rows[: enough if most is None else min(enough, most)]
    return (rows / rows.norm(dim=1, keepdim=True)).T


def principal_cosines(a: Tensor, b: Tensor) -> Tensor:
    r"""Q4: cosines of the principal angles of two spaces, descending, float64 [min(r, s)].

    The singular values of the overlap matrix :math:`O^{k \to \tau} = V_k^\top V_\tau`, by which forgetting is bounded
    in Doan et al., "A Theoretical Analysis of Catastrophic Forgetting through the NTK Overlap Matrix", AISTATS 2021,
    theorem 1.

    Args:
        a, b: orthonormal columns [d, r] and [d, s].

    >>> principal_cosines(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
    tensor([1., 0.], dtype=torch.float64)
    """
    return torch.linalg.svdvals(a.to(torch.float64).T @ b.to(torch.float64)).clamp(max=1.0)


def subspace_energy(features: Tensor, basis: Tensor, centre: Tensor) -> float:
    r"""Q12: mean energy of features in the old space, :math:`\mathrm{mean}_i\,\|B^\top \hat z_i\|^2`, in [0, 1].

    :math:`\hat z` is the centred feature at length one. With :math:`\sigma` the singular values of old features P and
    B their first k directions, :math:`\|Z P^\top\|_F^2 \le \sigma_1^2 \sum_i \|B^\top z_i\|^2 + \sigma_{k+1}^2 \sum_i
    \|(I - BB^\top) z_i\|^2`: it bounds the part of the kernel between the tasks that features make. A feature equal to
    the centre has none.

    Args:
        features: [n, d]. basis: orthonormal columns [d, k]. centre: mean of the old features, [d].

    >>> subspace_energy(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]), torch.zeros(2))
    0.36
    """
    rows = features.to(torch.float64) - centre.to(torch.float64)
    lengths = rows.square().sum(dim=1)
    inside = (rows @ basis.to(torch.float64)).square().sum(dim=1)
    return float(torch.where(lengths > 0, inside / lengths.clamp(min=1e-300), 0.0).mean())
