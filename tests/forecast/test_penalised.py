"""Recipes with a penalty: the forecast against really training with it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from tangentcl.errors import ConfigError
from tangentcl.forecast import SGD, AdamW, Ridge, forecast_forgetting
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.penalised import Penalised

BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [1, 4, 2, 7], [0, 3, 5, 6]] * 5


def _pull(start: Mapping[str, torch.Tensor]) -> object:
    weights = {name: torch.rand_like(value) for name, value in start.items()}

    def penalty(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return sum(  # type: ignore[return-value]
            (weights[name].to(values[name]) * (values[name] - start[name].to(values[name])).square()).sum()
            for name in start
        )

    return penalty


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_head_is_forecast_exactly(kind: str, bias: bool) -> None:
    head = nn.Linear(5, 4, bias=bias).double()
    x, y, old = torch.randn(8, 5).double(), torch.randint(0, 4, (8,)), torch.randn(6, 5).double()
    penalty = _pull({name: p.detach().clone() for name, p in head.named_parameters()})
    inner: Dynamics = (
        SGD(lr=0.2, batches=BATCHES, momentum=0.9, weight_decay=0.01)
        if kind == "sgd"
        else AdamW(lr=0.05, batches=BATCHES, weight_decay=0.01)
    )
    recipe = Penalised(inner=inner, penalty=penalty, weight="weight", bias="bias" if bias else None)  # type: ignore[arg-type]
    forecast = forecast_forgetting(head, old, (x, y), recipe)
    before = head(old).detach()
    optimizer = (
        torch.optim.SGD(head.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
        if kind == "sgd"
        else torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.01)
    )
    for batch in BATCHES:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(x[batch]), y[batch])
        (loss + penalty(dict(head.named_parameters()))).backward()  # type: ignore[operator]
        optimizer.step()
    drift = head(old).detach() - before
    torch.testing.assert_close(forecast.drift, drift, rtol=1e-10, atol=1e-12)
    assert forecast.exact
    free = forecast_forgetting(head, old, (x, y), inner)
    assert float((free.drift - drift).norm()) > 0.1 * float(drift.norm())  # the penalty matters here


def test_a_network_is_followed_with_it() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y, old = torch.randn(8, 4).double(), torch.randint(0, 3, (8,)), torch.randn(6, 4).double()
    penalty = _pull({name: p.detach().clone() for name, p in model.named_parameters()})
    inner = SGD(lr=0.02, batches=BATCHES)
    forecast = forecast_forgetting(model, old, (x, y), Penalised(inner=inner, penalty=penalty))  # type: ignore[arg-type]
    before = model(old).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for batch in BATCHES:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        (loss + penalty(dict(model.named_parameters()))).backward()  # type: ignore[operator]
        optimizer.step()
    drift = model(old).detach() - before
    error = float((forecast.drift.double() - drift).norm() / drift.norm())
    assert error < 0.05, error


def test_a_recipe_without_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="ProtectedRidge"):
        Penalised(inner=Ridge(strength=1.0), penalty=lambda values: torch.zeros(()))
