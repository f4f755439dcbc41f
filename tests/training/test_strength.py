"""A penalty's strength as a setting of the coming task: what is forecast at a strength, training with it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, ModelError
from tangentcl.forecast import prepare_forecast
from tangentcl.forecast.forgetting import Prepared
from tangentcl.forecast.penalised import Penalised
from tangentcl.methods import Finetune, Spectral
from tangentcl.nn import Backbone
from tangentcl.training import Forecasting, ForecastOptions, Runtime, TrainingPlan, run_stream
from tangentcl.training.recipe import recipe
from tangentcl.training.stage import begin
from tangentcl.training.stream import learn_task

MakeBackbone = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=3, batch_size=8, lr=2e-2, weight_decay=0.01, warmup=0.1, device="cpu")
GENTLE = TrainingPlan(epochs=2, batch_size=8, lr=5e-3, head_lr=2e-2, device="cpu")
RUNTIME = Runtime(device="cpu")


def two_tasks_later(make: MakeBackbone, stream: TaskStream, plan: TrainingPlan, **settings: Any) -> Spectral:
    torch.manual_seed(0)
    method = Spectral(make(), **settings)
    for task in stream.tasks[:2]:
        learn_task(method, task, plan, RUNTIME, lambda *_: None)
    return method


def forecast_and_truth(
    make: MakeBackbone, stream: TaskStream, plan: TrainingPlan, coming: float, **settings: Any
) -> tuple[Tensor, Tensor, Tensor, Prepared]:
    """Drift of the first task's test samples in the third task, forecast, without a penalty, and real."""
    task, old = stream[2], stream[0].test
    method = two_tasks_later(make, stream, plan, **settings)
    begin(method, task, plan.seed)
    prepared = prepare_forecast(method, old, task)
    steps = recipe(plan, len(task.train), task.index)
    said, free = (prepared.forecast(steps, strength=s) for s in (coming, 0.0))
    trained = two_tasks_later(make, stream, plan, **settings)
    trained.strength = coming
    learn_task(trained, task, plan, RUNTIME, lambda *_: None)
    x, _ = next(iter(old.batches(len(old))))
    with torch.no_grad():
        real = trained.eval().predict(x) - said.outputs
    return said.drift.float(), free.drift.float(), real, prepared


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_a_head_is_forecast_exactly(tiny_backbone: MakeBackbone, tiny_stream: TaskStream, strength: float) -> None:
    """The tasks before had another strength, and the method keeps it while forecasts are made."""
    said, free, real, prepared = forecast_and_truth(
        tiny_backbone, tiny_stream, PLAN, strength, tune="head", strength=0.3
    )
    assert prepared.form == "exact"
    torch.testing.assert_close(said, real, rtol=1e-4, atol=2e-5)
    assert float((free - real).norm()) > 0.05 * float(real.norm())  # the strength matters here


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_lora_is_forecast_within_its_trust(tiny_blocks: MakeBackbone, tiny_stream: TaskStream, strength: float) -> None:
    settings = {"tune": "lora", "rank": 2, "targets": ("query",), "strength": 0.3}
    said, free, real, _ = forecast_and_truth(tiny_blocks, tiny_stream, GENTLE, strength, **settings)
    error = float((said - real).norm() / real.norm())
    assert error < 0.1, error
    assert error < 0.5 * float((free - real).norm() / real.norm())


def test_the_strength_of_the_method_is_the_default(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    method = two_tasks_later(tiny_backbone, tiny_stream, PLAN, tune="head", strength=0.3)
    task = tiny_stream[2]
    begin(method, task, 0)
    steps = recipe(PLAN, len(task.train), task.index)
    prepared = prepare_forecast(method, tiny_stream[0].test, task)
    assert torch.equal(prepared.forecast(steps).drift, prepared.forecast(steps, strength=0.3).drift)
    assert method.strength == 0.3
    with pytest.raises(ConfigError, match="strength must be zero or positive, got -1"):
        prepared.forecast(steps, strength=-1.0)
    with pytest.raises(ConfigError, match="strength must be zero or positive, got -1"):
        method.strength = -1.0
    own = Penalised(inner=steps, penalty=lambda values: torch.zeros(()))
    with pytest.raises(ModelError, match="the recipe brings its own penalty"):
        prepared.forecast(own, strength=1.0)


def test_a_method_without_a_penalty_has_no_strength(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    method, task = Finetune(tiny_backbone(), tune="head"), tiny_stream[1]
    begin(method, tiny_stream[0], 0)
    begin(method, task, 0)
    prepared = prepare_forecast(method, tiny_stream[0].test, task)
    with pytest.raises(ModelError, match=r"Finetune cannot be forecast at a strength of 0\.1: it adds no penalty"):
        prepared.forecast(recipe(PLAN, len(task.train), 1), strength=0.1)


def test_forecasts_within_a_run_follow_the_penalty(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    """What the table [forecast] of an experiment does: each task before it is learned, and the truth after."""
    torch.manual_seed(0)
    watcher = Forecasting(ForecastOptions())
    run_stream(Spectral(tiny_backbone(), tune="head", strength=0.3), tiny_stream, PLAN, watchers=[watcher])
    for found in watcher.made:
        assert found.reason is None
        assert found.forecast is not None
        assert found.forecast.exact
        assert found.old is not None
        quality = found.old.quality()
        assert quality is not None
        assert quality.relative_error < 1e-5
