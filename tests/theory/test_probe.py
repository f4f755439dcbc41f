"""The probe against explicit Jacobians, and without a trace in the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tangentcl.errors import ModelError
from tangentcl.theory import TangentProbe, kernel_change


class Net(nn.Module):
    """Two layers, a frozen one in front, and a buffer that scales the outputs."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(4, 5).requires_grad_(False)
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(torch.tanh(self.drop(self.body(self.front(x)))))


def _made() -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    return Net().double(), torch.randn(7, 4, dtype=torch.float64)


def _jacobian(model: Net, x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    f = model(x) @ directions
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f[i, c], parameters, retain_graph=True)])
        for i in range(f.shape[0])
        for c in range(f.shape[1])
    ]
    return torch.stack(rows)


def test_gauges_are_those_of_explicit_jacobians() -> None:
    model, x = _made()
    model.eval()
    probe = TangentProbe(model, x, lambda m, batch: m(batch))
    start, moved = copy.deepcopy(model), model
    with torch.no_grad():
        for p in moved.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
        moved.scale.fill_(9.0)  # a buffer that end_task changes is not what was trained
    found = probe.compare(torch.randn(7, 2), torch.randn(7, 2))
    moved.scale.fill_(1.0)
    R = probe._directions
    torch.testing.assert_close(R.T @ R, torch.eye(3, dtype=torch.float64))

    def centred(J: torch.Tensor) -> torch.Tensor:
        rows = J.reshape(7, 3, -1)
        flat = (rows - rows.mean(dim=0)).reshape(21, -1)
        return flat @ flat.T

    before, after = _jacobian(start, x, R), _jacobian(moved, x, R)
    assert found.tangent_change == pytest.approx(kernel_change(centred(before), centred(after)), rel=1e-9)
    delta = torch.cat(
        [(b - a).detach().flatten() for a, b in zip(start.parameters(), moved.parameters()) if a.requires_grad]
    )
    full = _jacobian(start, x, torch.eye(3, dtype=torch.float64))
    linear, real = (full @ delta).reshape(7, 3), (moved(x) - start(x)).detach()
    assert found.linearisation_error == pytest.approx(float((real - linear).norm() / real.norm()), rel=1e-9)


def test_a_model_that_is_linear_in_what_trains_has_no_error() -> None:
    model, x = _made()
    model.body.requires_grad_(False)
    probe = TangentProbe(model, x, lambda m, batch: m(batch))
    with torch.no_grad():
        model.head.weight += 3.0
    features = torch.randn(7, 2)
    found = probe.compare(features, features)
    assert found.linearisation_error < 1e-12
    assert found.tangent_change < 1e-12
    assert found.light == "green"


def test_parameters_that_outputs_do_not_see_do_not_count() -> None:
    model, x = _made()
    model.body.requires_grad_(False)
    seen = TangentProbe(model, x, lambda m, batch: torch.tanh(m.body(m.front(batch))))  # the head is behind them
    with torch.no_grad():
        model.head.weight += 3.0
    found = seen.compare(torch.ones(7, 2), torch.ones(7, 2))
    assert (found.tangent_change, found.linearisation_error, found.light) == (0.0, 0.0, "green")


def test_the_model_is_left_as_it_was() -> None:
    model, x = _made()
    model.train()
    state, scale, drawn = copy.deepcopy(model.state_dict()), model.scale, torch.get_rng_state()
    probe = TangentProbe(model, x, lambda m, batch: m(batch))
    probe.compare(torch.ones(7, 2), torch.ones(7, 2))
    assert model.scale is scale
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 4
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    model.body.requires_grad_(False)
    with pytest.raises(ModelError, match="other parameters train"):
        probe.compare(torch.ones(7, 2), torch.ones(7, 2))
