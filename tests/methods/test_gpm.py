"""What is protected does not move, under any optimiser; the rest is gradient descent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentcl.data import ArrayTransform, Task, TaskStream, class_incremental, from_arrays
from tangentcl.errors import ConfigError
from tangentcl.forecast import GradientDescent, forecast_linear
from tangentcl.linalg import gram_spectrum, with_constant
from tangentcl.methods import GPM, Finetune, Method
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.peft import newest_pair
from tangentcl.training import Runtime, TrainingPlan
from tangentcl.training.stream import ignore, learn_task

Make = Callable[[], Backbone]
OPTIMISERS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9},
    "decay": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


def few(n: int) -> TaskStream:
    """Three tasks of two classes with ``n`` samples each, 3 tokens of width 4."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), n)
    x = (rng.normal(size=(6, 3, 4))[labels] * 2 + rng.normal(size=(len(labels), 3, 4))).astype(np.float32)
    stream = class_incremental(from_arrays(x, labels, x, labels, name="few", modality="array"), n_tasks=3)
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


def learn(method: Method, task: Task, **recipe: Any) -> None:
    plan = TrainingPlan(epochs=5, batch_size=4, device="cpu", **recipe)
    learn_task(method, task, plan, Runtime(device="cpu"), ignore)


@torch.no_grad()
def scores(method: Method, task: Task) -> Tensor:
    method.eval()
    return torch.cat([method.predict(x) for x, _ in task.train_eval.batches(100)])


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@pytest.mark.parametrize("new_rows", ["free", "projected"])
def test_old_outputs_of_a_head_do_not_move(tiny_backbone: Make, optimiser: str, new_rows: Any) -> None:
    stream = few(3)  # 6 samples of width 17 per task
    for method in (
        GPM(tiny_backbone(), tune="head", threshold=1.0, new_rows=new_rows, new_bias=0.0),
        Finetune(tiny_backbone(), tune="head"),
    ):
        learn(method, stream[0], **OPTIMISERS[optimiser])
        old = scores(method, stream[0])
        learn(method, stream[1], **OPTIMISERS[optimiser])
        moved = (scores(method, stream[0])[:, :2] - old).abs().max()
        assert moved < 1e-5 if isinstance(method, GPM) else moved > 0.05
        rising = scores(method, stream[0])[:, 2:]
        if isinstance(method, GPM) and new_rows == "projected":
            assert method.protected_directions == {"head": 12}
            assert rising.abs().max() < 0.5  # as they were made, with deviation 0.02
        old = scores(method, stream[0])
        learn(method, stream[2], **OPTIMISERS[optimiser])
        moved = (scores(method, stream[0])[:, :4] - old).abs().max()
        assert moved < 1e-5 if isinstance(method, GPM) else moved > 0.05


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_old_outputs_of_every_layer_do_not_move(tiny_backbone: Make, optimiser: str, tune: Any) -> None:
    stream = few(1)  # 2 samples, 6 tokens of width 16
    # query and value would see five dimensions, which six tokens fill
    method = GPM(tiny_backbone(), tune=tune, rank=2, targets=["fc1", "fc2"], threshold=1.0)
    learn(method, stream[0], **OPTIMISERS[optimiser])
    seen: dict[str, Tensor] = {}
    for name, layer in method.protected.layers.items():
        layer.register_forward_hook(lambda m, x, y, name=name: seen.__setitem__(name, y.detach()))
    scores(method, stream[0])
    before, weights = dict(seen), copy.deepcopy(method.state_dict())
    assert len(before) == {"lora": 3, "full": 8}[tune]
    learn(method, stream[1], **OPTIMISERS[optimiser])
    scores(method, stream[0])
    for name, old in before.items():
        now = seen[name][:, :2] if name == "head" else seen[name]
        torch.testing.assert_close(now, old, rtol=0, atol=2e-5)
    if tune == "full":
        name = "learner.backbone.model.fc2.weight"
        assert (method.state_dict()[name] - weights[name]).norm() > 0.02
    else:
        pair = newest_pair(method.protected.layers["model.base_model.model.fc2"])
        assert pair is not None
        assert (pair[1].weight @ pair[0].weight).norm() > 1e-3


