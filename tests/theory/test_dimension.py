"""Effective dimension and participation ratio against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.errors import ConfigError
from tangentcl.linalg import gram_spectrum
from tangentcl.theory import effective_dimension, participation_ratio


def test_both_are_those_of_the_dense_kernel() -> None:
    torch.manual_seed(0)
    x = torch.randn(11, 4, dtype=torch.float64)
    K, values = x @ x.T, gram_spectrum(x).values
    dense = (K @ torch.linalg.inv(K + 0.4 * torch.eye(11, dtype=torch.float64))).trace()
    assert effective_dimension(values, 0.4) == pytest.approx(float(dense), rel=1e-12)
    assert participation_ratio(values) == pytest.approx(float(K.trace() ** 2 / (K @ K).trace()), rel=1e-12)
    assert effective_dimension(values, 1e-12) == pytest.approx(4.0)  # the rank, without a ridge
    assert math.isnan(participation_ratio(values[:0]))
    with pytest.raises(ConfigError, match="positive"):
        effective_dimension(values, 0.0)
