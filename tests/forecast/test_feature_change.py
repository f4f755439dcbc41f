"""The map of features against least squares with the penalty as rows, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.feature_change import feature_change


def _moved(n: int, d: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + d)
    before = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.linspace(0.3, 2.0, d) + 1.5
    return before, before + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64) + 0.2 * before.flip(1) - 0.7


@pytest.mark.parametrize(("n", "d"), [(30, 6), (5, 9), (2, 3)])
def test_it_is_the_ridge_regression_around_the_means(n: int, d: int) -> None:
    before, after = _moved(n, d)
    found = feature_change(before, after)
    change, centred = after - before, before - before.mean(dim=0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
    rows = torch.cat([centred, eigenvalues.mean().sqrt() * torch.eye(d, dtype=torch.float64)])
    wanted = torch.cat([change - change.mean(dim=0), torch.zeros(d, d, dtype=torch.float64)])
    slope = torch.linalg.lstsq(rows, wanted).solution
    assert float((found[:-1] - slope).norm() / slope.norm()) < 1e-10
    assert torch.allclose(before.mean(dim=0) @ found[:-1] + found[-1], change.mean(dim=0), rtol=1e-12)


def test_units_and_origin_of_the_features_make_no_difference() -> None:
    before, after = _moved(20, 4)
    found = feature_change(before, after)
    scaled = feature_change(10.0 * before, 10.0 * after)
    assert torch.allclose(scaled[:-1], found[:-1], rtol=1e-10)
    assert torch.allclose(scaled[-1], 10.0 * found[-1], rtol=1e-10)
    shifted = feature_change(before + 3.0, after + 3.0)
    assert torch.allclose(shifted[:-1], found[:-1], rtol=1e-10)
    assert torch.allclose(shifted[-1], found[-1] - 3.0 * found[:-1].sum(dim=0), rtol=1e-10)


def test_features_that_stay_or_move_alike() -> None:
    before, _ = _moved(7, 3)
    assert float(feature_change(before, before).norm()) == 0.0
    for rows in (before, before[:1], before[:1].expand(4, 3)):
        found = feature_change(rows.float(), (rows + torch.tensor([1.0, -2.0, 0.0])).float())
        assert torch.allclose(found[-1], torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64), atol=1e-5)
        assert float(found[:-1].norm()) < 1e-5
        assert found.dtype == torch.float64


def test_other_shapes_are_refused() -> None:
    for before, after in ((torch.zeros(3, 2), torch.zeros(2, 2)), (torch.zeros(0, 2),) * 2, (torch.zeros(3),) * 2):
        with pytest.raises(DataError, match=r"expected features \[n, d\]"):
            feature_change(before, after)
