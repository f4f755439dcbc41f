"""Diagnostics of a Gram matrix against float64 linear algebra, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.theory import GramHealth, condition_number, gram_spectrum, kernel_change, label_alignment, rkhs_norm


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    rows, targets = torch.randn(12, 20, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    return rows @ rows.T, targets


def test_every_number_is_its_formula(problem: tuple[Tensor, Tensor]) -> None:
    kernel, targets = problem
    start = kernel + torch.eye(12)
    health = GramHealth.of(kernel, targets, start=start)
    assert health.condition == pytest.approx(float(torch.linalg.cond(kernel)), rel=1e-10)
    assert health.smallest == pytest.approx(float(torch.linalg.svdvals(kernel)[-1]), rel=1e-10)
    assert health.largest == pytest.approx(float(torch.linalg.matrix_norm(kernel, 2)), rel=1e-10)
    modes = torch.linalg.svd(kernel)[0][:, :3]
    share = (modes.T @ targets).square().sum() / targets.square().sum()
    assert (health.alignment, health.modes) == (pytest.approx(float(share), rel=1e-10), 3)
    energy = torch.trace(targets.T @ torch.linalg.solve(kernel, targets))
    assert health.norm == pytest.approx(math.sqrt(float(energy) / 12), rel=1e-10)
    assert health.drift == pytest.approx(kernel_change(start, kernel), rel=1e-12)
    assert label_alignment(kernel, targets, 3) == health.alignment
    assert rkhs_norm(kernel, targets) == health.norm


def test_a_kernel_with_outputs_equals_the_kernel_of_samples_for_each(problem: tuple[Tensor, Tensor]) -> None:
    kernel, targets = problem
    whole = torch.kron(kernel, torch.eye(3, dtype=torch.float64))  # sample-major
    assert rkhs_norm(whole, targets) == pytest.approx(rkhs_norm(kernel, targets), rel=1e-10)
    assert label_alignment(whole, targets, 6) == pytest.approx(label_alignment(kernel, targets, 2), rel=1e-9)


def test_a_singular_kernel_interpolates_only_what_lies_in_its_range() -> None:
    rows = torch.randn(6, 2, dtype=torch.float64)
    kernel = rows @ rows.T
    assert condition_number(gram_spectrum(kernel)[0]) == math.inf
    inside = rows @ torch.randn(2, 1, dtype=torch.float64)
    expected = math.sqrt(float(inside.T @ torch.linalg.pinv(kernel) @ inside) / 6)
    assert rkhs_norm(kernel, inside) == pytest.approx(expected, rel=1e-8)
    assert rkhs_norm(kernel, torch.randn(6, 1)) == math.inf
    assert GramHealth.of(kernel, torch.randn(6, 1)).to_dict()["condition"] is None
    assert math.isnan(label_alignment(kernel, torch.zeros(6, 1), 1))


def test_float32_rounding_passes_and_a_cross_kernel_does_not() -> None:
    rows, others = torch.randn(40, 300), torch.randn(40, 300)
    kernel = rows @ rows.T
    kernel[0, 1] *= 1 + 1e-6
    assert GramHealth.of(kernel, torch.randn(40, 2)).smallest > 0
    with pytest.raises(DataError, match=r"not symmetric.*two different sets"):
        gram_spectrum(rows @ others.T)
    with pytest.raises(DataError, match=r"K\(X, X\)"):
        gram_spectrum(rows @ others[:5].T)
    with pytest.raises(DataError, match="not finite"):
        gram_spectrum(torch.full((2, 2), math.nan))
    with pytest.raises(DataError, match="not symmetric"):
        GramHealth.of(kernel, torch.randn(40, 2), start=rows @ others.T)


def test_what_does_not_fit_is_refused(problem: tuple[Tensor, Tensor]) -> None:
    kernel, targets = problem
    with pytest.raises(DataError, match="targets must be"):
        rkhs_norm(kernel, targets[:5])
    with pytest.raises(DataError, match="targets must be"):
        rkhs_norm(kernel, targets[:, 0])
    with pytest.raises(ConfigError, match="between 1 and 12"):
        label_alignment(kernel, targets, 13)
