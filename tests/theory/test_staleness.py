"""Staleness against true class means after a known movement."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.theory import moved_prototypes, staleness


def test_cosines_are_those_of_class_means() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    expected = torch.stack([x @ y / (x.norm() * y.norm()) for x, y in zip(a, b)])
    torch.testing.assert_close(staleness(a, b), expected)
    torch.testing.assert_close(staleness(a, 3 * a), torch.ones(4, dtype=torch.float64))
    with pytest.raises(DataError, match="one shape"):
        staleness(a, b[:2])


def test_a_shift_that_all_features_share_is_found_exactly() -> None:
    torch.manual_seed(0)
    old, new, shift = torch.randn(8, 3).double(), torch.randn(20, 3).double(), torch.randn(3).double()
    mean = old.mean(dim=0, keepdim=True)
    for bandwidth in (None, 0.5):
        found = moved_prototypes(mean, new, new + shift, bandwidth=bandwidth)
        torch.testing.assert_close(found, (old + shift).mean(dim=0, keepdim=True))


def test_near_samples_say_more_where_the_shift_differs_from_place_to_place() -> None:
    torch.manual_seed(0)
    before = torch.cat([torch.randn(30, 2) * 0.1, torch.randn(30, 2) * 0.1 + 5.0]).double()
    shift = torch.cat([torch.full((30, 2), 1.0), torch.full((30, 2), -1.0)]).double()
    prototypes = torch.tensor([[0.0, 0.0], [5.0, 5.0]]).double()
    plain, weighted = (moved_prototypes(prototypes, before, before + shift, bandwidth=b) for b in (None, 1.0))
    torch.testing.assert_close(plain, prototypes)  # the two halves cancel
    torch.testing.assert_close(weighted, prototypes + torch.tensor([[1.0], [-1.0]]).double(), rtol=0, atol=1e-6)
    weights = (-(prototypes[0] - before).square().sum(dim=1) / 2).exp()
    expected = prototypes[0] + (weights[:, None] * shift).sum(dim=0) / weights.sum()
    torch.testing.assert_close(weighted[0], expected)
    with pytest.raises(DataError, match="twice"):
        moved_prototypes(prototypes, before, shift[:3])
