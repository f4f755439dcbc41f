"""Radii against the difference of parameters; Rademacher terms against the supremum they bound."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.theory import anchored_ridge, capacity_radius, rademacher_term

from .conftest import OUTPUTS, Drawn


def test_the_radius_of_a_trained_ridge_is_the_predicted_one(new: Drawn) -> None:
    y = torch.nn.functional.one_hot(new.labels, OUTPUTS).double()
    step = anchored_ridge(new.rows, y, torch.zeros_like(y), 0.5)
    head = torch.zeros(new.rows.shape[1], OUTPUTS, dtype=torch.float64)
    lr = 1 / (float(torch.linalg.matrix_norm(new.rows, 2)) ** 2 + 0.5)
    for _ in range(20_000):
        head = head - lr * (new.rows.T @ (new.rows @ head - y) + 0.5 * head)
    assert capacity_radius({"w": torch.zeros_like(head)}, {"w": head}) == pytest.approx(step.radius, rel=1e-9)


def test_the_radius_is_over_all_parameters_and_refuses_others() -> None:
    a = {"w": torch.ones(2, 2), "b": torch.zeros(3)}
    b = {"w": torch.full((2, 2), 3.0), "b": torch.ones(3)}
    assert capacity_radius(a, b) == pytest.approx(math.sqrt(4 * 4 + 3))
    with pytest.raises(DataError, match="begin_task"):
        capacity_radius(a, {"w": torch.ones(2, 2)})


def test_the_term_bounds_the_empirical_rademacher_complexity(old: Drawn) -> None:
    """sup over |delta| <= B of mean_i s_i x_i delta is B |sum_i s_i x_i| / n, averaged over random signs s."""
    signs = torch.randint(2, (4000, len(old.rows)), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    complexity = 1.5 * float((signs @ old.rows).norm(dim=1).mean()) / len(old.rows)
    bound = rademacher_term(1.5, old.moments.features.total, old.moments.n)
    assert bound == pytest.approx(1.5 / len(old.rows) * float((old.rows @ old.rows.T).trace()) ** 0.5, rel=1e-12)
    assert complexity <= bound
    assert complexity > 0.7 * bound  # Jensen loses little
    with pytest.raises(DataError, match="one sample"):
        rademacher_term(1.0, 1.0, 0)
