"""Prototypes, their complement and the weighted ensemble against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tangentcl.data import ArrayTransform, TaskStream, class_incremental, domain_incremental, from_arrays
from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods import EASE
from tangentcl.methods.ease import complement
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import TrainingPlan, run_stream

Make = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=3, batch_size=8, lr=0.05, device="cpu", seed=3)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _learned(make: Make, stream: TaskStream, **keywords: float) -> EASE:
    torch.manual_seed(0)
    method = EASE(make(), rank=4, adapter_scale=1.0, **keywords)  # type: ignore[arg-type]
    run_stream(method, stream, PLAN)
    return method


def test_the_complement_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    old, new, there = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(4, 7))
    similarity = np.exp(_unit(old) @ _unit(new).T)
    expected = similarity / similarity.sum(axis=1, keepdims=True) @ there
    found = complement(torch.tensor(old), torch.tensor(new), torch.tensor(there))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.fixture
def uneven(tiny_source) -> TaskStream:  # type: ignore[no-untyped-def]
    stream = class_incremental(tiny_source, base=3, increment=2, order_seed=1)  # 3, 2 and 1 classes
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


def _expected_prototypes(method: EASE, stream: TaskStream) -> np.ndarray:
    """[C, t, d] from features of all subspaces."""
    parts = [extract_features(method.subspaces, task.train_eval) for task in stream]
    z = torch.cat([f for f, _ in parts]).double().numpy().reshape(-1, 3, 16)
    y = torch.cat([y for _, y in parts]).numpy()
    home = np.array([task.index for task in stream for _ in task.new_classes])
    means = np.stack([z[y == c].mean(axis=0) for c in range(6)])  # [C, t, d], also of what was not seen
    expected = np.where((np.arange(3)[None, :] <= home[:, None])[..., None], means, np.nan)
    for c in range(6):
        for t in range(home[c] + 1, 3):
            new = np.flatnonzero(home == t)
            s = np.exp(_unit(means[c, home[c]]) @ _unit(means[new, home[c]]).T)
            expected[c, t] = s / s.sum() @ means[new, t]
    return expected


def test_prototypes_are_means_or_their_complement(tiny_blocks: Make, uneven: TaskStream) -> None:
    method = _learned(tiny_blocks, uneven)
    expected = _expected_prototypes(method, uneven)
    subspaces = method.prototypes[3, :2].numpy()
    assert np.abs(subspaces[0] - subspaces[1]).max() > 1e-2, "the subspaces must differ"
    np.testing.assert_allclose(method.prototypes.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert method.home.tolist() == [0, 0, 0, 1, 1, 2]
    assert ((method.counts > 0) == (torch.arange(3) <= method.home[:, None])).all()


def test_bf16_rounds_features_and_not_the_complement(tiny_blocks: Make, uneven: TaskStream) -> None:
    method = EASE(tiny_blocks(), rank=4)
    run_stream(method, uneven, replace(PLAN, precision="bf16"))
    p = method.prototypes.double().numpy()
    s = np.exp(_unit(p[:3, 0]) @ _unit(p[3:5, 0]).T)
    np.testing.assert_allclose(p[:3, 1], s / s.sum(axis=1, keepdims=True) @ p[3:5, 1], rtol=1e-5, atol=1e-6)


def test_scores_are_weighted_cosines(tiny_blocks: Make, uneven: TaskStream) -> None:
    method = _learned(tiny_blocks, uneven, alpha=0.3).eval()
    x = torch.cat([x for task in uneven for x, _ in task.test.batches(100)])
    with torch.no_grad():
        z = method.subspaces(x).double().numpy().reshape(-1, 3, 16)
        found = method.predict(x).numpy()
    home, prototypes = [0, 0, 0, 1, 1, 2], method.prototypes.double().numpy()
    for c in range(6):
        cosines = [_unit(z[:, j]) @ _unit(prototypes[c, j]) for j in range(3)]
        expected = sum(cosines[j] * (1.0 if j == home[c] else 0.3) for j in range(3))
        np.testing.assert_allclose(found[:, c], expected, rtol=1e-4, atol=1e-5)


def test_old_subspaces_stay_as_they_were(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    torch.manual_seed(0)
    method = EASE(tiny_blocks(), rank=4, adapter_scale=1.0).eval()
    x = torch.cat([x for task in tiny_stream for x, _ in task.test.batches(100)])
    first = TaskStream(**{**vars(tiny_stream), "tasks": tiny_stream.tasks[:1]})
    run_stream(method, first, PLAN)
    with torch.no_grad():
        before = method.eval().subspaces(x)
    method.begin_task(tiny_stream[1])
    with torch.no_grad():
        after = method.eval().subspaces(x)
        plain = method.subspaces.backbone(x)
    assert torch.equal(after[:, :16], before)
    torch.testing.assert_close(after[:, 16:], plain, rtol=1e-5, atol=1e-5)  # new adapters add nothing yet
    trainable = {name.split(".")[2] for name, p in method.subspaces.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name, p in method.subspaces.named_parameters() if p.requires_grad} == {"1"}
    assert trainable == {"0", "1"}  # both blocks


def test_a_prediction_after_t_tasks_counts_t_passes(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _learned(tiny_blocks, tiny_stream).eval()
    x, _ = next(tiny_stream[0].test.batches(5))
    before = method.subspaces.backbone.passes
    method.predict(x)
    assert method.subspaces.backbone.passes - before == 3 * 5
    method.training_loss(*next(tiny_stream[2].train.batches(4)))
    assert method.subspaces.backbone.passes - before == 3 * 5 + 4


def test_state_between_tasks_is_adapters_and_prototypes(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _learned(tiny_blocks, tiny_stream)
    adapters = 3 * 2 * (2 * 16 * 4 + 4 + 16) * 4  # sets, blocks, numbers, bytes
    assert method.state_bytes == adapters + 6 * 3 * 16 * 4 + 6 * 3 * 8 + 6 * 8


def test_a_class_met_in_two_domains_has_one_mean_in_every_subspace(tiny_blocks: Make) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 3, 4)).astype(np.float32), np.tile([0, 1], 20)
    domains = np.repeat(["a", "b"], [30, 10])
    source = from_arrays(x, y, x, y, domains_train=domains, domains_test=domains, modality="array")
    stream = domain_incremental(source).with_transforms(ArrayTransform(), ArrayTransform())
    method = _learned(tiny_blocks, stream)
    parts = [extract_features(method.subspaces, task.train_eval) for task in stream]
    z, labels = torch.cat([f for f, _ in parts]), torch.cat([y for _, y in parts])
    for c in range(2):
        torch.testing.assert_close(method.prototypes[c, 0], z[labels == c, :16].mean(0), rtol=1e-4, atol=1e-5)
        second = parts[1][0][parts[1][1] == c, 16:].mean(0)  # the first domain never saw the second subspace
        torch.testing.assert_close(method.prototypes[c, 1], second, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused(tiny_backbone: Make, tiny_blocks: Make) -> None:
    with pytest.raises(ModelError, match="cannot be taken apart"):
        EASE(tiny_backbone())
    with pytest.raises(ConfigError, match="alpha must be a finite number"):
        EASE(tiny_blocks(), alpha=-0.1)
