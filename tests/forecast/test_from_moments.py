"""Forecasts from moments where adapters or everything train: against really training, and against dense algebra."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tangentcl.data import Samples, TaskStream
from tangentcl.errors import ModelError
from tangentcl.forecast import SGD, TaskMoments, forecast_from_moments, prepare_forecast
from tangentcl.forecast.feature_change import feature_change
from tangentcl.forecast.forgetting import DROPOUT
from tangentcl.forecast.from_moments import AGED, ESTIMATE, LOCAL, OTHER_LAYERS, prepared_from_moments
from tangentcl.forecast.layer_moments import adapted_layers, effective_weight, forecast_layers
from tangentcl.forecast.trust import belief
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import Runtime, TrainingPlan, recipe
from tangentcl.training.loop import TaskFit
from tangentcl.training.moments import collect_moments

FIRST = TrainingPlan(epochs=3, batch_size=8, lr=0.02, device="cpu")


def _plan(optimizer: str, lr: float, head_lr: float) -> TrainingPlan:
    return TrainingPlan(epochs=2, batch_size=8, optimizer=optimizer, lr=lr, head_lr=head_lr, device="cpu")


SMALL = _plan("adamw", 0.01, 0.002)
CASES = [
    ("lora", SMALL),
    ("lora", _plan("sgd", 0.03, 0.003)),
    ("full", SMALL),
    ("full", _plan("sgd", 0.03, 0.03)),
]


def _fit(method: Finetune, stream: TaskStream, index: int, plan: TrainingPlan) -> None:
    task = stream[index]
    TaskFit(method, task, task.train, plan, Runtime(device="cpu"), lambda *event: None).run()
    method.eval()


def _learned(stream: TaskStream, backbone: Backbone, tune: str) -> tuple[Finetune, TaskMoments]:
    """A learner of the first task whose head has grown for the second, and what the first task left."""
    torch.manual_seed(0)
    method = Finetune(backbone, tune=tune, rank=2, targets=("q", "v"))  # type: ignore[arg-type]
    method.begin_task(stream[0])
    _fit(method, stream, 0, FIRST)
    moments = collect_moments(backbone, stream[0], sketch="exact")
    method.begin_task(stream[1])
    return method, moments


@torch.no_grad()
def _outputs(method: Finetune, stream: TaskStream) -> Tensor:
    return torch.cat([method.predict(x) for x, _ in stream[0].train_eval.batches(64)]).double()


@pytest.mark.parametrize(("tune", "plan"), CASES)
def test_the_drift_is_close_to_that_of_training_and_closer_than_the_heads_part(
    tiny_stream: TaskStream, tiny_backbone: Callable[[], Backbone], tune: str, plan: TrainingPlan
) -> None:
    method, moments = _learned(tiny_stream, tiny_backbone(), tune)
    kept = {name: value.clone() for name, value in method.state_dict().items()}
    found = forecast_from_moments([moments], method, tiny_stream[1], recipe(plan, len(tiny_stream[1].train), 1))
    assert all(torch.equal(value, kept[name]) for name, value in method.state_dict().items())
    before = _outputs(method, tiny_stream)
    trained = copy.deepcopy(method)
    _fit(trained, tiny_stream, 1, plan)
    after = _outputs(trained, tiny_stream)
    real = float((after - before).square().mean().sqrt())
    assert found.rms == pytest.approx(real, rel=0.12)
    assert abs(found.rms - real) < 0.25 * abs(found.head_rms - real)
    labels = torch.from_numpy(tiny_stream[0].train_eval.labels)
    assert found.accuracy()[1] == pytest.approx(float((after.argmax(dim=1) == labels).double().mean()), abs=0.1)
    assert found.layers is not None
    real_total = 0.0
    for name in found.layers.layers:
        layer, moved = (adapted_layers(one.backbone)[name] for one in (method, trained))
        sketch = moments.layers[name]
        real_total += float(sketch.energy(effective_weight(moved) - effective_weight(layer)).sum()) / sketch.n
    assert found.layers.total == pytest.approx(real_total, rel=0.5)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_is_the_change_of_the_head_and_of_the_features_that_the_local_model_leaves(
    tiny_stream: TaskStream, tiny_backbone: Callable[[], Backbone], tune: str
) -> None:
    method, moments = _learned(tiny_stream, tiny_backbone(), tune)
    task, plan = tiny_stream[1], SMALL
    dynamics = recipe(plan, len(task.train), 1)
    prepared = prepare_forecast(method, None, task)
    found = prepared_from_moments(prepared, [moments], dynamics)
    moved = copy.deepcopy(method)
    after = prepared.parameters_after(dynamics)
    moved.load_state_dict(after, strict=False)
    old, new = _matrix(method.head), _matrix(moved.head)
    assert found.trust is not None
    weight = belief(found.trust.gap)
    assert 0.5 < weight < 1.0
    start, actual = (extract_features(m.backbone, task.train)[0] for m in (method, moved))
    local = _first_order(method.backbone, task.train, after)
    map_ = feature_change(start, weight * actual + (1 - weight) * local)
    features = extract_features(method.backbone, tiny_stream[0].train_eval)[0].double()
    rows = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    drift = torch.cat([features + rows @ map_, rows[:, -1:]], dim=1) @ new - rows @ old
    assert float((found.energy[0] - drift.square().sum(dim=0)).norm() / found.energy.norm()) < 1e-3
    assert found.head_rms == pytest.approx(float((rows @ (new - old)).square().mean().sqrt()), rel=1e-5)
    assert not found.exact
    assert found.notes == ((ESTIMATE,) if tune == "lora" else (DROPOUT, ESTIMATE))  # LoRA leaves dropout off
    assert found.seen == 2
    assert found.layers is not None
    inside = {name.removeprefix("backbone."): value for name, value in after.items() if name.startswith("backbone.")}
    assert torch.equal(found.layers.energy, forecast_layers([moments], method.backbone, inside).energy)
    summary = found.to_dict()
    assert summary["exact"] is False
    assert summary["head_rms"] < summary["drift_rms"]
    assert [row["relative"] for row in summary["layers"]["layers"]] == sorted(found.layers.relative, reverse=True)


def _first_order(backbone: Backbone, samples: Samples, after: dict[str, Tensor]) -> Tensor:
    """Features moved along the displacement by a difference quotient, and not further than their own size."""
    moved = copy.deepcopy(backbone)
    values = {name: after[f"backbone.{name}"] for name, p in backbone.named_parameters() if p.requires_grad}
    step = 1e-3
    for name, p in moved.named_parameters():
        if name in values:
            p.data += step * (values[name] - p.data)
    start, near = (extract_features(one, samples)[0].double() for one in (backbone, moved))
    change = (near - start) / step
    ratio = change.square().sum(dim=1, keepdim=True) / start.square().sum(dim=1, keepdim=True)
    return start + change / (1 + ratio).sqrt()


def _matrix(head: Any) -> Tensor:
    found: Tensor = torch.cat([head.weight.T, head.bias[None]]).detach().double()
    return found


def test_what_is_not_known_is_said(tiny_stream: TaskStream, tiny_backbone: Callable[[], Backbone]) -> None:
    method, moments = _learned(tiny_stream, tiny_backbone(), "lora")
    prepared = prepare_forecast(method, None, tiny_stream[1])
    dynamics = recipe(SMALL, len(tiny_stream[1].train), 1)
    two = prepared_from_moments(prepared, [moments, moments], dynamics)
    assert two.notes == (ESTIMATE, AGED)
    assert two.n.tolist() == [40, 40]
    bare = TaskMoments(moments.features, moments.sums)
    found = prepared_from_moments(prepared, [bare], dynamics)
    assert (found.layers, found.notes, found.rms) == (None, (ESTIMATE,), two.rms)
    assert found.to_dict()["layers"] is None
    other = TaskMoments(moments.features, moments.sums, {"fc1": next(iter(moments.layers.values()))})
    found = prepared_from_moments(prepared, [other], dynamics)
    assert (found.layers, found.notes) == (None, (ESTIMATE, OTHER_LAYERS))


def test_a_head_of_which_a_part_is_frozen() -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 3)
    head.bias.requires_grad_(False)
    old, new, labels = torch.randn(9, 4), torch.randn(6, 4), torch.tensor([2, 1, 2, 2, 0, 2])
    moments = TaskMoments.empty(4, sketch="exact")
    moments.add(old, torch.arange(9) % 2)
    steps = [[0, 1, 2], [3, 4, 5]] * 4
    found = forecast_from_moments([moments], head, (new, labels), SGD(lr=0.1, batches=steps), seen=2)
    assert (found.exact, found.notes, found.shift, found.layers) == (False, (LOCAL,), None, None)
    before = head(old).detach()
    optimizer = torch.optim.SGD([head.weight], lr=0.1)
    for rows in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(new[rows]), labels[rows]).backward()
        optimizer.step()
    real = (head(old).detach() - before).square().sum(dim=0).double()
    assert float((found.energy[0] - real).norm() / real.norm()) < 1e-5


def test_outputs_that_no_linear_layer_makes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    moments = TaskMoments.empty(4, sketch="exact")
    moments.add(torch.randn(9, 4), torch.arange(9) % 2)
    new = torch.randn(6, 4), torch.full((6,), 2)
    with pytest.raises(ModelError, match="no linear layer makes those of Sequential"):
        forecast_from_moments([moments], model, new, SGD(lr=0.1, batches=[[0, 1]]))
