"""Gauges against their definitions, and the rule of the light."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.theory import Laziness, kernel_alignment, kernel_change, linearisation_error
from tangentcl.theory.laziness import centred_kernel, feature_kernel, frozen


def test_gauges_are_their_formulas() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    assert kernel_change(a, b) == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-12)
    assert kernel_alignment(a, b) == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-12)
    assert kernel_alignment(a, 7 * a) == pytest.approx(1.0)
    assert math.isnan(kernel_alignment(a, torch.zeros_like(a)))
    f0, f1, linear = (torch.randn(4, 2, dtype=torch.float64) for _ in range(3))
    expected = (f1 - f0 - linear).norm() / (f1 - f0).norm()
    assert linearisation_error(f0, linear, f1) == pytest.approx(float(expected), rel=1e-12)
    assert linearisation_error(f0, torch.zeros_like(f0), f0) == 0.0
    assert linearisation_error(f0, linear, f0) == math.inf
    with pytest.raises(DataError, match="one shape"):
        kernel_change(a, b[:2])


def test_centring_takes_the_mean_of_the_samples_out_of_every_output() -> None:
    torch.manual_seed(0)
    J = torch.randn(6, 2, 9, dtype=torch.float64)  # samples, outputs, parameters
    rows, centred = J.reshape(12, 9), (J - J.mean(dim=0)).reshape(12, 9)
    torch.testing.assert_close(centred_kernel(rows @ rows.T, 6), centred @ centred.T)
    h = J[:, 0]
    torch.testing.assert_close(feature_kernel(h + 100.0), centred_kernel(h @ h.T, 6), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("gauges", "light", "said"),
    [
        ((0.0, 1.0), "green", "stayed as they were"),
        ((0.25, 0.9), "green", "kernel of the features changed by 25 %"),
        ((0.1, 0.9, 0.26, 0.9, 0.1), "amber", "tangent kernel changed by 26 %"),
        ((0.1, 0.9, 0.2, 0.9, 0.6), "amber", "outputs left their linearisation by 60 %"),
        ((0.61, 0.9), "red", "by 61 %"),
        ((math.nan, 0.9), "red", "beyond measure"),
        ((0.1, 0.9, 0.1, 0.9, math.inf), "red", "beyond measure"),
    ],
)
def test_the_worst_gauge_decides(gauges: tuple[float, ...], light: str, said: str) -> None:
    found = Laziness(*gauges)
    assert found.light == light
    assert said in found.sentence
    assert found.to_dict()["light"] == light
    if not math.isfinite(gauges[0]):
        assert found.to_dict()["feature_change"] is None


def test_frozen_features_are_green() -> None:
    features = torch.randn(5, 3)
    assert frozen(features, features).light == "green"
    assert frozen(features, features * 2).feature_change == pytest.approx(3.0)
