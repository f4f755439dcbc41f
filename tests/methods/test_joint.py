"""Joint training: everything at once, from the initial weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tangentcl.data import TaskStream
from tangentcl.methods import Finetune, Joint
from tangentcl.nn import Backbone
from tangentcl.training import TrainingPlan, run_stream

PLAN = TrainingPlan(epochs=6, batch_size=8, lr=0.01, device="cpu")


def test_trains_once_on_the_union_and_leaves_earlier_rows_empty(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    torch.manual_seed(0)
    events: list[tuple[str, dict]] = []  # type: ignore[type-arg]
    result = run_stream(
        Joint(tiny_backbone(), rank=2), tiny_stream, PLAN, emit=lambda event, fields: events.append((event, fields))
    )
    started = [fields for event, fields in events if event == "task_started"]
    assert [(fields["task"], fields["n_train"]) for fields in started] == [(2, 120)]
    assert np.isnan(result.matrix[:2]).all()
    assert result.matrix[2].min() > 0.5  # every task is learned, the first as well as the last; chance is one sixth
    summary = result.summary()
    assert summary["last_accuracy"] > 0.6
    assert summary["average_accuracy"] is None


def test_every_task_starts_again_from_the_initial_weights(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    torch.manual_seed(0)
    method = Joint(tiny_backbone(), rank=2, every_task=True)
    initial = {name: p.detach().clone() for name, p in method.learner.trainable_backbone().items()}
    for task in tiny_stream:
        method.begin_task(task)
        samples = method.training_samples(task)
        assert samples is not None
        assert len(samples) == 40 * (task.index + 1)
        for name, parameter in method.learner.trainable_backbone().items():
            assert torch.equal(parameter, initial[name])
            parameter.data.add_(1.0)  # as training would
    assert method.stored_samples == 120


def test_joint_forgets_less_than_sequential_training(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    last = {}
    for name, method in (("joint", Joint(tiny_backbone(), rank=2)), ("finetune", Finetune(tiny_backbone(), rank=2))):
        last[name] = run_stream(method, tiny_stream, PLAN).summary()["last_accuracy"]
    assert last["joint"] > last["finetune"] + 0.3
