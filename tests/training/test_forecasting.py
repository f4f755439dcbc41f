"""Forecasts inside a stream: exact where they can be, refused where not, and without a trace in what is learned."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import Samples, Task, TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import NCM, NTKCL, Finetune, Joint, Method, Replay
from tangentcl.nn import Backbone
from tangentcl.training import Forecasting, ForecastOptions, StageForecast, StreamResult, TrainingPlan, run_stream

MakeBackbone = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=3, batch_size=8, lr=5e-3, head_lr=2e-2, weight_decay=0.01, warmup=0.1, device="cpu")


def _run(
    method: Method, stream: TaskStream, plan: TrainingPlan = PLAN, *, watched: bool = True, **options: Any
) -> tuple[StreamResult, list[StageForecast]]:
    forecasting = Forecasting(ForecastOptions(**options))
    result = run_stream(method, stream, plan, watchers=[forecasting] if watched else [])
    return result, forecasting.made


def _made(cls: type[Method], make: MakeBackbone, **keywords: Any) -> Method:
    torch.manual_seed(0)
    return cls(make(), **keywords)  # type: ignore[call-arg]


@pytest.mark.parametrize("logits", ["all", "current"])
def test_a_linear_head_is_forecast_exactly(tiny_backbone: MakeBackbone, tiny_stream: TaskStream, logits: str) -> None:
    result, made = _run(_made(Finetune, tiny_backbone, tune="head", logits=logits), tiny_stream, new_samples=6)
    assert [found.task.index for found in made] == [1, 2]
    for found in made:
        assert found.reason is None
        assert found.forecast is not None
        assert found.forecast.exact
        assert found.error_so_far == 0.0
        for outlook in (found.old, found.new):
            assert outlook is not None
            quality = outlook.quality()
            assert quality is not None
            assert quality.relative_error < 1e-5
            assert quality.cosine > 1 - 1e-9
        assert found.old is not None
        # The run itself measured the same accuracy after the task.
        n, t = result.n_test[: found.task.index], found.task.index
        assert found.old.accuracy("real") == pytest.approx(float((result.matrix[t, :t] * n).sum() / n.sum()))
        assert found.old.accuracy("now") == pytest.approx(float((result.matrix[t - 1, :t] * n).sum() / n.sum()))
    assert made[1].new is not None
    assert made[1].new.samples.tasks.tolist() == [2] * 6


def test_a_local_forecast_is_near_and_nearer_after_a_pilot(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    plan = TrainingPlan(epochs=2, batch_size=8, lr=3e-2, device="cpu")
    errors = []
    for refine in (0.0, 0.5):
        _, made = _run(_made(Finetune, tiny_backbone, tune="lora", rank=2), tiny_stream, plan, refine=refine)
        assert made[0].forecast is not None
        assert made[0].old is not None
        assert (made[0].forecast.form, made[0].forecast.exact) == ("bilinear", False)
        quality = made[0].old.quality()
        assert quality is not None
        errors.append(quality.relative_error)
        assert made[0].error_so_far is None
        assert made[1].error_so_far == quality.relative_error
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 10


def _tensors(method: Method) -> dict[str, torch.Tensor]:
    return {key: value for key, value in method.state_dict().items() if isinstance(value, torch.Tensor)}


class Restless(Finetune):
    """Draws from every global generator in its loss, and looks at the modes it is called in."""

    def training_loss(self, x: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        terms = super().training_loss(x, y)
        return {"cross_entropy": terms["cross_entropy"] * (1 + 0.1 * noise)} if self.training else terms


@pytest.mark.parametrize(
    ("cls", "keywords"),
    [
        (Finetune, {"tune": "head"}),
        (Finetune, {"tune": "lora", "rank": 2, "dropout": 0.3}),
        (Finetune, {"tune": "full"}),
        (Restless, {"tune": "head"}),
        (Replay, {"tune": "head", "budget": 8}),
        (NCM, {}),
        (Joint, {"tune": "head"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value.get("tune", "")),
)
def test_what_is_learned_does_not_depend_on_being_forecast(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream, cls: type[Method], keywords: dict[str, Any]
) -> None:
    def learned(watched: bool) -> tuple[StreamResult, dict[str, torch.Tensor], list[float]]:
        random.seed(0), np.random.seed(0)
        method = _made(cls, tiny_backbone, **keywords)
        result, _ = _run(method, tiny_stream, watched=watched, samples=20)
        assert all(p.grad is None for p in method.parameters())
        return result, _tensors(method), [random.random(), float(np.random.rand()), float(torch.rand(()))]

    (result, state, drawn), (expected, other, redrawn) = learned(True), learned(False)
    np.testing.assert_array_equal(result.matrix, expected.matrix)
    np.testing.assert_array_equal(result.class_correct, expected.class_correct)
    assert drawn == redrawn
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_nothing_trains(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    _, made = _run(NCM(tiny_backbone()), tiny_stream)
    assert [found.task.index for found in made] == [1, 2]
    assert all(found.reason is not None and "NCM trains nothing by gradient steps" in found.reason for found in made)
    assert all(found.old is None and found.training_seconds is not None for found in made)


def test_a_method_that_predicts_by_what_it_stores_is_refused(
    tiny_blocks: MakeBackbone, tiny_stream: TaskStream
) -> None:
    _, made = _run(_made(NTKCL, tiny_blocks, rank=2, n_prompts=2, cached_views=1), tiny_stream)
    assert [found.task.index for found in made] == [1, 2]
    reason = "NTKCL scores a new class by what it stores of it after training"
    assert all(found.reason is not None and found.reason.startswith(reason) for found in made)


def test_nothing_was_learned_before(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    assert _run(_made(Joint, tiny_backbone, tune="head"), tiny_stream)[1] == []


class OtherLoss(Finetune):
    """Minimises something else than cross-entropy."""

    def training_loss(self, x: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**super().training_loss(x, y), "size": self.head.weight.square().sum()}


class Breaks(Finetune):
    """A mistake in the method, outside training."""

    def training_loss(self, x: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.training:
            raise RuntimeError("a mistake")
        return super().training_loss(x, y)


def test_a_refusal_says_why_and_a_mistake_is_not_hidden(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    _, made = _run(_made(OtherLoss, tiny_backbone, tune="head"), tiny_stream)
    assert all(found.reason is not None and "size" in found.reason for found in made)
    with pytest.raises(RuntimeError, match="a mistake"):
        _run(_made(Breaks, tiny_backbone, tune="head"), tiny_stream)


def test_what_the_recipe_leaves_out_is_noted(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    plan = TrainingPlan(epochs=2, batch_size=8, lr=5e-2, optimizer="sgd", clip_norm=0.05, device="cpu")
    _, made = _run(_made(Finetune, tiny_backbone, tune="head"), tiny_stream, plan)
    first, second = made
    assert first.forecast is not None
    assert not first.forecast.exact
    assert "clipped" in first.forecast.sentence
    assert first.error_so_far is None  # nothing is known of such forecasts before the first
    assert first.old is not None
    quality = first.old.quality()
    assert quality is not None
    assert second.error_so_far == quality.relative_error
    assert second.old is not None
    low, high = second.old.band(quality.relative_error)
    assert low <= second.old.accuracy("predicted") <= high


class Swapped(Finetune):
    """Trains on samples in another order than the task's."""

    def training_samples(self, task: Task) -> Samples:
        return task.train.subset(range(len(task.train))[::-1])


def test_the_samples_that_a_method_trains_on_are_those_of_the_forecast(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    for cls, keywords in ((Swapped, {}), (Replay, {"budget": 12})):
        _, made = _run(_made(cls, tiny_backbone, tune="head", **keywords), tiny_stream)
        for found in made:
            assert found.old is not None, found.reason
            quality = found.old.quality()
            assert quality is not None
            assert quality.relative_error < 1e-5


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"samples": 0}, "forecast.samples must be a whole number of at least 1, got 0"),
        ({"new_samples": 1.5}, "forecast.new_samples must be a whole number of at least 0, got 1.5"),
        ({"form": "magic"}, "form must be one of auto, exact, bilinear, ntk, got 'magic'"),
        ({"refine": 1.0}, "refine must be at least 0 and below 1, got 1.0"),
    ],
)
def test_impossible_options(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ForecastOptions(**keywords)
