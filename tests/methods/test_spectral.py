"""The spectral method: what its penalty is worth, what it keeps, and that it keeps old tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import Finetune, Method, Spectral
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import TrainingPlan, run_stream

PLAN = TrainingPlan(epochs=12, batch_size=8, lr=0.02, device="cpu", seed=3)
Make = Callable[[], Backbone]


def _moved(method: Spectral) -> None:
    with torch.no_grad():
        for p in method.learner.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))


def test_the_penalty_is_the_drift_of_all_old_outputs_counted_by_task(
    tiny_backbone: Make, tiny_stream: TaskStream
) -> None:
    method = Spectral(tiny_backbone(), tune="head", k=40, strength=0.3)
    old = []
    for task in tiny_stream.tasks[:2]:
        method.begin_task(task)
        method.end_task(task)
        old.append(extract_features(method.learner.backbone, task.train_eval)[0])
    method.begin_task(tiny_stream[2])
    features = torch.cat(old)  # [n, d]
    before = method.learner.head(features).detach()  # the rows of the third task too
    x, y = next(tiny_stream[2].train.batches(8))
    assert float(method.training_loss(x, y)["drift"]) == 0.0
    _moved(method)
    drift = (method.learner.head(features) - before).square().sum(dim=1).mean()
    expected = 0.3 * 2 * 0.5 * drift  # two old tasks
    torch.testing.assert_close(method.training_loss(x, y)["drift"], expected, rtol=1e-4, atol=0)


def test_what_it_keeps_does_not_grow_with_tasks(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = Spectral(tiny_backbone(), rank=2, k=3)
    sizes = []
    for task in tiny_stream:
        method.begin_task(task)
        method.end_task(task)
        head = sum(p.nbytes for p in method.learner.head.parameters())
        sizes.append(method.state_bytes - 2 * head)  # the head and where it is held
    assert len(set(sizes)) == 1
    assert not method.keeps_samples


@pytest.mark.parametrize(
    ("tune", "form"),
    [("head", "layers"), ("lora", "layers"), ("lora", "jacobian"), ("full", "layers"), ("full", "jacobian")],
)
def test_old_tasks_are_kept_where_fine_tuning_loses_them(
    tiny_backbone: Make, tiny_stream: TaskStream, tune: str, form: str
) -> None:
    def learned(method: Method) -> tuple[float, float]:
        plan = dataclasses.replace(PLAN, lr=0.005, head_lr=0.02) if tune != "head" else PLAN
        matrix = run_stream(method, tiny_stream, plan).matrix
        return float(matrix[2, :2].mean()), float(matrix.diagonal().mean())

    torch.manual_seed(0)
    bare = learned(Finetune(tiny_backbone(), tune=tune, rank=2))  # type: ignore[arg-type]
    torch.manual_seed(0)
    held = learned(Spectral(tiny_backbone(), tune=tune, rank=2, k=8, strength=0.1, form=form))  # type: ignore[arg-type]
    assert held[0] > bare[0] + 0.15
    assert held[1] > 0.75


def test_settings_that_cannot_be(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="strength"):
        Spectral(tiny_backbone(), strength=-1.0)
    with pytest.raises(ConfigError, match="Did you mean 'layers'"):
        Spectral(tiny_backbone(), form="layer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Spectral(tiny_backbone(), k=0)
