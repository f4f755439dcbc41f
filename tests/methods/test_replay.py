"""The memory of replay: its budget, its balance, its ranking."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import Replay
from tangentcl.methods.replay import herding
from tangentcl.nn import Backbone


def _samples_per_task(method: Replay, stream: TaskStream) -> list[np.ndarray]:
    counts = []
    for task in stream:
        method.begin_task(task)
        samples = method.training_samples(task)
        counts.append(np.bincount(samples.labels, minlength=6))
        method.end_task(task)
    return counts


@pytest.mark.parametrize("selection", ["random", "herding"])
def test_memory_is_balanced_and_within_budget(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, selection: str
) -> None:
    method = Replay(tiny_backbone(), rank=2, budget=10, selection=selection)  # type: ignore[arg-type]
    first, second, third = _samples_per_task(method, tiny_stream)
    assert first.tolist() == [20, 20, 0, 0, 0, 0]
    assert second.tolist() == [5, 5, 20, 20, 0, 0]
    assert third.tolist() == [3, 3, 2, 2, 20, 20]
    assert method.stored_samples == 10


def test_a_class_that_shrinks_keeps_its_best(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = Replay(tiny_backbone(), rank=2, budget=12, selection="herding")
    kept = []
    for task in tiny_stream:
        method.begin_task(task)
        method.end_task(task)
        rows = method.get_extra_state()
        kept.append(rows[rows[:, 0] == 0, 2].tolist())
    assert [len(k) for k in kept] == [6, 3, 2]
    assert kept[1] == kept[0][:3]
    assert kept[2] == kept[0][:2]


def test_stored_samples_are_those_of_the_past_tasks(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = Replay(tiny_backbone(), rank=2, budget=4)
    method.begin_task(tiny_stream[0])
    method.end_task(tiny_stream[0])
    method.begin_task(tiny_stream[1])
    samples = method.training_samples(tiny_stream[1])
    past = set(tiny_stream[0].train.ids.tolist())
    assert set(samples.ids[-4:].tolist()) <= past
    assert set(samples.ids[:-4].tolist()) == set(tiny_stream[1].train.ids.tolist())


def test_herding_takes_the_best_sample_at_every_step() -> None:
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = features / features.norm(dim=1, keepdim=True)
    order = herding(features, 7).tolist()
    assert sorted(order) == list(range(7))
    for k in range(1, 7):
        chosen = order[: k - 1]
        distances = {
            i: (unit.mean(dim=0) - unit[[*chosen, i]].mean(dim=0)).norm().item() for i in range(7) if i not in chosen
        }
        assert min(distances, key=lambda i: distances[i]) == order[k - 1]
    pairs = {pair: (unit.mean(0) - unit[list(pair)].mean(0)).norm() for pair in itertools.combinations(range(7), 2)}
    mean_pair = torch.stack(list(pairs.values())).mean()
    assert pairs[tuple(sorted(order[:2]))] < mean_pair  # type: ignore[index]


def test_impossible_settings(tiny_backbone: Callable[[], Backbone]) -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Replay(tiny_backbone(), budget=0)
    with pytest.raises(ConfigError, match="Did you mean 'herding'"):
        Replay(tiny_backbone(), selection="herdin")  # type: ignore[arg-type]
