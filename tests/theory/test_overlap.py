"""Overlap and centred moments from stored moments against the kernel between the samples."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.forecast.moments import TaskMoments
from tangentcl.theory import centred_moment, kernel_overlap, mean_features

from .conftest import WIDTH, Drawn


def test_overlap_is_the_energy_of_the_kernel_between_the_tasks(old: Drawn, new: Drawn) -> None:
    a, b = old.rows, new.rows
    found = kernel_overlap(old.moments.features.matrix(), new.moments.features.matrix())
    expected = (a @ b.T).square().sum() / ((a @ a.T).norm() * (b @ b.T).norm())
    assert found == pytest.approx(float(expected), rel=1e-12)
    assert kernel_overlap(a.T @ a, 5 * a.T @ a) == pytest.approx(1.0, abs=1e-12)


def test_orthogonal_features_have_none_and_nothing_has_no_overlap() -> None:
    assert kernel_overlap(torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 3.0]))) == 0.0
    assert math.isnan(kernel_overlap(torch.eye(2), torch.zeros(2, 2)))
    with pytest.raises(DataError, match="two second moments"):
        kernel_overlap(torch.eye(2), torch.eye(3))


def test_centred_moments_of_several_tasks_are_those_of_their_samples_together(old: Drawn, new: Drawn) -> None:
    both = torch.cat([old.features, new.features])
    torch.testing.assert_close(mean_features([old.moments, new.moments]), both.mean(dim=0), rtol=1e-12, atol=0)
    rows = both - both.mean(dim=0)
    torch.testing.assert_close(centred_moment([old.moments, new.moments]), rows.T @ rows, rtol=1e-9, atol=1e-10)
    with pytest.raises(DataError, match="no sample"):
        mean_features([TaskMoments.empty(WIDTH)])
