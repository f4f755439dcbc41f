"""Nearest class mean against scikit-learn and against means taken over all data at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tangentcl.data import ArrayTransform, Source, TaskStream, class_incremental, domain_incremental, from_arrays
from tangentcl.methods import NCM
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import TrainingPlan, run_stream

PLAN = TrainingPlan(device="cpu")


def _all(method: NCM, stream: TaskStream, split: str) -> tuple[np.ndarray, np.ndarray]:
    parts = [extract_features(method.backbone, getattr(task, split)) for task in stream]
    return torch.cat([f for f, _ in parts]).numpy(), torch.cat([y for _, y in parts]).numpy()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_predictions_equal_those_from_means_over_all_data(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, metric: str
) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    method = NCM(tiny_backbone(), metric=metric)  # type: ignore[arg-type]
    result = run_stream(method, tiny_stream, PLAN)
    features, labels = _all(method, tiny_stream, "train_eval")
    x, y = _all(method, tiny_stream, "test")
    if metric == "euclidean":
        expected = neighbors.NearestCentroid().fit(features, labels).predict(x)
    else:
        means = np.stack([features[labels == c].mean(axis=0) for c in range(6)])
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        expected = (x @ unit.T).argmax(axis=1)
    found = np.concatenate([result.predictions[2][k] for k in range(3)])
    np.testing.assert_array_equal(found, expected)
    assert result.matrix[2].mean() == pytest.approx((expected == y).mean())


def test_the_order_of_tasks_does_not_matter(tiny_backbone: Callable[[], Backbone], tiny_source: Source) -> None:
    prototypes = []
    for seed in (None, 1):
        stream = class_incremental(tiny_source, n_tasks=3, order_seed=seed)
        method = NCM(tiny_backbone())
        run_stream(method, stream.with_transforms(ArrayTransform(), ArrayTransform()), PLAN)
        prototypes.append(method.head.prototypes[np.argsort(stream.class_order)])
    torch.testing.assert_close(prototypes[0], prototypes[1], rtol=1e-12, atol=1e-12)


def test_a_class_met_in_two_domains_has_one_mean(tiny_backbone: Callable[[], Backbone]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 3, 4)).astype(np.float32), np.tile([0, 1], 20)
    domains = np.repeat(["a", "b"], 20)
    source = from_arrays(x, y, x, y, domains_train=domains, domains_test=domains, modality="array")
    stream = domain_incremental(source).with_transforms(ArrayTransform(), ArrayTransform())
    method = NCM(tiny_backbone())
    result = run_stream(method, stream, PLAN)
    features, labels = _all(method, stream, "train_eval")
    expected = np.stack([features[labels == c].mean(axis=0, dtype=np.float64) for c in range(2)])
    np.testing.assert_allclose(method.head.prototypes.numpy(), expected, rtol=1e-9)
    assert np.isfinite(result.matrix).all()  # all classes are known from the start, so every domain is evaluated
