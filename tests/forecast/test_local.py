"""Local models trained by the forecast's own rules, against torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.errors import ConfigError
from tangentcl.forecast import SGD, AdamW, Dynamics, GradientDescent
from tangentcl.forecast.factors import derivatives
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.local import Course, Head, Local, Objective, follow, saturated
from tangentcl.forecast.sites import find_sites
from tangentcl.kernels.network import Network

N, C = 8, 4
BATCHES = [[0, 1, 2], [3, 4, 5], [6, 7], [1, 7, 4], [0, 5, 2], [3, 6]] * 3
RATES = [0.2 * (1 - i / 20) for i in range(len(BATCHES))]


class Smooth(nn.Module):
    """A network that is not linear in anything: the truth of `follow` on the network's own outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def made() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Smooth().double(), torch.randn(N, 5).double(), torch.randint(0, C, (N,))


def objective(labels: Tensor, loss: str) -> Objective:
    return Objective(F.one_hot(labels, C).double(), torch.arange(C), loss)


def loss_of(loss: str, f: Tensor, labels: Tensor) -> Tensor:
    if loss == "cross_entropy":
        return F.cross_entropy(f, labels)
    return 0.5 * (f - F.one_hot(labels, C)).square().sum(dim=1).mean()


def trained(model: nn.Module, x: Tensor, y: Tensor, loss: str, make: Callable[..., Any], head_rates: Any = None) -> Any:
    """Parameters after really training, batch by batch."""
    groups = [{"params": model.body.parameters()}, {"params": model.head.parameters()}]  # type: ignore[union-attr]
    optimizer = make(groups)
    for step, rows in enumerate(BATCHES):
        optimizer.param_groups[0]["lr"] = RATES[step]
        optimizer.param_groups[1]["lr"] = RATES[step] if head_rates is None else head_rates[step]
        optimizer.zero_grad()
        loss_of(loss, model(x[rows]), y[rows]).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


RECIPES: dict[str, tuple[Callable[..., Any], Callable[..., Dynamics]]] = {
    "sgd": (
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.8, weight_decay=0.05),
        lambda **k: SGD(lr=RATES, batches=BATCHES, momentum=0.8, weight_decay=0.05, **k),
    ),
    "nesterov": (
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.7, nesterov=True),
        lambda **k: SGD(lr=RATES, batches=BATCHES, momentum=0.7, nesterov=True, **k),
    ),
    "adamw": (
        lambda g: torch.optim.AdamW(g, lr=0.0, betas=(0.8, 0.97), weight_decay=0.1),
        lambda **k: AdamW(lr=RATES, batches=BATCHES, betas=(0.8, 0.97), weight_decay=0.1, **k),
    ),
}


@pytest.mark.parametrize("head_lr", [None, 0.3])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", RECIPES)
def test_following_the_network_itself_is_training(name: str, loss: str, head_lr: float | None) -> None:
    model, x, y = made()
    make, recipe = RECIPES[name]
    network = Network(model)
    start = {key: v.clone() for key, v in network.values.items()}
    dynamics = recipe(loss=loss, head_lr=head_lr)

    def outputs(rows: Tensor, values: Any) -> Tensor:
        return network.at(values, x[rows])

    names = ("head.weight", "head.bias")
    whole = follow(Course(start), outputs, objective(y, loss), dynamics, names)
    part = follow(Course(start), outputs, objective(y, loss), dynamics, names, stop=7)
    assert (part.step, whole.step) == (7, len(BATCHES))
    rest = follow(part, outputs, objective(y, loss), dynamics, names)
    assert all(torch.equal(rest.values[key], whole.values[key]) for key in start)  # with the optimiser's memory
    assert all(torch.equal(start[key], v) for key, v in network.values.items())
    truth = trained(model, x, y, loss, make, None if head_lr is None else [head_lr] * len(BATCHES))
    for key in truth:
        torch.testing.assert_close(whole.values[key], truth[key], rtol=1e-10, atol=1e-11)


