"""The projection against its formula, the basis against Gram-Schmidt and the singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import DataError, ModelError
from tangentcl.protect.projection import ProtectedSpace, orthonormal, uncovered_directions


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _space(d: int, k: int, start: torch.Tensor) -> ProtectedSpace:
    space = ProtectedSpace(d)
    space.grow(_normal(d, k, seed=1))
    space.hold(start)
    return space


def test_two_dimensions_by_hand() -> None:
    space = ProtectedSpace(2)
    space.grow(torch.tensor([[1.0], [1.0]]))  # the direction (1, 1) / sqrt 2
    space.hold(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    # (1, 2) moves by (3, 1): of that (2, 2) lies along (1, 1), and (1, -1) is left
    moved = space.project(torch.tensor([[4.0, 3.0], [1.0, -1.0]]))
    torch.testing.assert_close(moved, torch.tensor([[2.0, 1.0], [1.0, -1.0]]))


def test_the_displacement_loses_its_part_in_the_space() -> None:
    start, end = _normal(3, 7, seed=2), _normal(3, 7, seed=3)
    space = _space(7, 4, start)
    u = torch.linalg.qr(_normal(7, 4, seed=1))[0]
    expected = start + (end - start) @ (torch.eye(7).double() - u @ u.T)
    projected = space.project(end)
    torch.testing.assert_close(projected, expected, rtol=0, atol=2e-6)
    x = _normal(4, 1, seed=4)
    torch.testing.assert_close(projected @ u @ x, start @ u @ x, rtol=0, atol=2e-6)


def test_projecting_twice_changes_nothing() -> None:
    start, end = _normal(3, 7, seed=2).float(), _normal(3, 7, seed=3).float()
    space = _space(7, 4, start)
    once = space.project(end)
    torch.testing.assert_close(space.project(once), once, rtol=0, atol=1e-6)


def test_rows_beyond_the_held_ones_are_free() -> None:
    start, end = _normal(2, 7, seed=2), _normal(5, 7, seed=3)
    projected = _space(7, 4, start).project(end)
    assert torch.equal(projected[2:], end[2:])
    assert not torch.allclose(projected[:2], end[:2], atol=1e-3)


def test_without_a_basis_or_a_hold_nothing_is_done() -> None:
    space, end = ProtectedSpace(4), _normal(2, 4)
    assert space.project(end) is end
    space.hold(end)
    assert torch.equal(space.project(end + 1), end + 1)
    space.grow(_normal(4, 1))
    assert space.project(end) is end


def test_autocast_does_not_round_the_projection() -> None:
    start, end = _normal(3, 64, seed=2).float(), _normal(3, 64, seed=3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        space = _space(64, 10, start)
        inside = space.project(end)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, _space(64, 10, start).project(end), rtol=0, atol=0)


def test_longer_directions_leave_what_is_new_free() -> None:
    space = ProtectedSpace(2)
    space.grow(torch.tensor([[1.0], [0.0]]))
    space.lengthen(4)
    space.hold(torch.zeros(1, 4))
    assert space.project(torch.ones(1, 4)).tolist() == [[0.0, 1.0, 1.0, 1.0]]
    with pytest.raises(ModelError, match="cannot be cut to 3"):
        space.lengthen(3)


def test_state_round_trip_with_shapes_of_its_own() -> None:
    space = _space(7, 4, _normal(3, 7, seed=2))
    other = ProtectedSpace(7)
    other.load_state_dict(space.state_dict())
    assert torch.equal(other.basis, space.basis)
    assert torch.equal(other.held, space.held)
    end = _normal(3, 7, seed=3).float()
    assert torch.equal(other.project(end), space.project(end))
    empty = ProtectedSpace(7)
    empty.load_state_dict(ProtectedSpace(7).state_dict())
    assert empty.k == 0


def test_columns_are_orthonormal_and_span_what_was_given() -> None:
    basis = orthonormal(_normal(9, 3, seed=1), torch.zeros(9, 0))
    given = _normal(9, 4, seed=2)
    new = orthonormal(given, basis)
    both = torch.cat([basis, new], dim=1)
    torch.testing.assert_close(both.T @ both, torch.eye(7).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(both @ both.T @ given, given, rtol=0, atol=1e-13)


def test_nearly_dependent_directions_stay_orthogonal() -> None:
    base = _normal(50, 1, seed=1)
    given = base + 1e-4 * _normal(50, 20, seed=2)
    new = orthonormal(given, torch.zeros(50, 0))
    assert new.shape == (50, 20)
    torch.testing.assert_close(new.T @ new, torch.eye(20).double(), rtol=0, atol=1e-13)


def test_dependent_and_zero_directions_are_left_out() -> None:
    given = _normal(6, 2)
    given = torch.cat([given, given.sum(dim=1, keepdim=True), torch.zeros(6, 1), 1e-9 * _normal(6, 1, seed=5)], dim=1)
    assert orthonormal(given, torch.zeros(6, 0)).shape == (6, 3)  # a small gradient is a direction like any other
    assert orthonormal(given[:, :1], orthonormal(given[:, :1], torch.zeros(6, 0))).shape == (6, 0)


def test_impossible_directions() -> None:
    with pytest.raises(DataError, match="length 3"):
        orthonormal(torch.ones(2, 1), torch.zeros(3, 0))
    with pytest.raises(DataError, match="finite"):
        orthonormal(torch.tensor([[torch.nan]]), torch.zeros(1, 0))


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 1.0])
def test_growth_follows_the_singular_values_of_the_paper(threshold: float) -> None:
    x = _normal(30, 8, seed=1) @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 0.7, 0.3, 0.1]).double())
    basis = torch.linalg.qr(_normal(8, 2, seed=2))[0]
    found = uncovered_directions(x.T @ x, basis, threshold)
    rest = x.T - basis @ (basis.T @ x.T)  # equation 9, [d, n]
    u, s, _ = torch.linalg.svd(rest)
    inside = (basis.T @ x.T).square().sum()
    shares = [(inside + s[:k].square().sum()) / x.square().sum() for k in range(7)]
    k = next(k for k in range(7) if shares[k] >= threshold * (1 - 1e-12))
    assert found.shape == (8, k)
    torch.testing.assert_close(found @ found.T, u[:, :k] @ u[:, :k].T, rtol=0, atol=1e-8)


def test_what_is_covered_needs_nothing_more() -> None:
    x = _normal(5, 8)
    full = uncovered_directions(x.T @ x, torch.zeros(8, 0), 1.0)
    assert full.shape == (8, 5)  # fewer samples than dimensions: their span
    assert uncovered_directions(x.T @ x, full, 0.99).shape == (8, 0)
    assert uncovered_directions(torch.zeros(8, 8), torch.zeros(8, 0), 0.97).shape == (8, 0)
