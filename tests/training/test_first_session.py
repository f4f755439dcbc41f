"""What was trained in the first session and frozen afterwards is part of the trained learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tangentcl.data import Task, TaskStream
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone
from tangentcl.training import TrainingPlan, run_stream
from tangentcl.training.checkpoint import learned_tensors, load_learner, save_learner


class FirstSession(Finetune):
    """Adapts the backbone on the first task only."""

    def end_task(self, task: Task) -> None:
        self.backbone.requires_grad_(False)


@pytest.mark.parametrize(("tune", "most"), [("lora", 400), ("full", 3000)])
def test_frozen_after_the_first_task_is_saved(
    tune: Any, most: int, tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    method = FirstSession(tiny_backbone(), tune=tune, rank=2)
    run_stream(method, tiny_stream, TrainingPlan(epochs=1, batch_size=8, lr=0.05, device="cpu"))
    saved = learned_tensors(method)
    assert any(key.startswith("backbone.") for key in saved)
    assert sum(value.numel() for value in saved.values()) <= most
    save_learner(method, tmp_path)

    torch.manual_seed(1)
    restored = FirstSession(tiny_backbone(), tune=tune, rank=2)
    for task in tiny_stream:
        restored.begin_task(task)
    load_learner(restored, tmp_path)
    x, _ = next(tiny_stream[0].test.batches(100))
    method.eval(), restored.eval()
    with torch.no_grad():
        assert torch.equal(method.predict(x), restored.predict(x))


def test_an_untouched_backbone_is_not_saved(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = Finetune(tiny_backbone(), tune="head")
    method.begin_task(tiny_stream[0])
    assert set(learned_tensors(method)) == {"head.weight", "head.bias"}
