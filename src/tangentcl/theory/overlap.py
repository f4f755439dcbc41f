"""How much the kernels of two tasks have in common (Q3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangentcl.errors import DataError


def kernel_overlap(a: Tensor, b: Tensor) -> float:
    r"""Q3: :math:`\mathrm{tr}(G_k G_\tau) / (\|G_k\|_F \|G_\tau\|_F)`, in [0, 1]; NaN where one is zero.

    By :math:`\mathrm{tr}(G_k G_\tau) = \|K(X_k, X_\tau)\|_F^2` it is the energy of the block of the kernel between the
    two tasks, and needs no sample: zero for orthogonal features, one for the same second moment up to scale. Of
    centred moments (`tangentcl.theory.centring`) it is the linear CKA of Kornblith et al., ICML 2019, with the roles of
    samples and features exchanged.

    Args:
        a, b: second moments of the features, [d, d].

    >>> kernel_overlap(torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2))
    0.7071067811865475
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise DataError(f"expected two second moments [d, d], got {list(a.shape)} and {list(b.shape)}")
    a, b = a.to(torch.float64), b.to(torch.float64)
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms > 0 else math.nan
