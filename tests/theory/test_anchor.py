"""The efficiency of an anchor against really descending both terms."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.errors import ConfigError
from tangentcl.theory import anchor_efficiency, relative_move


@pytest.mark.parametrize("decay", [5e-3, 5e-4, 0.0])
def test_descent_ends_at_the_share_of_the_old_values(decay: float) -> None:
    kappa, old = 1e-3, torch.tensor([2.0, -1.0], dtype=torch.float64)
    p = torch.nn.Parameter(torch.tensor([5.0, 5.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([p], lr=50.0, weight_decay=decay)
    for _ in range(1000):
        optimizer.zero_grad()
        (kappa * (p - old).square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), anchor_efficiency(kappa, decay) * old, rtol=1e-9, atol=0)


def test_moves_are_relative_to_where_parameters_were() -> None:
    a = {"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert relative_move(a, {"w": torch.tensor([3.0]), "b": torch.tensor([5.0])}) == pytest.approx(0.2)
    assert relative_move({}, {}) == 0.0
    assert relative_move({"w": torch.zeros(1)}, {"w": torch.ones(1)}) == math.inf
    with pytest.raises(ConfigError, match="not be negative"):
        anchor_efficiency(0.0, 0.0)
