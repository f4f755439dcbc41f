"""Correlations against numpy, effective samples against the variance of means, identical views against lambda / 3."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.theory import anchored_ridge, effective_samples, held_out_residuals, view_correlation


def test_correlation_is_numpys_mean_over_pairs() -> None:
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(3, 50, 1)) + rng.normal(size=(1, 50, 1))
    matrix = np.corrcoef(residuals[:, :, 0])
    expected = np.mean([matrix[0, 1], matrix[0, 2], matrix[1, 2]])
    assert view_correlation(torch.from_numpy(residuals)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DataError, match="two views"):
        view_correlation(torch.zeros(1, 5, 1))


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.9])
def test_effective_samples_give_the_variance_of_a_mean(rho: float) -> None:
    rng = np.random.default_rng(0)
    n, V = 20, 3
    shared, own = rng.normal(size=(4000, n, 1)), rng.normal(size=(4000, n, V))
    means = (rho**0.5 * shared + (1 - rho) ** 0.5 * own).mean(axis=(1, 2))
    assert effective_samples(n, V, rho) == pytest.approx(1 / means.var(), rel=0.06)


def test_identical_views_are_one_view_with_a_third_of_the_ridge() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    thrice = anchored_ridge(x.repeat(3, 1), y.repeat(3, 1), torch.zeros(30, 2), 0.9)
    once = anchored_ridge(x, y, torch.zeros(10, 2), 0.3)
    torch.testing.assert_close(thrice.change, once.change, rtol=1e-10, atol=1e-12)
    assert effective_samples(10, 3, view_correlation(held_out_residuals(x.expand(3, -1, -1), y, 0.3))) == pytest.approx(
        10
    )
    with pytest.raises(DataError, match=r"correlation of -0\.5"):
        effective_samples(10, 3, -0.5)


def test_residuals_are_of_samples_the_head_has_not_seen() -> None:
    torch.manual_seed(0)
    views, y = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    found = held_out_residuals(views, y, 0.5)
    phi = torch.cat([views, torch.ones(2, 9, 1, dtype=torch.float64)], dim=2)
    for i in range(9):
        rest = [j for j in range(9) if j % 2 != i % 2]
        a, b = phi[:, rest].reshape(-1, 4), y[rest].repeat(2, 1)
        w = torch.linalg.solve(a.T @ a + 0.5 * torch.eye(4, dtype=torch.float64), a.T @ b)
        torch.testing.assert_close(found[:, i], y[i] - phi[:, i] @ w, rtol=1e-9, atol=1e-10)
    with pytest.raises(DataError, match="views"):
        held_out_residuals(views, y[:3], 0.5)
