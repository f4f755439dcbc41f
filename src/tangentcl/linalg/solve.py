"""Least squares with their residuals: ridge by Cholesky in the cheaper space, minimum norm by singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError


def _relative_residual(features: Tensor, targets: Tensor, solution: Tensor, strength: float) -> float:
    """Of the normal equations, relative to their right-hand side."""
    right = features.T @ targets  # [d, k]
    left = features.T @ (features @ solution) + strength * solution
    norm = right.norm()
    return float((left - right).norm() / norm) if norm > 0 else float(left.norm())


def ridge(features: Tensor, targets: Tensor, strength: float) -> tuple[Tensor, float]:
    r"""The minimiser of :math:`\tfrac12\|\Phi W - Y\|^2 + \tfrac{\lambda}{2}\|W\|^2`.

    Solves :math:`(\Phi^\top\Phi + \lambda I) W = \Phi^\top Y` for ``n >= d`` and
    :math:`W = \Phi^\top(\Phi\Phi^\top + \lambda I)^{-1} Y` for ``n < d``.

    Args:
        features: [n, d]; targets: [n, k]; strength: lambda > 0.

    Returns:
        W [d, k], and the relative residual of the normal equations.

    Raises:
        ConfigError: a strength that is not positive. DataError: a system that is singular at this strength.

    >>> W, residual = ridge(torch.eye(2).double(), torch.ones(2, 1).double(), 1.0)
    >>> W.flatten(), residual < 1e-15
    (tensor([0.5000, 0.5000], dtype=torch.float64), True)
    """
    if not strength > 0:
        raise ConfigError(f"the strength of a ridge must be positive, got {strength}. For none: GradientFlow().")
    n, d = features.shape
    matrix = features.T @ features if n >= d else features @ features.T
    matrix.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise DataError(
            f"the ridge system of size {len(matrix)} is singular at strength {strength:g}. Try a larger one."
        )
    right = features.T @ targets if n >= d else targets
    found = torch.cholesky_solve(right, factor)
    solution = found if n >= d else features.T @ found
    return solution, _relative_residual(features, targets, solution, strength)


def minimum_norm(features: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    r"""The least-squares solution of smallest norm, :math:`W = \Phi^+ Y`.

    By singular values of the features themselves: their Gram matrix would square the condition number.
    Singular values below ``max(n, d) * eps`` times the largest count as zero.

    Returns:
        W [d, k], and the relative residual of the normal equations.

    >>> minimum_norm(torch.tensor([[1.0, 1.0]]).double(), torch.ones(1, 1).double())[0].flatten()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    left, values, right = torch.linalg.svd(features, full_matrices=False)
    cut = max(features.shape) * torch.finfo(features.dtype).eps * values[:1]
    kept = values > cut
    solution = right[kept].T @ ((left[:, kept].T @ targets) / values[kept, None])
    return solution, _relative_residual(features, targets, solution, 0.0)
