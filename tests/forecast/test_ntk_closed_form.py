"""Ridge and gradient flow on a linearised network, against dense algebra in its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError
from tangentcl.forecast import GradientDescent, GradientFlow, Ridge, forecast_forgetting, prepare_forecast

C = 3


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()


def _dense(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [n C], Jacobian [n C, P] and parameters [P], by torch.func."""
    values = {name: p.detach() for name, p in model.named_parameters()}
    blocks = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, (x,)).flatten())(values)
    J = torch.cat([block.flatten(1) for block in blocks.values()], dim=1)
    return model(x).detach().flatten(), J, torch.cat([v.flatten() for v in values.values()])


@pytest.fixture
def case() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    old, new = torch.randn(7, 4).double(), torch.randn(6, 4).double()
    return _network(), old, new, torch.randn(6, C).double()


def test_ridge_is_the_dense_solve(case: tuple[nn.Sequential, Tensor, Tensor, Tensor]) -> None:
    model, old, new, y = case
    f, J, _ = _dense(model, new)
    delta = torch.linalg.solve(J.T @ J + 0.3 * torch.eye(J.shape[1]).double(), J.T @ (y.flatten() - f))
    forecast = forecast_forgetting(model, old, (new, y), Ridge(strength=0.3), form="ntk")
    torch.testing.assert_close(forecast.drift, (_dense(model, old)[1] @ delta).view(7, C), rtol=1e-9, atol=1e-11)
    assert forecast.form == "ntk"
    assert not forecast.exact


@pytest.mark.parametrize("time", [0.7, None])
def test_flow_takes_the_mean_over_samples(
    case: tuple[nn.Sequential, Tensor, Tensor, Tensor], time: float | None
) -> None:
    model, old, new, y = case
    f, J, _ = _dense(model, new)
    values, vectors = torch.linalg.eigh(J @ J.T)
    decay = 1 - torch.exp(-values * time / 6) if time is not None else torch.ones_like(values)
    delta = J.T @ (vectors @ (decay / values * (vectors.T @ (y.flatten() - f))))
    forecast = forecast_forgetting(model, old, (new, y), GradientFlow(time=time), form="ntk")
    torch.testing.assert_close(forecast.drift, (_dense(model, old)[1] @ delta).view(7, C), rtol=1e-7, atol=1e-9)


def test_steps_are_followed_and_agree_with_the_closed_form(case: tuple[nn.Sequential, Tensor, Tensor, Tensor]) -> None:
    model, old, new, y = case
    prepared = prepare_forecast(model, old, (new, y), form="ntk")
    steps = prepared.forecast(GradientDescent(lr=1e-3, steps=700, loss="squared_error"))
    flow = prepared.forecast(GradientFlow(time=0.7))
    assert float((steps.drift - flow.drift).norm() / flow.drift.norm()) < 2e-3


def test_refusals(case: tuple[nn.Sequential, Tensor, Tensor, Tensor]) -> None:
    model, old, new, y = case
    with pytest.raises(ConfigError, match=r"has no steps to follow.*form='ntk'"):
        forecast_forgetting(model, old, (new, y), Ridge(strength=0.3))
    with pytest.raises(ConfigError, match="memory is 1e-06 GB"):
        forecast_forgetting(model, old, (new, y), Ridge(strength=0.3), form="ntk", memory=1e3)
