"""APER is the nearest class mean on features put side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import APER
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import TrainingPlan, run_stream

Make = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.05, device="cpu", seed=3)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_is_nearest_class_mean_on_both_features(tiny_backbone: Make, tiny_stream: TaskStream, tune: Any) -> None:
    method = APER(tiny_backbone(), tune=tune, rank=2)
    result = run_stream(method, tiny_stream, PLAN)
    untouched = tiny_backbone()

    def both(split: str) -> tuple[np.ndarray, np.ndarray]:
        before = [extract_features(untouched, getattr(task, split)) for task in tiny_stream]
        after = [extract_features(method.backbone, getattr(task, split)) for task in tiny_stream]
        z = torch.cat([torch.cat([a, b], dim=1) for (a, _), (b, _) in zip(before, after, strict=True)])
        return z.double().numpy(), torch.cat([y for _, y in before]).numpy()

    train, labels = both("train_eval")
    test, y = both("test")
    assert np.abs(train[:, :16] - train[:, 16:]).max() > 1e-2, "the first session must have changed something"
    means = np.stack([train[labels == c].mean(axis=0) for c in range(6)])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    expected = test / np.linalg.norm(test, axis=1, keepdims=True) @ unit.T
    method.eval()
    x = torch.cat([x for task in tiny_stream for x, _ in task.test.batches(100)])
    with torch.no_grad():
        np.testing.assert_allclose(method.predict(x).numpy(), expected, rtol=1e-4, atol=1e-5)
    found = np.concatenate([result.predictions[2][k] for k in range(3)])
    np.testing.assert_array_equal(found, expected.argmax(axis=1))
    assert result.matrix[2].mean() == pytest.approx((found == y).mean())


def test_later_tasks_train_nothing(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = APER(tiny_backbone(), rank=2)
    run_stream(method, tiny_stream, PLAN)
    assert not any(p.requires_grad for p in method.parameters())
    x, y = next(tiny_stream[2].train.batches(4))
    assert method.training_loss(x, y) == {}


def test_lora_shares_the_pretrained_weights_and_full_does_not(tiny_backbone: Make) -> None:
    for tune, shared in (("lora", True), ("full", False)):
        method = APER(tiny_backbone(), tune=tune, rank=2)  # type: ignore[arg-type]
        own = {p.data_ptr() for p in method.backbone.parameters()}
        assert all((p.data_ptr() in own) == shared for p in method.pretrained.parameters())
        assert not any(p.requires_grad for p in method.pretrained.parameters())


def test_every_sample_passes_twice(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    backbone = tiny_backbone()
    backbone.passes = 7  # what it did before is its own
    method = APER(backbone, rank=2)
    before = method.backbone.passes  # finding the layers of LoRA looked at a sample
    method.begin_task(tiny_stream[0])
    method.end_task(tiny_stream[0])
    x, _ = next(tiny_stream[0].test.batches(5))
    method.predict(x)
    n = len(tiny_stream[0].train) + len(x)
    assert (method.pretrained.passes, method.backbone.passes - before) == (n, n)


def test_unknown_ways_to_tune_name_the_nearest(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        APER(tiny_backbone(), tune="lorra")  # type: ignore[arg-type]
