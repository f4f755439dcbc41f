"""Two tasks of random features, for every family of quantities."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tangentcl.forecast.moments import TaskMoments

WIDTH, OUTPUTS = 7, 3


@dataclass(frozen=True)
class Drawn:
    """Features [n, d], labels [n] and their moments."""

    features: Tensor
    labels: Tensor
    moments: TaskMoments

    @property
    def rows(self) -> Tensor:
        """Features with their constant, [n, d + 1]."""
        return torch.cat([self.features, torch.ones(len(self.features), 1)], dim=1).double()


def draw(n: int, seed: int, sketch: str = "exact") -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) + 2.0
    labels = torch.arange(n) % OUTPUTS
    moments = TaskMoments.empty(WIDTH, sketch=sketch, k=3, task=seed)
    moments.add(features, labels)
    return Drawn(features, labels, moments)


@pytest.fixture
def old() -> Drawn:
    return draw(12, 1)


@pytest.fixture
def new() -> Drawn:
    return draw(9, 2)
