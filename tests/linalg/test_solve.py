"""Solves against dense references, and their residuals."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import ConfigError
from tangentcl.linalg import minimum_norm, ridge


@pytest.mark.parametrize("n, d", [(9, 4), (4, 9)])
def test_ridge_solves_the_normal_equations(n: int, d: int) -> None:
    g = torch.Generator().manual_seed(0)
    features, targets = (torch.randn(n, k, generator=g, dtype=torch.float64) for k in (d, 2))
    found, residual = ridge(features, targets, 0.3)
    eye = torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(found, torch.linalg.solve(features.T @ features + 0.3 * eye, features.T @ targets))
    assert residual < 1e-13


@pytest.mark.parametrize("n, d", [(9, 4), (4, 9)])
def test_minimum_norm_is_the_pseudo_inverse(n: int, d: int) -> None:
    g = torch.Generator().manual_seed(0)
    features, targets = (torch.randn(n, k, generator=g, dtype=torch.float64) for k in (d, 2))
    features[:, -1] = features[:, 0]  # rank deficient
    found, residual = minimum_norm(features, targets)
    torch.testing.assert_close(found, torch.linalg.pinv(features) @ targets, rtol=1e-10, atol=1e-12)
    assert residual < 1e-13


def test_no_targets_have_no_residual() -> None:
    features = torch.eye(3, dtype=torch.float64)
    found, residual = ridge(features, torch.zeros(3, 1, dtype=torch.float64), 1.0)
    assert (found.abs().max().item(), residual) == (0.0, 0.0)


def test_a_strength_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive, got 0"):
        ridge(torch.eye(2).double(), torch.eye(2).double(), 0.0)