def test_plain_gradient_descent_is_the_projected_gradient_of_the_paper(tiny_backbone: Make) -> None:
    stream = few(3)
    method = GPM(tiny_backbone(), tune="head", threshold=0.9)
    learn(method, stream[0], optimizer="sgd", lr=0.05, momentum=0.0)
    method.begin_task(stream[1])
    head, space = copy.deepcopy(method.learner.head), method.protected.spaces[0]
    basis = space.basis.double()
    x, y = next(stream[1].train_eval.batches(100))
    features = with_constant(method.learner.backbone(x).detach(), 1.0)
    w = torch.cat([head.weight, head.bias[:, None]], dim=1).detach().double()
    for _ in range(5):
        gradient = (torch.softmax(features @ w.T, dim=1) - torch.eye(4).double()[y]).T @ features / len(y)
        gradient[:2] -= gradient[:2] @ basis @ basis.T  # new rows are free
        w -= 0.5 * gradient
    optimizer = torch.optim.SGD(method.learner.head.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        method.training_loss(x, y)["cross_entropy"].backward()
        optimizer.step()
    method.protected.project()
    torch.testing.assert_close(method.learner.head.weight.double(), w[:, :-1], rtol=0, atol=1e-5)
    assert 0 < space.k < 7


def test_the_drift_in_protected_eigenspaces_is_zero(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    plan = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
    method = GPM(tiny_backbone(), tune="head", threshold=0.95)
    learn(method, tiny_stream[0], **plan)
    k = method.protected_directions["head"]
    old, _ = extract_features(method.learner.backbone, tiny_stream[0].train_eval)
    new, labels = extract_features(method.learner.backbone, tiny_stream[1].train_eval)
    before = scores(method, tiny_stream[0])
    grown = copy.deepcopy(method.learner.head)
    grown.grow(4)
    spectrum = gram_spectrum(old, constant=1.0)
    unprotected = forecast_linear(old, grown, new, labels, GradientDescent(lr=0.05, steps=50)).drift[:, :2]
    learn(method, tiny_stream[1], **plan)
    drift = scores(method, tiny_stream[0])[:, :2] - before
    assert 0 < k < len(spectrum.values)
    assert spectrum.project(unprotected)[:k].norm() > 1
    assert spectrum.project(drift)[:k].norm() < 1e-4
    assert spectrum.project(drift)[k:].norm() > 1e-2  # less than the forecast's, and it is what is left


def test_each_task_has_a_pair_outside_the_protected_inputs(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = GPM(tiny_backbone(), rank=2, threshold=0.7)
    sizes: dict[str, int] = dict.fromkeys(method.protected_directions, 0)
    for number, task in enumerate(tiny_stream):
        bases = [space.basis.clone() for space in method.protected.spaces]  # type: ignore[operator]
        learn(method, task, **OPTIMISERS["adamw"])
        for layer, basis in zip(list(method.protected.layers.values())[1:], bases[1:]):
            pair = newest_pair(layer)
            assert pair is not None
            assert len(layer.lora_A) == number + 1  # type: ignore[arg-type]
            assert number == 0 or (pair[0].weight @ basis).abs().max() < 1e-5
        grown = method.protected_directions
        assert all(sizes[name] <= grown[name] < 17 for name in grown)
        sizes = grown
    assert all(k > 0 for k in sizes.values())


def test_what_is_in_no_linear_layer_trains_in_the_first_task_alone(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = GPM(tiny_blocks(), tune="full", threshold=0.7)
    method.begin_task(tiny_stream[0])
    assert all(p.requires_grad for p in method.parameters())
    method.end_task(tiny_stream[0])
    method.begin_task(tiny_stream[1])
    fixed = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert fixed
    assert all("norm" in name for name in fixed)


def test_the_threshold_grows_with_the_tasks(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    plain, growing = (GPM(tiny_backbone(), tune="head", threshold=0.7, growth=g) for g in (0.0, 0.14))
    for task in tiny_stream:
        for method in (plain, growing):
            method.begin_task(task)
            method.end_task(task)
    moment = sum(
        (rows := with_constant(extract_features(growing.learner.backbone, task.train_eval)[0], 1.0)).T @ rows
        for task in list(tiny_stream)[2:]
    )
    basis = growing.protected.spaces[0].basis.double()
    assert torch.trace(basis.T @ moment @ basis) >= 0.98 * torch.trace(moment)
    assert growing.protected_directions["head"] > plain.protected_directions["head"]


def test_impossible_settings(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1, got 0"):
        GPM(tiny_backbone(), threshold=0)
    with pytest.raises(ConfigError, match="growth"):
        GPM(tiny_backbone(), growth=-0.1)
    with pytest.raises(ConfigError, match="Did you mean 'projected'"):
        GPM(tiny_backbone(), new_rows="project")  # type: ignore[arg-type]
