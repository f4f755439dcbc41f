"""Spectrum penalties against singular values, and gradients where the raw condition has none."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.losses import log_condition, orthogonality_gap, spectrum_penalty

FORMS = {"orthogonality": orthogonality_gap, "log_condition": log_condition}


def test_both_forms_are_functions_of_singular_values() -> None:
    factor = torch.randn(4, 30, dtype=torch.float64)
    s = torch.linalg.svdvals(factor)
    assert log_condition(factor).item() == pytest.approx(math.log(s[0] / s[-1]), rel=1e-4)
    energies = s.square()
    expected = energies.var(correction=0) / energies.mean() ** 2
    assert orthogonality_gap(factor).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_side_and_scale_do_not_matter(form: str) -> None:
    factor = torch.randn(3, 20, dtype=torch.float64)
    value = FORMS[form](factor)
    torch.testing.assert_close(FORMS[form](factor.T), value)
    torch.testing.assert_close(FORMS[form](1000 * factor), value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "factor",
    [torch.zeros(2, 6), torch.ones(2, 6), torch.eye(3, 6), torch.eye(3, 6).to(torch.bfloat16)],
    ids=["zero", "rank one", "orthonormal", "half precision"],
)
def test_gradients_are_finite_at_the_edges(form: str, factor: torch.Tensor) -> None:
    factor = factor.clone().requires_grad_()
    value = FORMS[form](factor)
    value.backward()
    assert factor.grad is not None
    assert bool(value.isfinite())
    assert bool(factor.grad.isfinite().all())


@pytest.mark.parametrize("form", FORMS)
def test_descent_makes_a_factor_orthogonal(form: str) -> None:
    factor = (torch.randn(3, 8, dtype=torch.float64) * torch.tensor([[3.0], [1.0], [0.3]])).requires_grad_()
    before = torch.linalg.cond(factor.detach())
    optimizer = torch.optim.Adam([factor], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        FORMS[form](factor).backward()
        optimizer.step()
    assert torch.linalg.cond(factor.detach()) < 1.2 < before


def test_factors_that_are_zero_do_not_count() -> None:
    factor, zero = torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(4, 2)
    assert spectrum_penalty([factor, zero]).item() == orthogonality_gap(factor).item()
    assert spectrum_penalty([zero]).item() == 0.0
