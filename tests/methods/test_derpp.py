"""DER++: its terms by hand, what is stored and when, and draws that follow from a count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import DERPP
from tangentcl.nn import Backbone

Make = Callable[[], Backbone]


def _displace(method: DERPP) -> None:
    with torch.no_grad():
        for p in method.replay.learner.parameters():
            if p.requires_grad:
                p += torch.randn_like(p) / 3


def _after(make: Make, stream: TaskStream, n_tasks: int, **keywords: Any) -> tuple[DERPP, list[torch.Tensor]]:
    """A method at the beginning of a task, and its answers to all samples of each earlier task at that task's end."""
    method = DERPP(make(), rank=2, **keywords).eval()
    answers = []
    for task in stream.tasks[:n_tasks]:
        method.begin_task(task)
        _displace(method)
        method.end_task(task)
        answers.append(method.predict(next(task.train_eval.batches(100))[0]).detach())
    method.begin_task(stream[n_tasks])
    return method, answers


def test_logits_are_those_of_the_task_that_brought_the_sample(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method, answers = _after(tiny_backbone, tiny_stream, 2, budget=10)
    rows = method.replay.rows
    assert rows[:, 1].tolist() == [0] * 6 + [1] * 4
    assert method.logits.shape == (10, 6)
    for stored, (_, task, position) in zip(method.logits, rows.tolist()):
        torch.testing.assert_close(stored[: 2 * task + 2], answers[task][position])
        assert not stored[2 * task + 2 :].any()
    assert method.logits.nbytes == 10 * 6 * 4
    assert method.state_bytes == method.replay.learner.state_bytes + method.logits.nbytes


def test_terms_by_hand(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    """With batches as large as the memory both draws are all of it."""
    method, answers = _after(
        tiny_backbone, tiny_stream, 2, budget=10, memory_batch=50, logits_weight=0.3, labels_weight=0.7
    )
    _displace(method)
    x, y = next(tiny_stream[2].train.batches(4))
    terms = method.training_loss(x, y)
    squares, entropies = [], []
    for label, task, position in method.replay.rows.tolist():
        item, _ = tiny_stream[task].train_eval[position]
        z = method.predict(torch.as_tensor(item)[None])[0]
        target = answers[task][position]
        squares.append(((z[: len(target)] - target) ** 2).mean())
        entropies.append(-z.log_softmax(dim=0)[label])
    torch.testing.assert_close(terms["memory_logits"], 0.3 * torch.stack(squares).mean())
    torch.testing.assert_close(terms["memory_labels"], 0.7 * torch.stack(entropies).mean())
    torch.testing.assert_close(terms["cross_entropy"], torch.nn.functional.cross_entropy(method.predict(x), y))


def test_draws_follow_from_seed_and_count(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method, _ = _after(tiny_backbone, tiny_stream, 1, budget=20, memory_batch=3, seed=5)
    x, y = next(tiny_stream[1].train.batches(4))
    method.training_loss(x, y)
    state = copy.deepcopy(method.state_dict())
    torch.manual_seed(99)
    second = method.training_loss(x, y)["memory_labels"].item()
    third = method.training_loss(x, y)["memory_labels"].item()
    assert second != third
    method.load_state_dict(state)
    assert method.training_loss(x, y)["memory_labels"].item() == second


def test_the_first_task_has_no_memory(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = DERPP(tiny_backbone(), rank=2)
    method.begin_task(tiny_stream[0])
    assert method.training_loss(*next(tiny_stream[0].train.batches(4))).keys() == {"cross_entropy"}
    assert method.training_samples(tiny_stream[0]) is tiny_stream[0].train


def test_impossible_settings(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="labels_weight multiplies a loss and must be at least 0, got -1"):
        DERPP(tiny_backbone(), labels_weight=-1)
    with pytest.raises(ConfigError, match="memory_batch is a number of samples and must be at least 1, got 0"):
        DERPP(tiny_backbone(), memory_batch=0)
    with pytest.raises(ConfigError, match="budget"):
        DERPP(tiny_backbone(), budget=0)
