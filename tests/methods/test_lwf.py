"""LwF: the distillation by hand, and the copy it distils from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import LwF
from tangentcl.nn import Backbone, from_module

Make = Callable[[], Backbone]


def test_loss_by_hand(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LwF(tiny_backbone(), rank=2, dropout=0.5, strength=3.0, temperature=2.0)
    x, y = next(tiny_stream[1].train.batches(5))
    method.begin_task(tiny_stream[0])
    assert method.training_loss(*next(tiny_stream[0].train.batches(5))).keys() == {"cross_entropy"}
    with torch.no_grad():
        for p in method.learner.parameters():
            p += torch.randn_like(p) / 3 if p.requires_grad else 0
    method.eval()
    old = method.predict(x).detach()  # [5, 2]
    method.begin_task(tiny_stream[1])
    assert method.training_loss(x, y)["distillation"].item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for p in method.learner.parameters():
            p += torch.randn_like(p) / 3 if p.requires_grad else 0
    new = method.predict(x)
    terms = method.training_loss(x, y)
    p, q = (old / 2).softmax(dim=1), (new[:, :2] / 2).softmax(dim=1)
    torch.testing.assert_close(terms["distillation"], 3.0 * (p * (p / q).log()).sum(dim=1).mean())
    own = new[:, 2:].softmax(dim=1)[torch.arange(5), y - 2]
    torch.testing.assert_close(terms["cross_entropy"], -own.log().mean())

    method.train()
    torch.testing.assert_close(method._old_logits(x), old)  # without dropout
    assert method.learner.backbone.training


def test_running_statistics_are_part_of_the_old_model(tiny_stream: TaskStream) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    sample = torch.zeros(2, 3, 4)
    method = LwF(from_module(module, None, 6, name="norm", modality="array", sample=sample), tune="full")
    method.begin_task(tiny_stream[0])
    x, y = next(tiny_stream[0].train.batches(20))
    method.train()
    for _ in range(3):
        method.training_loss(x, y)
    method.eval()
    old = method.predict(x).detach()
    method.begin_task(tiny_stream[1])
    method.train()
    for _ in range(3):
        method.training_loss(10 * x + 5, y + 2)
    torch.testing.assert_close(method._old_logits(x), old)


def test_it_remembers_one_copy_of_what_trains(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LwF(tiny_backbone(), rank=2)
    method.begin_task(tiny_stream[0])
    first = method.learner.state_bytes
    assert method.state_bytes == first
    method.begin_task(tiny_stream[1])
    assert method.state_bytes == first + method.learner.state_bytes


def test_impossible_settings(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        LwF(tiny_backbone(), strength=-1)
    with pytest.raises(ConfigError, match="above 0, got 0"):
        LwF(tiny_backbone(), temperature=0)
