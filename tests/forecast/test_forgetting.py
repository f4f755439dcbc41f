"""Forecasts of models, before and after the library's own training loop; refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tangentcl
from tangentcl.data import ArrayTransform, Samples, Task, TaskStream, class_incremental, load
from tangentcl.errors import DataError, ModelError
from tangentcl.forecast import GradientDescent, forecast_forgetting, forecast_linear
from tangentcl.forecast import linear as module
from tangentcl.methods import NCM, Finetune, Replay
from tangentcl.nn import Backbone, CosineLinear, backbone, extract_features, from_module
from tangentcl.training import Runtime, TaskFit, TrainingPlan, recipe

MakeBackbone = Callable[[], Backbone]


def _learn(method: Finetune, task: Task, plan: TrainingPlan) -> None:
    TaskFit(method, task, task.train, plan, Runtime(device="cpu"), lambda *_: None).run()


def _outputs(method: Finetune, samples: Samples) -> Tensor:
    method.eval()
    with torch.no_grad():
        return torch.cat([method.predict(x) for x, _ in samples.batches(7)])


def _prepared(network: Backbone, stream: TaskStream, logits: str) -> Finetune:
    """Has learned the first task and begun the second."""
    torch.manual_seed(0)
    method = Finetune(network, tune="head", logits=logits)  # type: ignore[arg-type]
    method.begin_task(stream[0])
    _learn(method, stream[0], TrainingPlan(epochs=5, batch_size=8, optimizer="sgd", lr=0.05, device="cpu"))
    method.end_task(stream[0])
    method.begin_task(stream[1])
    return method


PLANS = {
    "sgd": TrainingPlan(epochs=3, batch_size=9, optimizer="sgd", lr=0.05, warmup=3, weight_decay=0.01, device="cpu"),
    "nesterov, accumulated": TrainingPlan(
        epochs=3, batch_size=4, accumulate=3, optimizer="sgd", lr=0.05, nesterov=True, warmup=0.1, device="cpu"
    ),
    "adamw": TrainingPlan(epochs=3, batch_size=9, lr=0.01, weight_decay=0.1, warmup=2, device="cpu"),
    "adamw, steps": TrainingPlan(epochs=3, batch_size=8, lr=0.01, schedule="step", device="cpu", seed=4),
}


@pytest.mark.parametrize("logits", ["all", "current"])
@pytest.mark.parametrize("name", PLANS)
def test_a_forecast_made_before_training_is_what_training_does(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream, name: str, logits: str
) -> None:
    method, task, plan = _prepared(tiny_backbone(), tiny_stream, logits), tiny_stream[1], PLANS[name]
    columns = task.classes if logits == "current" else None
    old = tiny_stream[0].test
    state = {key: value.clone() for key, value in method.state_dict().items()}
    forecast = forecast_forgetting(method, old, task, recipe(plan, len(task.train), task.index), columns=columns)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert forecast.exact
    assert (forecast.seen, forecast.drift.shape) == (2, (len(old), 4))

    before = _outputs(method, old)
    _learn(method, task, plan)
    after = _outputs(method, old)
    assert (forecast.outputs - before).norm() < 1e-6 * before.norm()
    assert (forecast.drift - (after - before)).norm() < 1e-5 * (after - before).norm()
    labels = torch.from_numpy(old.labels)
    expected = [float((outputs.argmax(1) == labels).double().mean()) for outputs in (before[:, :2], after)]
    assert list(forecast.accuracy()) == expected


def _digits_backbone() -> tuple[Backbone, str]:
    """The bundled network where its weights are there, else pixels."""
    if (Path(tangentcl.__file__).parent / "nn" / "bundled" / "card.json").exists():
        return backbone("bundled"), "bundled"
    return from_module(nn.Flatten(), _pixels, 64, name="pixels", modality="array"), "pixels"


def _pixels(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.float() / 255)


def test_on_handwritten_digits() -> None:
    network, kind = _digits_backbone()
    transform = ArrayTransform() if kind == "pixels" else network.eval_transform
    source = load("digits")
    stream = class_incremental(source, n_tasks=5, train_per_class=30, test_per_class=20)
    stream = stream.with_transforms(transform, transform)
    method, task = _prepared(network, stream, "all"), stream[1]
    plan = TrainingPlan(epochs=4, batch_size=16, optimizer="sgd", lr=0.05, warmup=2, device="cpu")
    forecast = forecast_forgetting(method, stream[0].test, task, recipe(plan, len(task.train), task.index))
    before = _outputs(method, stream[0].test)
    _learn(method, task, plan)
    real = _outputs(method, stream[0].test) - before
    assert (forecast.drift - real).norm() < 1e-5 * real.norm()
    now, after = forecast.accuracy()
    assert now > 0.9
    assert after < now
    assert forecast.vulnerable_rank(0.95) < len(stream[0].test)


class _Shifted:
    """A transform that draws."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.as_tensor(raw) + (0.0 if rng is None else float(rng.normal()))

    def collate(self, items: list[Any]) -> Tensor:
        return torch.stack(items)

    def describe(self) -> dict[str, Any]:
        return {}


