"""The penalty on rows that are not orthonormal: value and gradient by hand."""

from __future__ import annotations

import pytest
import torch

from tangentcl.losses import orthonormality


def test_value_and_gradient_by_hand() -> None:
    rows = torch.tensor([[2.0, 0.0], [1.0, 1.0]], requires_grad=True)
    penalty = orthonormality(rows)  # gram [[4, 2], [2, 2]], minus I: [[3, 2], [2, 1]]
    assert penalty.item() == pytest.approx((9 + 4 + 4 + 1) / 4)
    penalty.backward()
    residual = torch.tensor([[3.0, 2.0], [2.0, 1.0]])
    torch.testing.assert_close(rows.grad, 4 / 4 * residual @ torch.tensor([[2.0, 0.0], [1.0, 1.0]]))  # 4 R T / M^2


def test_half_precision_is_computed_in_float32() -> None:
    rows = torch.randn(3, 100)
    expected = ((rows @ rows.T - torch.eye(3)) ** 2).mean().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert orthonormality(rows).item() == pytest.approx(expected)
    assert orthonormality(rows.bfloat16()).dtype == torch.float32
