"""Principal angles and energies against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tangentcl.errors import ConfigError
from tangentcl.theory import main_directions, principal_cosines, subspace_energy


def test_main_directions_hold_just_the_share_that_is_asked_for() -> None:
    torch.manual_seed(0)
    rows = torch.randn(30, 6, dtype=torch.float64) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.1])
    moment = rows.T @ rows
    for energy in (0.5, 0.9, 1.0):
        basis = main_directions(moment, energy=energy)
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
        share = [float((rows @ basis[:, :r]).square().sum() / rows.square().sum()) for r in range(basis.shape[1] + 1)]
        assert share[-1] >= energy - 1e-12
        assert share[-2] < energy
    assert main_directions(moment, energy=1.0, most=2).shape == (6, 2)
    with pytest.raises(ConfigError, match="share"):
        main_directions(moment, energy=0.0)


def test_cosines_are_those_of_known_rotations() -> None:
    angles = torch.tensor([0.2, 1.1], dtype=torch.float64)
    a = torch.eye(5, dtype=torch.float64)[:, :2]
    b = torch.zeros(5, 2, dtype=torch.float64)
    b[0, 0], b[2, 0] = angles[0].cos(), angles[0].sin()
    b[1, 1], b[3, 1] = angles[1].cos(), angles[1].sin()
    turned = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q  # another basis of the same space
    torch.testing.assert_close(principal_cosines(a, b @ turned), angles.cos(), rtol=1e-12, atol=1e-12)


def test_forgetting_is_bounded_by_the_largest_cosine() -> None:
    """Doan et al. 2021, theorem 1: without overlap of the spaces nothing is forgotten."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator)).Q
    old = torch.randn(20, 3, dtype=torch.float64, generator=generator) @ basis[:, :3].T
    new = torch.randn(20, 3, dtype=torch.float64, generator=generator) @ basis[:, 2:5].T
    change = new.T @ torch.randn(20, 2, dtype=torch.float64, generator=generator)
    spaces = [main_directions(x.T @ x, energy=1.0) for x in (old, new)]
    cosines = principal_cosines(*spaces)
    np.testing.assert_allclose(cosines, [1.0, 0.0, 0.0], atol=1e-7)
    apart = change - basis[:, 2:3] @ (basis[:, 2:3].T @ change)  # what of the change is in no shared direction
    assert float((old @ apart).norm()) < 1e-10
    assert float((old @ change).norm()) <= float(cosines[0] * torch.linalg.matrix_norm(old, 2) * change.norm()) + 1e-12


def test_energy_is_the_mean_squared_cosine_with_the_space() -> None:
    torch.manual_seed(1)
    features, centre = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64)).Q
    expected = [float((basis.T @ ((x - centre) / (x - centre).norm())).square().sum()) for x in features]
    assert subspace_energy(features, basis, centre) == pytest.approx(np.mean(expected), rel=1e-12)
    assert subspace_energy(features, torch.eye(4), centre) == pytest.approx(1.0)
    assert subspace_energy(centre[None], basis, centre) == 0.0
