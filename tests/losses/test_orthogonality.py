from __future__ import annotations

import torch
import torch.nn.functional as F

from tangentcl.losses import (
    cross_kernel_energy,
    old_basis,
    projected_energy,
    released_direction,
    released_orthogonality,
)


def test_the_basis_carries_the_energy_it_was_asked_for() -> None:
    torch.manual_seed(0)
    prototypes = torch.randn(9, 30) @ torch.diag(torch.linspace(3, 0.1, 30))
    unit = F.normalize(prototypes, dim=1)
    u, s, _ = torch.linalg.svd(unit.T, full_matrices=False)
    for energy in (0.5, 0.95, 1.0):
        basis = old_basis(prototypes, energy=energy)
        k = basis.shape[1]
        share = s.square().cumsum(0) / s.square().sum()
        assert share[k - 1] >= energy - 1e-6
        assert k == 1 or share[k - 2] < energy
        torch.testing.assert_close(basis.T @ basis, torch.eye(k), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(basis @ basis.T, u[:, :k] @ u[:, :k].T, rtol=1e-4, atol=1e-5)


def test_the_basis_has_no_more_columns_than_the_rank() -> None:
    torch.manual_seed(0)
    low = torch.randn(8, 3) @ torch.randn(3, 20)
    assert old_basis(low, energy=1.0).shape == (20, 3)
    assert old_basis(torch.zeros(0, 20)).shape == (20, 0)


def test_energies_are_zero_for_orthogonal_features_and_never_negative() -> None:
    old = torch.eye(6)[:2]
    basis = old_basis(old, energy=1.0)
    away, inside = torch.eye(6)[3:], torch.eye(6)[:2]
    assert float(projected_energy(away, basis)) == 0.0
    assert float(cross_kernel_energy(away, old)) == 0.0
    assert abs(float(projected_energy(inside, basis)) - 1) < 1e-6
    z = F.normalize(torch.randn(50, 6), dim=1)
    assert float(projected_energy(z, basis)) > 0
    assert float(cross_kernel_energy(z, old)) > 0
    assert float(projected_energy(z, old_basis(torch.zeros(0, 6)))) == 0.0
    assert float(cross_kernel_energy(z, torch.zeros(0, 6))) == 0.0


def test_the_projected_energy_bounds_the_cross_kernel() -> None:
    torch.manual_seed(0)
    old, z = F.normalize(torch.randn(7, 12), dim=1), F.normalize(torch.randn(20, 12), dim=1)
    s = torch.linalg.svdvals(old)
    basis = old_basis(old, energy=0.7)
    k = basis.shape[1]
    inside = float(projected_energy(z, basis)) * 20
    bound = float(s[0] ** 2) * inside + float(s[k] ** 2) * (20 - inside)
    assert float(cross_kernel_energy(z, old)) * 20 * 7 <= bound


def test_the_released_term_is_the_sum_of_residual_entries() -> None:
    torch.manual_seed(0)
    old, views = torch.randn(5, 60), [F.normalize(torch.randn(4, 60), dim=1) for _ in range(2)]
    columns = torch.zeros(60, 7)
    columns[:, :5] = F.normalize(old, dim=1).T
    basis = torch.linalg.svd(columns, full_matrices=True)[0][:, :40]
    residuals = [x - x @ basis @ basis.T for x in views]
    found = released_orthogonality(views, released_direction(old, 7))
    torch.testing.assert_close(found, sum(r.sum() for r in residuals), rtol=1e-4, atol=1e-4)
    assert float(released_orthogonality([-v for v in views], released_direction(old, 7))) == -float(found)


def test_the_released_direction_of_the_first_task_leaves_out_forty_axes() -> None:
    r = released_direction(torch.zeros(0, 60), 2)
    torch.testing.assert_close(r, torch.cat([torch.zeros(40), torch.ones(20)]))