class Linear2(nn.Module):
    """Features that are linear in what trains, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def local_of(model: Any, x: Tensor, k: int, saturate: bool = False) -> Local:
    """The local model with k directions, all where k is the width."""
    body = Network(model, lambda m, b: m.body(b), ["body.weight", "body.bias"])
    h = model.body(x).detach()
    P = torch.eye(6).double()[:k].expand(N, -1, -1)
    sites, rest = find_sites(body, None)
    kept = derivatives(body, sites, rest, Inputs.of(x, "new"), P, move=lambda b: b, dtype=torch.float64)
    head = Head(
        model.head.weight.detach().clone(),
        model.head.bias.detach().clone(),
        {"weight": "head.weight", "bias": "head.bias"},
    )
    return Local(h, P, kept, head, saturate)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_bilinear_network_is_its_own_local_model(name: str, loss: str) -> None:
    torch.manual_seed(0)
    model, x, y = Linear2().double(), torch.randn(N, 5).double(), torch.randint(0, C, (N,))
    make, recipe = RECIPES[name]
    local = local_of(model, x, 6)
    start = {key: v.clone() for key, v in Network(model).values.items()}
    found = follow(Course(start), local.outputs, objective(y, loss), recipe(loss=loss), ())
    truth = trained(model, x, y, loss, make)
    for key in truth:
        torch.testing.assert_close(found.values[key], truth[key], rtol=1e-9, atol=1e-10)
    rows = torch.arange(N)
    torch.testing.assert_close(local.outputs(rows, found.values), model(x).detach(), rtol=1e-9, atol=1e-10)


def test_features_stay_where_there_is_no_direction() -> None:
    torch.manual_seed(0)
    model, x = Linear2().double(), torch.randn(N, 5).double()
    local, rows = local_of(model, x, 2), torch.arange(N)
    values = {key: v + 1.0 for key, v in Network(model).values.items()}
    h = model.body(x).detach()
    h[:, :2] = (x @ values["body.weight"].T + values["body.bias"])[:, :2]
    expected = h @ values["head.weight"].T + values["head.bias"]
    torch.testing.assert_close(local.outputs(rows, values), expected, rtol=1e-12, atol=1e-12)
    frozen = Local(local.features, local.directions, local.derivatives, Head(model.head.weight, None, {}), False)  # type: ignore[arg-type]
    torch.testing.assert_close(frozen.outputs(rows, values), h @ model.head.weight.T, rtol=1e-12, atol=1e-12)


def test_saturation() -> None:
    g = torch.Generator().manual_seed(0)
    h, change = torch.randn(6, 4, generator=g).double(), torch.randn(6, 4, generator=g).double()
    moved = saturated(h, change) - h
    size = lambda v: v.norm(dim=1)  # noqa: E731
    assert torch.allclose(moved / size(moved)[:, None], change / size(change)[:, None])
    expected = size(change) / (1 + (size(change) / size(h)) ** 2).sqrt()
    torch.testing.assert_close(size(moved), expected)
    assert bool((size(saturated(h, 1e6 * change) - h) <= size(h) * (1 + 1e-9)).all())
    small = 1e-4 * change
    assert (saturated(h, small) - h - small).norm() < 1e-6 * small.norm()
    assert torch.equal(saturated(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))
    torch.manual_seed(0)
    model, x = Linear2().double(), torch.randn(N, 5).double()
    local, values = local_of(model, x, 6, saturate=True), Network(model).values
    wide, step = torch.randn(3, 6, generator=g).double(), torch.randn(3, 6, generator=g).double()
    torch.testing.assert_close(local.read(wide, step, values), model.head(saturated(wide, step)).detach())


def test_divergence_is_named_with_its_step() -> None:
    model, x, y = made()
    network = Network(model)

    def outputs(rows: Tensor, values: Any) -> Tensor:
        return network.at(values, x[rows])

    squared = GradientDescent(lr=1e40, steps=30, loss="squared_error")
    with pytest.raises(ConfigError, match=r"GradientDescent diverges at step \d+ of 30.*smaller lr"):
        follow(Course(network.values), outputs, objective(y, "squared_error"), squared, ())