def test_random_views_are_announced(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    method = _prepared(tiny_backbone(), tiny_stream, "all")
    task = dataclasses.replace(tiny_stream[1], train=tiny_stream[1].train.with_transform(_Shifted()))
    forecast = forecast_forgetting(method, tiny_stream[0].test, task, GradientDescent(lr=0.1, steps=3))
    assert not forecast.exact
    assert "random views" in forecast.notes[0]


def test_models_that_are_refused(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    task, old, dynamics = tiny_stream[0], tiny_stream[0].test, GradientDescent(lr=0.1, steps=3)

    def begun(method: Any) -> Any:
        method.begin_task(task)
        return method

    lora = begun(Finetune(tiny_backbone(), tune="lora", targets=("q", "v")))
    with pytest.raises(ModelError, match=r"form='exact' needs a linear head.*lora_A.* of 4 others train"):
        forecast_forgetting(lora, old, task, dynamics, form="exact")
    with pytest.raises(ModelError, match="no linear layer makes the outputs"):
        forecast_forgetting(_grown_pair(tiny_backbone()), old, task, dynamics, form="exact")
    with pytest.raises(ModelError, match="nothing of NCM trains"):
        forecast_forgetting(begun(NCM(tiny_backbone())), old, task, dynamics)
    with pytest.raises(ModelError, match=r"has no outputs: its head has to be grown"):
        forecast_forgetting((tiny_backbone(), CosineLinear(16)), old, task, dynamics)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not among the outputs in the loss"):
        forecast_forgetting(begun(Finetune(tiny_backbone(), tune="head")), old, tiny_stream[1], dynamics)


def _grown_pair(network: Backbone) -> Any:
    head = CosineLinear(16)
    head.grow(2)
    return network, head


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_what_adapts_the_backbone_is_forecast_locally(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream, tune: str
) -> None:
    method = Finetune(tiny_backbone(), tune=tune, targets=("q", "v"))  # type: ignore[arg-type]
    method.begin_task(tiny_stream[0])
    forecast = forecast_forgetting(method, tiny_stream[0].test, tiny_stream[0], GradientDescent(lr=0.01, steps=3))
    assert (forecast.form, forecast.exact) == ("bilinear", False)
    assert forecast.trust is not None
    assert forecast.trust.level == "high"


def test_stored_samples_are_trained_on_too(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    torch.manual_seed(0)
    method, task, old = Replay(tiny_backbone(), tune="head", budget=9), tiny_stream[1], tiny_stream[0].test
    method.begin_task(tiny_stream[0])
    method.end_task(tiny_stream[0])
    method.begin_task(task)
    samples = method.training_samples(task)
    assert len(samples) == len(task.train) + 9
    plan = TrainingPlan(epochs=2, batch_size=8, optimizer="sgd", lr=0.05, device="cpu")
    forecast = forecast_forgetting(method, old, task, recipe(plan, len(samples), task.index))
    assert forecast.exact
    before = _outputs(method, old)  # type: ignore[arg-type]
    TaskFit(method, task, samples, plan, Runtime(device="cpu"), lambda *_: None).run()
    real = _outputs(method, old) - before  # type: ignore[arg-type]
    assert (forecast.drift - real).norm() < 1e-5 * real.norm()


def test_a_model_that_minimises_something_else_is_refused(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    method, task, old = _prepared(tiny_backbone(), tiny_stream, "current"), tiny_stream[1], tiny_stream[0].test
    plain = GradientDescent(lr=0.1, steps=3)
    with pytest.raises(
        ModelError, match=r"the recipe minimises cross_entropy, which is .* over 4 outputs.*task\.classes"
    ):
        forecast_forgetting(method, old, task, plain, columns=range(4))
    asked = forecast_forgetting(method, old, task, plain)  # without columns the method is asked
    assert torch.equal(asked.drift, forecast_forgetting(method, old, task, plain, columns=task.classes).drift)
    assert not asked.drift[:, :2].any()
    squared = GradientDescent(lr=0.1, steps=3, loss="squared_error")
    with pytest.raises(ModelError, match=r"the recipe minimises squared_error, which is .* over 2 outputs"):
        forecast_forgetting(method, old, task, squared, columns=task.classes)
    with pytest.raises(ModelError, match=r"squared_error, which is \S+ over 4 outputs or \S+ over 2 outputs"):
        forecast_forgetting(method, old, task, squared)
    pair = (method.backbone, method.head)
    assert forecast_forgetting(pair, old, task, squared).exact  # a pair has no loss of its own


def test_a_pair_and_plain_samples(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    method, dynamics = _prepared(tiny_backbone(), tiny_stream, "all"), GradientDescent(lr=0.1, steps=5)
    old, new = tiny_stream[0].test, tiny_stream[1].train
    forecast = forecast_forgetting((method.backbone, method.head), old, new, dynamics)
    assert forecast.seen == 4
    z_old, y_old = extract_features(method.backbone, old)
    z_new, y_new = extract_features(method.backbone, new)
    same = forecast_linear(z_old, method.head, z_new, y_new, dynamics, labels_old=y_old)
    assert torch.equal(same.drift, forecast.drift)
    assert same.accuracy() == forecast.accuracy()


def test_old_features_are_read_in_blocks(make_case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    case, dynamics = make_case(20), GradientDescent(lr=0.1, steps=5)
    arguments = (case.features_old, case.head, case.features_new, case.labels, dynamics)
    whole = forecast_linear(*arguments)
    monkeypatch.setattr(module, "BLOCK", 4)
    torch.testing.assert_close(forecast_linear(*arguments).drift, whole.drift, rtol=1e-14, atol=1e-15)
    with pytest.raises(DataError, match=r"old samples \[n, 12\], got \[9, 3\]"):
        forecast_linear(case.features_old[:, :3], *arguments[1:])
    with pytest.raises(DataError, match="seen must be from 1 to the 5"):
        forecast_linear(*arguments, seen=6)


def test_dropout_before_a_linear_head_is_announced() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    new = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    forecast = forecast_forgetting(model, torch.randn(4, 4), new, GradientDescent(lr=0.1, steps=3))
    assert (forecast.form, forecast.exact) == ("exact", False)
    assert "dropout" in forecast.sentence
