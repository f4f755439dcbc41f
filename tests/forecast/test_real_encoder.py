"""A local forecast of a real sentence encoder with LoRA, against really training it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tangentcl
from tangentcl import Finetune, TrainingPlan
from tangentcl.data import Samples
from tangentcl.forecast import prepare_forecast
from tangentcl.nn import backbone
from tangentcl.training import Runtime, TaskFit, recipe


@torch.no_grad()
def _outputs(method: Finetune, samples: Samples) -> Tensor:
    method.eval()
    return torch.cat([method.predict(x) for x, _ in samples.batches(64)])


def _fit(method: Finetune, task: Any, plan: TrainingPlan) -> None:
    TaskFit(method, task, task.train, plan, Runtime(device="cpu"), lambda *_: None).run()


@pytest.mark.slow
def test_lora_on_clinc150(data_folder: Path, models_folder: Path) -> None:
    encoder_folder = models_folder / "all-MiniLM-L6-v2"
    if not encoder_folder.exists():
        pytest.skip(f"{encoder_folder} is not there")
    source = tangentcl.load("clinc150")
    groups = ["banking", "credit_cards"]
    stream = tangentcl.class_incremental(source, groups=groups, train_per_class=15, test_per_class=10)
    encoder = backbone(str(encoder_folder), pooling="mean")
    stream = stream.with_transforms(encoder.eval_transform, encoder.eval_transform)
    torch.manual_seed(0)
    method = Finetune(encoder, tune="lora", rank=8)
    method.begin_task(stream[0])
    _fit(method, stream[0], TrainingPlan(epochs=4, lr=1e-3, head_lr=1e-2, device="cpu"))
    torch.manual_seed(1)
    method.begin_task(stream[1])
    old, task = stream[0].test, stream[1]
    plan = TrainingPlan(epochs=5, batch_size=32, optimizer="adamw", lr=3e-4, device="cpu")

    forecast = prepare_forecast(method, old, task, modes=0).forecast(recipe(plan, len(task.train), task.index))
    learner = copy.deepcopy(method)
    before = _outputs(learner, old)
    _fit(learner, task, plan)
    real = _outputs(learner, old) - before
    cosine = float((forecast.drift * real).sum() / (forecast.drift.norm() * real.norm()))
    r2 = 1 - float((forecast.drift - real).square().sum() / real.square().sum())
    assert cosine > 0.97
    assert r2 > 0.9
    assert forecast.trust is not None
    assert forecast.trust.level != "low"
    after = float(((before + real).argmax(dim=1) == torch.from_numpy(old.labels)).double().mean())
    assert forecast.accuracy()[1] == pytest.approx(after, abs=0.05)
