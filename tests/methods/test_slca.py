"""Gaussians against numpy, the alignment against its formula, and an old class that a shifted head has lost."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import SLCA
from tangentcl.methods.slca import gaussian, normalised
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import TrainingPlan, run_stream

Make = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.01, device="cpu", seed=3)


def test_a_gaussian_is_mean_and_covariance_of_numpy() -> None:
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 3.0, 0.1, 5.0])
    mean, factor = gaussian(z, ridge=0.25)
    np.testing.assert_allclose(mean.numpy(), z.double().numpy().mean(axis=0), rtol=1e-12)
    expected = np.cov(z.double().numpy().T) + 0.25 * np.eye(5)
    np.testing.assert_allclose((factor @ factor.T).numpy(), expected, rtol=1e-12, atol=1e-12)
    _, alone = gaussian(z[:1], ridge=0.25)
    np.testing.assert_allclose(alone.numpy(), 0.5 * np.eye(5))


def test_normalised_logits_follow_the_formula_over_tasks() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).double()
    parts = [logits[:, :2], logits[:, 2:]]  # two tasks
    length = sum(part.square().sum(dim=1, keepdim=True) for part in parts).sqrt()
    torch.testing.assert_close(normalised(logits, 0.1), logits / (0.1 * length), rtol=1e-12, atol=1e-12)


def test_the_state_holds_the_gaussians_of_the_time_a_class_was_learned(tiny_backbone: Make, tiny_stream: TaskStream):
    method = SLCA(tiny_backbone(), tune="head", align_epochs=1, align_samples=8)
    run_stream(method, tiny_stream, PLAN)
    for task in tiny_stream:  # the backbone is frozen: features are those of the time
        features, labels = extract_features(method.learner.backbone, task.train_eval)
        for c in task.classes:
            z = features[labels == c].double().numpy()
            np.testing.assert_allclose(method.means[c].numpy(), z.mean(axis=0), rtol=1e-5, atol=1e-6)
            sigma = (method.factors[c] @ method.factors[c].T).numpy()
            np.testing.assert_allclose(sigma, np.cov(z.T) + 1e-4 * np.eye(16), rtol=1e-4, atol=1e-5)
    assert method.counts.tolist() == [20] * 6


def _four_classes(make: Make, stream: TaskStream, **keywords: float) -> SLCA:
    """Before the end of the second task: four classes, each a narrow Gaussian around a unit vector."""
    method = SLCA(make(), tune="head", **keywords)  # type: ignore[arg-type]
    for task in list(stream)[:2]:
        method.begin_task(task)
    method.means.copy_(torch.eye(16)[:4])
    method.factors.copy_(0.05 * torch.eye(16).expand(4, -1, -1))
    method.counts.fill_(9)
    return method


def test_the_aligned_head_recovers_old_classes_after_the_head_has_shifted(tiny_backbone: Make, tiny_stream: TaskStream):
    method = _four_classes(tiny_backbone, tiny_stream, align_lr=0.1, align_epochs=20)
    weight, bias = 0.1 * torch.eye(16)[:4], torch.tensor([-1.0, -1.0, 1.0, 1.0])  # all goes to the new classes
    z, y = method.sample(torch.Generator().manual_seed(9))
    assert float((F.linear(z, weight, bias).argmax(1) == y).float().mean()) < 0.51
    aligned = method._aligned(weight.clone(), bias.clone(), 1)
    assert float((F.linear(z, *aligned).argmax(1) == y).float().mean()) > 0.99


def test_one_step_of_the_alignment_is_that_of_the_formula(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = _four_classes(tiny_backbone, tiny_stream, align_epochs=1, align_samples=4, align_lr=0.3, seed=5)
    w = torch.randn(4, 16, generator=torch.Generator().manual_seed(3)) * 0.1
    b = torch.tensor([0.1, -0.2, 0.3, 0.0])
    generator = torch.Generator().manual_seed(5 * 100_003 + 1)
    drawn = []
    for c in range(4):
        drawn.append(torch.eye(16)[c] + 0.05 * torch.randn(4, 16, generator=generator))
    z, y = torch.cat(drawn), torch.arange(4).repeat_interleave(4)
    order = torch.randperm(16, generator=generator)
    expected_w, expected_b, speed = w.double(), b.double(), 0.0
    for batch in order.split(4):  # gradients by hand, momentum 0.9, decay 5e-4
        x = torch.cat([z[batch].double(), torch.ones(4, 1).double()], dim=1)  # [4, 17]
        theta = torch.cat([expected_w, expected_b[:, None]], dim=1)
        logits = x @ theta.T
        length = logits.norm(dim=1, keepdim=True)
        unit = logits / length
        p = (unit / 0.1).softmax(dim=1) - F.one_hot(y[batch], 4)
        back = (p - unit * (p * unit).sum(dim=1, keepdim=True)) / (0.1 * length)  # through the norm as well
        speed = 0.9 * speed + back.T @ x / 4 + 5e-4 * theta
        theta = theta - 0.3 * speed
        expected_w, expected_b = theta[:, :16], theta[:, 16]
    found_w, found_b = method._aligned(w.clone(), b.clone(), 1)
    torch.testing.assert_close(found_w.double(), expected_w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_b.double(), expected_b, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_round_what_is_drawn(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = _four_classes(tiny_backbone, tiny_stream)
    expected, _ = method.sample(torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = method.sample(torch.Generator().manual_seed(2))
    assert torch.equal(found, expected)


def test_the_head_that_trains_is_not_the_one_that_predicts(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = SLCA(tiny_backbone(), tune="head", align_samples=32)
    run_stream(method, tiny_stream, PLAN)
    plain = SLCA(tiny_backbone(), tune="head", align_epochs=0)
    run_stream(plain, tiny_stream, PLAN)
    head = plain.learner.head
    assert torch.equal(plain.aligned_weight, head.weight)
    assert torch.equal(plain.aligned_bias, head.bias)
    assert not torch.equal(method.aligned_weight, method.learner.head.weight)
    assert not torch.equal(method.aligned_weight[:2], plain.aligned_weight[:2])


def test_alignment_leaves_the_global_generator_alone(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method = SLCA(tiny_backbone(), tune="head", align_samples=8)
    for task in list(tiny_stream)[:2]:
        method.begin_task(task)
        torch.manual_seed(4)
        method.end_task(task)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tune": "ful"}, "Did you mean 'full'"),
        ({"align_epochs": -1}, "align_epochs must be at least 0"),
        ({"temperature": 0.0}, "temperature must be a positive number"),
        ({"ridge": math.inf}, "ridge must be a positive number"),
    ],
)
def test_wrong_settings_are_refused(tiny_backbone: Make, keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SLCA(tiny_backbone(), **keywords)  # type: ignore[arg-type]
