"""Staleness against true class means after a known movement."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import ConfigError, DataError
from tangentcl.theory import moved_prototypes, staleness
from tangentcl.theory.staleness import Movement


def test_cosines_are_those_of_class_means() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    expected = torch.stack([x @ y / (x.norm() * y.norm()) for x, y in zip(a, b)])
    torch.testing.assert_close(staleness(a, b), expected)
    torch.testing.assert_close(staleness(a, 3 * a), torch.ones(4, dtype=torch.float64))
    with pytest.raises(DataError, match="one shape"):
        staleness(a, b[:2])


@pytest.mark.parametrize("movement", ["ridge", "mean", "near"])
def test_a_shift_that_all_features_share_is_found_exactly(movement: Movement) -> None:
    torch.manual_seed(0)
    old, new, shift = torch.randn(8, 3).double(), torch.randn(20, 3).double(), torch.randn(3).double()
    mean = old.mean(dim=0, keepdim=True)
    found = moved_prototypes(mean, new, new + shift, movement=movement, bandwidth=0.5)
    torch.testing.assert_close(found, (old + shift).mean(dim=0, keepdim=True))


def test_a_ridge_moves_a_mean_as_its_samples_where_the_movement_is_affine() -> None:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=g, dtype=torch.float64) * 0.3
    old, new = (torch.randn(n, 6, generator=g, dtype=torch.float64) + 1 for n in (50, 4000))
    found = moved_prototypes(old.mean(dim=0, keepdim=True), new, new + new @ A + 0.5)
    true = (old + old @ A + 0.5).mean(dim=0, keepdim=True)
    change = true - old.mean(dim=0, keepdim=True)
    mean = moved_prototypes(old.mean(dim=0, keepdim=True), new, new + new @ A + 0.5, movement="mean")
    assert float((found - true).norm()) < 0.7 * float((mean - true).norm()) < 0.2 * float(change.norm())
    # and exactly as a ridge regression of the movement, solved as least squares with penalty rows
    h, strength = new - new.mean(dim=0), (new - new.mean(dim=0)).square().sum() / 6
    rows = torch.cat([h, strength.sqrt() * torch.eye(6, dtype=torch.float64)])
    moved = new @ A + 0.5
    slope = torch.linalg.lstsq(rows, torch.cat([moved - moved.mean(dim=0), torch.zeros(6, 6).double()])).solution
    expected = old.mean(dim=0) + moved.mean(dim=0) + (old.mean(dim=0) - new.mean(dim=0)) @ slope
    torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-10)


def test_sections_move_by_maps_of_their_own() -> None:
    g = torch.Generator().manual_seed(1)
    mean, before, after = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (2, 9, 9))
    found = moved_prototypes(mean, before, after, sections=2)
    for part in (slice(3), slice(3, None)):
        torch.testing.assert_close(found[:, part], moved_prototypes(mean[:, part], before[:, part], after[:, part]))
    with pytest.raises(DataError, match="no 4 sections"):
        moved_prototypes(mean, before, after, sections=4)
    with pytest.raises(ConfigError, match="Did you mean 'ridge'"):
        moved_prototypes(mean, before, after, movement="rigde")  # type: ignore[arg-type]


def test_near_samples_say_more_where_the_shift_differs_from_place_to_place() -> None:
    torch.manual_seed(0)
    before = torch.cat([torch.randn(30, 2) * 0.1, torch.randn(30, 2) * 0.1 + 5.0]).double()
    shift = torch.cat([torch.full((30, 2), 1.0), torch.full((30, 2), -1.0)]).double()
    prototypes = torch.tensor([[0.0, 0.0], [5.0, 5.0]]).double()
    plain, weighted = (moved_prototypes(prototypes, before, before + shift, movement=m) for m in ("mean", "near"))
    torch.testing.assert_close(plain, prototypes)  # the two halves cancel
    torch.testing.assert_close(weighted, prototypes + torch.tensor([[1.0], [-1.0]]).double(), rtol=0, atol=1e-6)
    weights = (-(prototypes[0] - before).square().sum(dim=1) / 2).exp()
    expected = prototypes[0] + (weights[:, None] * shift).sum(dim=0) / weights.sum()
    torch.testing.assert_close(weighted[0], expected)
    with pytest.raises(DataError, match="twice"):
        moved_prototypes(prototypes, before, shift[:3])
