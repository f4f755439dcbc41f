"""The running mean and the ensemble by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import LAE
from tangentcl.nn import Backbone

Make = Callable[[], Backbone]


def _factors(method: LAE) -> list[torch.Tensor]:
    return [p.detach().clone() for p in method.backbone.parameters() if p.requires_grad]


def _offline(method: LAE) -> list[torch.Tensor]:
    return [b.clone() for b in method.offline.copy.buffers()]


def _learn(method: LAE, stream: TaskStream, tasks: int, steps: int = 3) -> list[list[torch.Tensor]]:
    """The online factors after each step; the method has seen the end of each task."""
    seen = []
    for task in list(stream)[:tasks]:
        method.begin_task(task)
        method.train()
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5)
        for x, y in list(task.train.batches(8))[:steps]:
            optimizer.zero_grad()
            method.training_loss(x, y)["cross_entropy"].backward()
            optimizer.step()
            seen.append(_factors(method))
        method.end_task(task)
    return seen


def test_offline_factors_are_the_running_mean_over_steps(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LAE(tiny_backbone(), rank=2, decay=0.75)
    seen = _learn(method, tiny_stream, tasks=2)
    expected = seen[2]  # the end of the first task
    for factors in seen[3:]:
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, factors, strict=True)]
    assert any(not torch.allclose(a, b) for a, b in zip(expected, seen[-1], strict=True))
    for found, wanted in zip(_offline(method), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_after_the_first_task_both_are_the_same(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LAE(tiny_backbone(), rank=2)
    _learn(method, tiny_stream, tasks=1)
    assert all(torch.equal(a, b) for a, b in zip(_offline(method), _factors(method), strict=True))


def test_looking_at_the_loss_in_evaluation_mode_moves_nothing(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LAE(tiny_backbone(), rank=2, decay=0.5)
    _learn(method, tiny_stream, tasks=2)
    before, batches = _offline(method), method.get_extra_state()
    method.eval()
    x, y = next(tiny_stream[1].train.batches(4))
    method.training_loss(x, y)
    assert all(torch.equal(a, b) for a, b in zip(_offline(method), before, strict=True))
    assert torch.equal(method.get_extra_state(), batches)


def test_the_score_is_the_larger_probability_of_both(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LAE(tiny_backbone(), rank=2, decay=0.9)
    _learn(method, tiny_stream, tasks=2, steps=8)
    method.eval()
    x, _ = next(tiny_stream[0].test.batches(16))
    with torch.no_grad():
        before = method.backbone.passes
        found = method.predict(x)
        assert method.backbone.passes - before == 2 * len(x)
        online = method.head(method.backbone(x)).softmax(1)
        for p, value in zip((p for p in method.backbone.parameters() if p.requires_grad), _offline(method)):
            p.copy_(value)
        offline = method.head(method.backbone(x)).softmax(1)
    assert not torch.allclose(online, offline, atol=1e-4)
    torch.testing.assert_close(found, torch.maximum(online, offline), rtol=1e-6, atol=1e-7)


def test_factors_wait_for_the_head_in_later_tasks(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = LAE(tiny_backbone(), rank=2, frozen_batches=2)
    seen = _learn(method, tiny_stream, tasks=2, steps=3)

    def moved(a: int, b: int) -> bool:
        return any(not torch.equal(x, y) for x, y in zip(seen[a], seen[b], strict=True))

    assert moved(0, 1), "the first task does not wait"
    assert not moved(2, 3)
    assert not moved(3, 4)
    assert moved(4, 5)


def test_settings_out_of_range_are_refused(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match=r"decay .* \[0, 1\), got 1.0"):
        LAE(tiny_backbone(), rank=2, decay=1.0)
    with pytest.raises(ConfigError, match="frozen_batches must be 0 or more, got -1"):
        LAE(tiny_backbone(), frozen_batches=-1)
