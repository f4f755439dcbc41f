"""The protected closed form against joint least squares and against the minimum of its objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.errors import ConfigError, DataError
from tangentcl.forecast import Ridge, forecast_linear, linear_problem
from tangentcl.forecast.protected_ridge import ProtectedRidge
from tangentcl.linalg import with_constant

MakeCase = Callable[..., Any]


def moment(features: Tensor, bias: bool) -> Tensor:
    rows = with_constant(features, float(bias))
    return rows.T @ rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_minimum_of_its_objective(make_case: MakeCase, bias: bool, masked: bool) -> None:
    case = make_case(bias=bias, masked=masked)
    problem = linear_problem(case.features_new, case.head.weight, case.head.bias, case.labels, case.columns)
    recipe = ProtectedRidge(moment=moment(case.features_old, bias), protection=0.7, strength=0.3)
    moved = recipe.displacement(problem)
    assert moved.residual < 1e-12

    delta = moved.weight[:, problem.columns].requires_grad_()
    old = with_constant(case.features_old, float(bias))
    fit = problem.features @ (problem.active + delta) - problem.targets
    objective = 0.5 * (fit.square().sum() + 0.7 * (old @ delta).square().sum() + 0.3 * delta.square().sum())
    (gradient,) = torch.autograd.grad(objective, delta)  # of a convex function
    assert gradient.abs().max() < 1e-12 * problem.targets.sum()
    others = [c for c in range(case.head.out_features) if c not in problem.columns]
    assert not moved.weight[:, others].any()


def test_full_protection_from_the_old_solution_is_joint_least_squares() -> None:
    g = torch.Generator().manual_seed(0)
    old, new = (torch.randn(n, 6, generator=g).double() for n in (40, 30))
    labels_old, labels_new = torch.randint(2, (40,), generator=g), torch.randint(2, 4, (30,), generator=g)
    rows = with_constant(torch.cat([old, new]), 1.0)
    targets = F.one_hot(torch.cat([labels_old, labels_new]), 4).double()
    both = torch.linalg.lstsq(rows, targets).solution
    first = torch.linalg.lstsq(rows[:40], targets[:40]).solution
    head = nn.Linear(6, 4).double()
    with torch.no_grad():
        head.weight.copy_(first[:-1].T)
        head.bias.copy_(first[-1])
    forecast = forecast_linear(old, head, new, labels_new, ProtectedRidge(moment=moment(old, True), strength=1e-12))
    torch.testing.assert_close(forecast.after, rows[:40] @ both, rtol=0, atol=1e-9)


def test_without_protection_it_is_ridge(make_case: MakeCase) -> None:
    case = make_case()
    data = case.features_old, case.head, case.features_new, case.labels
    ours = forecast_linear(*data, ProtectedRidge(moment=moment(case.features_old, True), protection=0.0, strength=0.5))
    torch.testing.assert_close(ours.drift, forecast_linear(*data, Ridge(strength=0.5)).drift, rtol=0, atol=1e-11)


def test_refusals(make_case: MakeCase) -> None:
    case = make_case()
    with pytest.raises(ConfigError, match="strength"):
        ProtectedRidge(moment=torch.eye(3), strength=0.0)
    with pytest.raises(ConfigError, match="protection"):
        ProtectedRidge(moment=torch.eye(3), protection=-1.0)
    with pytest.raises(DataError, match=r"moment \[d, d\]"):
        ProtectedRidge(moment=torch.zeros(3, 2))
    problem = linear_problem(case.features_new, case.head.weight, case.head.bias, case.labels)
    with pytest.raises(DataError, match="width 12, the features with a bias are of 13"):
        ProtectedRidge(moment=torch.eye(12)).displacement(problem)
