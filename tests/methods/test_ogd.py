"""Stored gradients against autograd; no displacement along them; the cap; the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tangentcl.data import ArrayTransform, Task, TaskStream, class_incremental, from_arrays
from tangentcl.errors import ConfigError
from tangentcl.methods import OGD, Method
from tangentcl.nn import Backbone, from_module
from tangentcl.training import Runtime, TrainingPlan
from tangentcl.training.stream import ignore, learn_task

Make = Callable[[], Backbone]
OPTIMISERS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "decay": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


def learn(method: Method, task: Task, **recipe: Any) -> None:
    plan = TrainingPlan(epochs=3, batch_size=8, device="cpu", **recipe)
    learn_task(method, task, plan, Runtime(device="cpu"), ignore)


@torch.no_grad()
def scores(method: Method, task: Task) -> Tensor:
    method.eval()
    return torch.cat([method.predict(x) for x, _ in task.train_eval.batches(100)])


def everything(method: OGD) -> Tensor:
    """Trained parameters as one vector, the head row by row with its biases."""
    head = method.learner.head
    rows = torch.cat([head.weight, head.bias[:, None]], dim=1).flatten()
    return torch.cat([*(p.flatten() for p in method.learner.trainable_backbone().values()), rows]).detach().clone()


def test_one_feature_by_hand() -> None:
    """The gradient of the label's logit for a feature x is (x, 1) in that row, and nothing elsewhere."""
    x, y = np.array([[1.0], [2.0], [3.0]], dtype=np.float32), np.array([0, 1, 2])
    stream = class_incremental(from_arrays(x, y, x, y, name="one", modality="array"), base=2, increment=1)
    stream = stream.with_transforms(ArrayTransform(), ArrayTransform())
    identity = from_module(nn.Identity(), None, 1, name="one", modality="array", sample=torch.zeros(2, 1))
    method = OGD(identity, tune="head")
    method.begin_task(stream[0])
    method.end_task(stream[0])
    expected = torch.zeros(4, 2)
    features, labels = next(stream[0].train_eval.batches(100))  # the order of classes is drawn
    for i, c in enumerate(labels.tolist()):
        row = torch.tensor([float(features[i]), 1.0])
        expected[2 * c : 2 * c + 2, i] = row / row.norm()
    span = method.protected.basis @ method.protected.basis.T
    torch.testing.assert_close(span, expected @ expected.T, rtol=0, atol=1e-6)
    method.begin_task(stream[1])
    assert method.protected.basis.shape == (6, 2)
    assert not method.protected.basis[4:].any()  # the new row is free


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@pytest.mark.parametrize("tune", ["head", "lora", "full"])
def test_parameters_do_not_move_along_stored_gradients(
    tiny_backbone: Make, tiny_stream: TaskStream, tune: Any, optimiser: str
) -> None:
    method = OGD(tiny_backbone(), tune=tune, rank=2, directions=12)
    learn(method, tiny_stream[0], **OPTIMISERS[optimiser])
    for task in list(tiny_stream)[1:]:
        basis, n_old = method.protected.basis.clone(), len(everything(method))
        start = everything(method)
        learn(method, task, **OPTIMISERS[optimiser])
        moved = everything(method)[:n_old] - start
        assert (moved @ basis).abs().max() < 1e-5
        assert moved.norm() > 0.02


def test_stored_outputs_of_a_linear_head_do_not_move(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    task, labels = tiny_stream[0], torch.as_tensor(tiny_stream[0].train_eval.labels)
    for outputs, directions in (("label", 40), ("all", 80)):
        method = OGD(tiny_backbone(), tune="head", outputs=outputs, directions=directions)  # type: ignore[arg-type]
        learn(method, task, **OPTIMISERS["adamw"])
        before = scores(method, task)
        learn(method, tiny_stream[1], **OPTIMISERS["adamw"])
        drift = scores(method, task)[:, :2] - before
        if outputs == "all":
            assert method.protected.k >= 34  # 17 per row: all there is
            assert drift.abs().max() < 1e-5
        else:
            assert drift.gather(1, labels[:, None]).abs().max() < 1e-5


@pytest.mark.parametrize(("outputs", "n"), [("label", 9), ("all", 18)])
def test_the_basis_spans_the_gradients(tiny_backbone: Make, tiny_stream: TaskStream, outputs: Any, n: int) -> None:
    method = OGD(tiny_backbone(), rank=2, directions=n, outputs=outputs)
    method.begin_task(tiny_stream[0])
    with torch.no_grad():
        for p in method.learner.trainable_backbone().values():
            p.add_(0.1 * torch.randn_like(p))
    method.end_task(tiny_stream[0])
    drawn = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:9]
    x, y = next(tiny_stream[0].train_eval.subset(drawn.numpy()).batches(100))
    head = method.learner.head
    backbone = list(method.learner.trainable_backbone().values())
    residuals = []
    for i in range(9):
        for c in [int(y[i])] if outputs == "label" else [0, 1]:
            *inner, w, b = torch.autograd.grad(
                method.predict(x[i : i + 1])[0, c], [*backbone, head.weight, head.bias], materialize_grads=True
            )
            g = torch.cat([*(v.flatten() for v in inner), torch.cat([w, b[:, None]], dim=1).flatten()])
            basis = method.protected.basis
            residuals.append((g - basis @ (basis.T @ g)).norm() / g.norm())
    assert method.protected.k == n
    assert max(residuals) < 1e-5


def test_the_cap_and_the_bytes(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = OGD(tiny_backbone(), tune="head", directions=8, max_directions=12)
    sizes = []
    for task in tiny_stream:
        method.begin_task(task)
        method.end_task(task)
        sizes.append(method.protected.k)
    assert sizes == [8, 12, 12]
    parameters = 6 * 17
    # held values are of the last hold, which a full memory leaves in place
    assert method.state_bytes == 4 * (parameters + 12 * parameters + 12)


def test_the_draw_of_samples_follows_the_seed(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    bases = []
    for seed in (0, 0, 1):
        method = OGD(tiny_backbone(), tune="head", directions=5, seed=seed)
        method.begin_task(tiny_stream[0])
        method.end_task(tiny_stream[0])
        bases.append(method.protected.basis)
    assert torch.equal(bases[0], bases[1])
    assert not torch.equal(bases[0], bases[2])


def test_impossible_settings(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="directions is a number of gradients"):
        OGD(tiny_backbone(), directions=0)
    with pytest.raises(ConfigError, match="max_directions"):
        OGD(tiny_backbone(), max_directions=0)
    with pytest.raises(ConfigError, match="Did you mean 'label'"):
        OGD(tiny_backbone(), outputs="labels")  # type: ignore[arg-type]
