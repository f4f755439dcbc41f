"""EWC: the penalty's gradient, the recursion of the Fisher information, and what a new class leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import EWC
from tangentcl.nn import Backbone, extract_features

Make = Callable[[], Backbone]


def _displace(method: EWC) -> None:
    with torch.no_grad():
        for p in method.learner.parameters():
            if p.requires_grad:
                p += torch.randn_like(p) / 3


def _head_fisher(method: EWC, samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Closed form of a linear softmax: means of p (1 - p) x^2 and p (1 - p)."""
    features, _ = extract_features(method.learner.backbone, samples)
    p = method.learner.head(features).softmax(dim=1).detach()
    spread = p * (1 - p)
    return spread.T @ features**2 / len(p), spread.mean(dim=0)


def test_two_tasks_of_a_linear_head_by_hand(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = EWC(tiny_backbone(), tune="head", fisher="exact", strength=5.0, decay=0.5)
    method.begin_task(tiny_stream[0])
    _displace(method)
    weight, bias = _head_fisher(method, tiny_stream[0].train_eval)
    method.end_task(tiny_stream[0])
    torch.testing.assert_close(method.fisher["head.weight"], weight)
    torch.testing.assert_close(method.fisher["head.bias"], bias)

    method.begin_task(tiny_stream[1])
    assert not method.fisher["head.weight"][2:].any(), "new rows have no importance"
    before = method.learner.head.weight.detach().clone()
    _displace(method)
    x, y = next(tiny_stream[1].train.batches(4))
    penalty = method.training_loss(x, y)["ewc"]
    penalty.backward()
    padded = torch.cat([weight, torch.zeros(2, 16)])
    moved = method.learner.head.weight.detach() - before
    torch.testing.assert_close(method.learner.head.weight.grad, 5.0 * padded * moved)

    second = _head_fisher(method, tiny_stream[1].train_eval)[0]
    method.end_task(tiny_stream[1])
    torch.testing.assert_close(method.fisher["head.weight"], 0.5 * padded + second)
    assert torch.equal(method.reference["head.weight"], method.learner.head.weight.detach())


def test_penalty_of_adapters(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = EWC(tiny_backbone(), rank=2, strength=8.0)
    x, y = next(tiny_stream[0].train.batches(4))
    method.begin_task(tiny_stream[0])
    assert method.training_loss(x, y).keys() == {"cross_entropy"}
    _displace(method)
    method.end_task(tiny_stream[0])
    method.begin_task(tiny_stream[1])
    x, y = next(tiny_stream[1].train.batches(4))
    assert method.training_loss(x, y)["ewc"].item() == 0.0
    name, parameter = next(iter(method.learner.trainable_backbone().items()))
    importance = float(method.fisher[f"backbone.{name}"].view(-1)[1])
    assert importance > 0
    with torch.no_grad():
        parameter.view(-1)[1] += 0.5
    torch.testing.assert_close(method.training_loss(x, y)["ewc"].item(), 8.0 / 2 * importance * 0.25, rtol=1e-4, atol=0)


def test_the_softmax_is_that_of_the_loss(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = EWC(tiny_backbone(), tune="head", fisher="exact", logits="current")
    for task in tiny_stream.tasks[:2]:
        method.begin_task(task)
        kept = method.fisher["head.bias"].clone()
        method.end_task(task)
    assert torch.equal(method.fisher["head.bias"][:2], kept[:2]), "classes that the loss leaves out"
    assert (method.fisher["head.bias"][2:] > 0).all()


def test_memory_does_not_grow_with_the_tasks(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = EWC(tiny_backbone(), rank=2, fisher_samples=2)
    for task in tiny_stream:
        method.begin_task(task)
        method.end_task(task)
        assert method.state_bytes == 3 * method.learner.state_bytes


def test_impossible_settings(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        EWC(tiny_backbone(), strength=-1)
    with pytest.raises(ConfigError, match=r"in \(0, 1\], got 1.5"):
        EWC(tiny_backbone(), decay=1.5)
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        EWC(tiny_backbone(), fisher="exct")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        EWC(tiny_backbone(), fisher_samples=0)
