"""Energies and forgetting vectors from moments against those from data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tangentcl.errors import DataError
from tangentcl.kernels import EmpiricalNTK, FeatureKernel
from tangentcl.linalg import GramOperator
from tangentcl.theory import anchored_ridge, class_forgetting, forgetting_vector, interplay_energy

from .conftest import OUTPUTS, Drawn, draw


def _step(new: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.nn.functional.one_hot(new.labels, OUTPUTS).double()
    step = anchored_ridge(new.rows, y, torch.zeros_like(y), 0.5)
    return step.change, step.dual


def test_energy_from_moments_is_that_of_the_kernel_on_the_data(old: Drawn, new: Drawn) -> None:
    change, dual = _step(new)
    drift = old.rows @ new.rows.T @ dual  # K(X_k, X_tau) alpha
    assert interplay_energy(old.moments.features, change) == pytest.approx(float(drift.square().sum()), rel=1e-12)


@pytest.mark.parametrize("sketch", ["low_rank_diagonal", "frequent_directions"])
def test_energy_from_a_sketch_is_within_its_bounds(new: Drawn, sketch: str) -> None:
    old, (change, _) = draw(40, 5, sketch), _step(new)
    true = float((old.rows @ change).square().sum())
    low, high = (float(b.sum()) for b in old.moments.features.bounds(change))
    assert low <= true * (1 + 1e-12)
    assert true <= high * (1 + 1e-12)
    assert low - 1e-9 <= interplay_energy(old.moments.features, change) <= high + 1e-9


def test_the_forgetting_vector_is_what_the_head_does_to_old_outputs(old: Drawn, new: Drawn) -> None:
    change, dual = _step(new)
    expected = old.rows @ change
    torch.testing.assert_close(forgetting_vector(GramOperator(old.rows, new.rows), dual), expected, rtol=1e-10, atol=0)
    full = FeatureKernel(OUTPUTS)(old.features, new.features)
    torch.testing.assert_close(forgetting_vector(full, dual), expected, rtol=1e-10, atol=1e-12)


def test_the_forgetting_vector_of_a_network_is_its_first_order_drift() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    old, new = torch.randn(5, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    dual, before = torch.randn(6, 2, dtype=torch.float64), model(old).detach()
    found = forgetting_vector(EmpiricalNTK(model)(old, new), dual)
    gradients = torch.autograd.grad((model(new) * dual).sum(), list(model.parameters()))  # J(new)^T alpha
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients):
            p += 1e-6 * g
    torch.testing.assert_close(found, (model(old).detach() - before) / 1e-6, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="does not fit"):
        forgetting_vector(EmpiricalNTK(model)(old, new), dual[:5])


def test_class_means_of_the_forgetting_vector_need_no_sample(old: Drawn, new: Drawn) -> None:
    change, _ = _step(new)
    drift = old.rows @ change
    expected = torch.stack([drift[old.labels == c].mean(dim=0) for c in range(OUTPUTS)])
    torch.testing.assert_close(class_forgetting(old.moments, change), expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(DataError, match=r"\[8, C\]"):
        class_forgetting(old.moments, change[1:])
