"""The diagonal Fisher information against explicit gradients and the closed form of a linear softmax."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tangentcl.data import ArrayTransform, Samples, Table
from tangentcl.errors import ConfigError
from tangentcl.protect.fisher import diagonal_fisher


def _samples(n: int, shape: tuple[int, ...], classes: int) -> Samples:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, classes, n)
    return Samples(Table(inputs, labels, np.arange(n)), transform=ArrayTransform())


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4))


def _gradients(model: nn.Module, x: torch.Tensor, columns: Any = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of every log-probability of one sample, [C, P], and the probabilities, [C]."""
    log_p = model(x[None])[0][columns].log_softmax(dim=0)
    rows = [torch.autograd.grad(value, list(model.parameters()), retain_graph=True) for value in log_p]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]), log_p.detach().exp()


def _flat(found: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in found.values()])


def test_exact_and_empirical_are_means_of_squared_per_sample_gradients(network: nn.Module) -> None:
    samples = _samples(7, (3,), 4)
    values = dict(network.named_parameters())
    exact, empirical = torch.zeros(2, sum(p.numel() for p in values.values()))
    network.eval()
    for x, y in samples.batches(1):
        rows, p = _gradients(network, x[0])
        exact += (p[:, None] * rows**2).sum(dim=0) / 7
        empirical += rows[int(y)] ** 2 / 7
    network.train()
    torch.testing.assert_close(_flat(diagonal_fisher(network, values, samples, labels="exact")), exact)
    torch.testing.assert_close(_flat(diagonal_fisher(network, values, samples, labels="empirical")), empirical)
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_it_is_not_the_squared_gradient_of_the_mean_loss(network: nn.Module) -> None:
    samples = _samples(50, (3,), 4)
    network.eval()
    x, y = next(samples.batches(50))
    loss = nn.functional.cross_entropy(network(x), y)
    wrong = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]) ** 2
    found = _flat(diagonal_fisher(network, dict(network.named_parameters()), samples, labels="empirical"))
    assert float(found.sum()) > 5 * float(wrong.sum())


@pytest.mark.parametrize("columns", [None, [2, 0]])
def test_closed_form_of_a_linear_softmax(columns: list[int] | None) -> None:
    """F of the weight W_cj is the mean of p_c (1 - p_c) x_j^2, that of the bias b_c of p_c (1 - p_c)."""
    head, samples = nn.Linear(3, 4), _samples(9, (3,), 4)
    x, _ = next(samples.batches(9))
    chosen = [0, 1, 2, 3] if columns is None else columns
    p = head(x)[:, chosen].softmax(dim=1).detach()
    spread = torch.zeros(9, 4)
    spread[:, chosen] = p * (1 - p)
    found = diagonal_fisher(head, dict(head.named_parameters()), samples, labels="exact", columns=columns)
    torch.testing.assert_close(found["weight"], spread.T @ x**2 / 9)
    torch.testing.assert_close(found["bias"], spread.mean(dim=0))


def test_drawn_labels_are_right_on_average() -> None:
    head, samples = nn.Linear(3, 4), _samples(4, (3,), 4)
    values = dict(head.named_parameters())
    exact = diagonal_fisher(head, values, samples, labels="exact")
    draws = [diagonal_fisher(head, values, samples, seed=seed) for seed in range(400)]
    for name, expected in exact.items():
        each = torch.stack([draw[name] for draw in draws])
        error = each.std(dim=0) / len(each) ** 0.5
        assert ((each.mean(dim=0) - expected).abs() < 4.5 * error).all()
    again = diagonal_fisher(head, values, samples, seed=3)
    assert all(torch.equal(again[name], draws[3][name]) for name in values)
    assert not torch.equal(draws[0]["bias"], draws[1]["bias"])


def test_a_draw_of_samples_is_without_replacement() -> None:
    head, samples = nn.Linear(3, 4), _samples(6, (3,), 4)
    values = dict(head.named_parameters())
    one_of_each = diagonal_fisher(head, values, samples, labels="exact", n=6, seed=1)
    torch.testing.assert_close(one_of_each, diagonal_fisher(head, values, samples, labels="exact", seed=2))
    few = diagonal_fisher(head, values, samples, labels="exact", n=2, seed=1)
    assert not torch.allclose(few["weight"], one_of_each["weight"])


def test_frozen_tensors_and_double_precision(network: nn.Module) -> None:
    samples = _samples(5, (3,), 4)
    frozen = copy.deepcopy(network).requires_grad_(False)
    free = diagonal_fisher(network, dict(network.named_parameters()), samples, labels="exact")
    some = diagonal_fisher(frozen, {"0.weight": frozen.get_parameter("0.weight")}, samples, labels="exact")
    torch.testing.assert_close(some["0.weight"], free["0.weight"])
    assert not frozen.get_parameter("0.weight").requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        inside = diagonal_fisher(network, dict(network.named_parameters()), samples, labels="exact")
    assert torch.equal(inside["3.bias"], free["3.bias"])


def test_impossible_settings(network: nn.Module) -> None:
    values = dict(network.named_parameters())
    with pytest.raises(ConfigError, match="Did you mean 'empirical'"):
        diagonal_fisher(network, values, _samples(2, (3,), 4), labels="empiricl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        diagonal_fisher(network, values, _samples(2, (3,), 4), n=0)
    with pytest.raises(ConfigError, match="at least one sample"):
        diagonal_fisher(network, values, _samples(2, (3,), 4).subset([]))
