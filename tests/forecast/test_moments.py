"""Forecasts from moments equal those from the data they are moments of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tangentcl
from tangentcl.data import ArrayTransform
from tangentcl.errors import DataError, ModelError
from tangentcl.forecast import SGD, AdamW, Dynamics, GradientDescent, GradientFlow, Ridge, forecast_linear
from tangentcl.forecast.from_moments import forecast_from_moments
from tangentcl.forecast.moment_forecast import MomentForecast, moment_forecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.forecast.problem import head_matrix, linear_problem
from tangentcl.nn import extract_features

Make = Callable[..., Any]  # of conftest.py
BATCHES = [[0, 3, 5], [1, 2, 2], [6, 4, 0]] * 6

RECIPES: dict[str, Dynamics] = {
    "ridge": Ridge(strength=0.7),
    "ridge at zero": Ridge(strength=0.7, centre="zero"),
    "flow": GradientFlow(time=2.0, weight_decay=0.1),
    "flow without end": GradientFlow(),
    "gradient descent": GradientDescent(lr=0.1, steps=20, loss="squared_error", momentum=0.8),
    "gradient descent, cross-entropy": GradientDescent(lr=0.1, steps=20, weight_decay=0.02),
    "SGD": SGD(lr=0.1, batches=BATCHES, momentum=0.9, nesterov=True),
    "AdamW": AdamW(lr=0.02, batches=BATCHES, weight_decay=0.1),
}


def _old(case: Any, n: int = 60) -> tuple[Tensor, Tensor]:
    """More old features than the case has, with labels of the old classes."""
    g = torch.Generator().manual_seed(5)
    features = torch.randn(n, case.features_old.shape[1], generator=g, dtype=torch.float64) + 0.4
    return features, torch.randint(3, (n,), generator=g)


def _moments(features: Tensor, labels: Tensor, sketch: str = "exact", k: int = 4, task: int = 0) -> TaskMoments:
    moments = TaskMoments.empty(features.shape[1], sketch=sketch, k=k, task=task, name=f"task {task}")
    for x, y in zip(features.split(7), labels.split(7)):
        moments.add(x, y)
    return moments


def _from_moments(case: Any, moments: list[TaskMoments], dynamics: Dynamics) -> MomentForecast:
    problem = linear_problem(case.features_new, case.head.weight, case.head.bias, case.labels, case.columns)
    change = dynamics.displacement(problem).weight
    return moment_forecast(moments, change, head_matrix(case.head.weight, case.head.bias), seen=3)


def _from_data(case: Any, features: Tensor, labels: Tensor, dynamics: Dynamics) -> Any:
    return forecast_linear(
        features, case.head, case.features_new, case.labels, dynamics, columns=case.columns, seen=3, labels_old=labels
    )


def _relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("masked", [False, True], ids=["all outputs", "new outputs"])
@pytest.mark.parametrize("n, bias", [(20, True), (20, False), (7, True)])
@pytest.mark.parametrize("name", RECIPES)
def test_exact_moments_give_the_energy_of_the_data(
    make_case: Make, name: str, n: int, bias: bool, masked: bool
) -> None:
    case = make_case(n, bias, masked)
    features, labels = _old(case)
    found = _from_moments(case, [_moments(features, labels)], RECIPES[name])
    true = _from_data(case, features, labels, RECIPES[name])
    assert found.exact
    assert _relative(found.energy[0], true.drift.square().sum(dim=0)) < 1e-9
    assert _relative(found.mean_square, true.drift.square().mean(dim=0)) < 1e-9
    assert found.rms == pytest.approx(float(true.drift.square().mean().sqrt()), rel=1e-9)
    now, after = found.class_outputs
    for label in range(3):
        assert _relative(now[label], true.outputs[labels == label].mean(dim=0)) < 1e-9
        assert _relative(after[label], true.after[labels == label].mean(dim=0)) < 1e-9


def test_the_energy_is_that_of_really_training(make_case: Make) -> None:
    case = make_case(20)
    features, labels = _old(case)
    head = case.copy_of_head()
    before = head(features).detach()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02, weight_decay=0.1)
    for batch in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(head(case.features_new[batch]), case.labels[batch]).backward()
        optimizer.step()
    true = (head(features).detach() - before).square().sum(dim=0)
    found = _from_moments(case, [_moments(features, labels)], RECIPES["AdamW"])
    assert _relative(found.energy[0], true) < 1e-9


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_old", [60, 9])
def test_eigenspaces_without_data_are_those_of_the_data(make_case: Make, bias: bool, n_old: int) -> None:
    case = make_case(20, bias)
    features, labels = _old(case, n_old)
    found = _from_moments(case, [_moments(features, labels)], RECIPES["SGD"]).vulnerability
    true = _from_data(case, features, labels, RECIPES["SGD"]).vulnerability
    assert found.total == pytest.approx(true.total, rel=1e-9)
    assert _relative(found.values, true.values) < 1e-9
    assert _relative(found.energy, true.energy) < 1e-8
    assert torch.equal(found.multiplicity, true.multiplicity)
    assert [found.rank(s) for s in (0.9, 0.99)] == [true.rank(s) for s in (0.9, 0.99)]


@pytest.mark.parametrize("sketch", ["low_rank_diagonal", "frequent_directions"])
@pytest.mark.parametrize("k", [2, 6, 13])
def test_sketches_bound_the_energy_and_say_so(make_case: Make, sketch: str, k: int) -> None:
    case = make_case(20)
    features, labels = _old(case)
    found = _from_moments(case, [_moments(features, labels, sketch, k)], RECIPES["AdamW"])
    true = _from_data(case, features, labels, RECIPES["AdamW"]).drift.square().sum(dim=0)
    assert bool((found.low[0] <= true * (1 + 1e-9)).all())
    assert bool((true <= found.high[0] * (1 + 1e-9)).all())
    if k == 13:  # as many as there are features
        assert found.exact
        assert _relative(found.energy[0], true) < 1e-9
    else:
        assert not found.exact
        assert f"{sketch} (k = {k})" in found.notes[0]
        assert _relative(found.energy[0], true) > 1e-6


def test_tasks_are_forecast_together_and_one_by_one(make_case: Make) -> None:
    case = make_case(20)
    features, labels = _old(case)
    cut = [0, 11, 40, 60]
    parts = [(features[a:b], labels[a:b]) for a, b in itertools.pairwise(cut)]
    tasks = [_moments(*part, task=i) for i, part in enumerate(parts)]
    found = _from_moments(case, tasks, RECIPES["SGD"])
    whole = _from_moments(case, [_moments(features, labels)], RECIPES["SGD"])
    true = _from_data(case, features, labels, RECIPES["SGD"])
    assert found.n.tolist() == [11, 29, 20]
    for i, (x, _) in enumerate(parts):
        drift = true.drift[cut[i] : cut[i] + len(x)]
        assert float(found.task_rms[i]) == pytest.approx(float(drift.square().mean().sqrt()), rel=1e-9)
    assert _relative(found.mean_square, whole.mean_square) < 1e-12
    assert torch.allclose(found.class_outputs[1], whole.class_outputs[1], rtol=1e-12)
    assert torch.allclose(found.vulnerability.energy, whole.vulnerability.energy, rtol=1e-8, atol=1e-12)
    merged = tasks[2]
    merged.merge(tasks[0])
    merged.merge(tasks[1])
    assert merged.n == 60
    assert torch.equal(merged.classes, whole.moments[0].classes)
    assert torch.equal(merged.counts, torch.bincount(labels))
    assert torch.allclose(merged.means, whole.moments[0].means, rtol=1e-12)
    assert torch.allclose(merged.features.matrix(), whole.moments[0].features.matrix(), rtol=1e-12)


def _clusters(n: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Normal features around the means of three classes, all with one covariance that is not round."""
    g = torch.Generator().manual_seed(seed)
    means = 2.0 * torch.eye(3, 12, dtype=torch.float64)
    shape = torch.diag(torch.linspace(0.2, 1.8, 12, dtype=torch.float64))
    labels = torch.arange(n) % 3
    return means[labels] + noise * torch.randn(n, 12, generator=g, dtype=torch.float64) @ shape, labels


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_accuracy_of_normal_features_is_that_of_fresh_samples(make_case: Make, noise: float) -> None:
    case = make_case(20)
    with torch.no_grad():
        case.head.weight[:3] = torch.eye(3, 12)
        case.head.bias.zero_()
    moments = _moments(*_clusters(3000, noise, seed=1))
    features, labels = _clusters(30_000, noise, seed=2)
    dynamics = SGD(lr=0.3, batches=BATCHES)
    found, true = _from_moments(case, [moments], dynamics), _from_data(case, features, labels, dynamics)
    assert found.accuracy() == pytest.approx(true.accuracy(), abs=0.02)
    classes, *pair = true.per_class()
    assert torch.equal(found.per_class()[0], classes)
    for mine, theirs in zip(found.per_class()[1:], pair):
        assert torch.allclose(mine, theirs, atol=0.04)
    now, after = true.accuracy()
    assert now - after > 0.05
    assert [float(part[0]) for part in found.per_task()] == pytest.approx(found.accuracy())
    summary = found.to_dict()
    assert summary["estimated_accuracy"]["after"] == found.accuracy()[1]
    assert summary["tasks"][0]["n"] == 3000


def test_one_sample_per_class_and_constant_features(make_case: Make) -> None:
    case = make_case(20)
    features = torch.full((3, 12), 0.5, dtype=torch.float64)
    for kind in ("exact", "low_rank_diagonal", "frequent_directions"):
        found = _from_moments(case, [_moments(features, torch.arange(3), kind)], RECIPES["SGD"])
        true = _from_data(case, features, torch.arange(3), RECIPES["SGD"])
        assert found.exact
        assert _relative(found.energy[0], true.drift.square().sum(dim=0)) < 1e-9
        assert found.accuracy() == pytest.approx(true.accuracy(), abs=1e-12)
        assert found.vulnerable_rank(1.0) == 1


def test_nothing_moves_without_a_change(make_case: Make) -> None:
    case = make_case(20)
    found = _from_moments(case, [_moments(*_old(case))], GradientDescent(lr=0.1, steps=0))
    assert found.rms == 0.0
    assert found.vulnerable_rank() == 0
    assert found.per_class()[1].shape == (3,)


def test_restored_moments_are_the_same() -> None:
    features, labels = _clusters(50, 1.0, seed=3)
    moments = _moments(features, labels, "low_rank_diagonal", task=3)
    again = TaskMoments.restored(moments.header, moments.tensors())
    assert (again.task, again.name, again.n) == (3, "task 3", 50)
    assert again.header == moments.header
    assert all(torch.equal(value, moments.tensors()[key]) for key, value in again.tensors().items())


def test_what_does_not_fit_is_refused() -> None:
    features, labels = _clusters(50, 1.0, seed=3)
    moments = _moments(features, labels)
    head = torch.zeros(13, 5)
    with pytest.raises(DataError, match="at least one old task"):
        moment_forecast([], head, head)
    with pytest.raises(DataError, match="at least one sample"):
        moment_forecast([TaskMoments.empty(12)], head, head)
    with pytest.raises(DataError, match="of one shape"):
        moment_forecast([moments], head, head[:5])
    with pytest.raises(DataError, match="do not fit a head of 9 rows"):
        moment_forecast([moments], head[:9], head[:9])
    with pytest.raises(DataError, match="old classes go to 2"):
        moment_forecast([moments], head, head, seen=2)
    with pytest.raises(DataError, match=r"expected features \[m, 12\]"):
        moments.add(features[:, :3], labels)
    with pytest.raises(DataError, match="must be finite"):
        moments.add(features * torch.nan, labels)
    with pytest.raises(DataError, match="only sketches of one kind"):
        moments.merge(_moments(features, labels, "frequent_directions"))
    header, tensors = moments.header, moments.tensors()
    for key in ("sums", "classes", "features/triangle"):
        with pytest.raises(DataError):
            TaskMoments.restored(header, {k: v for k, v in tensors.items() if k != key})
    with pytest.raises(DataError, match="class sums"):
        TaskMoments.restored(header, {**tensors, "sums": tensors["sums"][:1]})
    with pytest.raises(DataError, match="format 9"):
        TaskMoments.restored({**header, "format": 9}, tensors)


def test_a_head_without_bias_ignores_the_constant() -> None:
    features, labels = _clusters(40, 1.0, seed=4)
    head = nn.Linear(12, 3, bias=False).double()
    change = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()
    found = moment_forecast([_moments(features, labels)], change, head_matrix(head.weight, None))
    assert _relative(found.energy[0], (features @ change).square().sum(dim=0)) < 1e-12


@pytest.mark.parametrize("logits", ["all", "current"])
def test_a_method_is_forecast_from_what_its_first_task_left(logits: Any) -> None:
    torch.manual_seed(0)
    stream = tangentcl.class_incremental(tangentcl.load("digits"), n_tasks=5, train_per_class=20, test_per_class=5)
    stream = stream.with_transforms(ArrayTransform(), ArrayTransform())
    pixels = tangentcl.from_module(nn.Flatten(), lambda m, x: m(x.float() / 255), 64, name="pixels", modality="array")
    method = tangentcl.Finetune(pixels, tune="head", logits=logits)
    method.begin_task(stream[0])
    moments = TaskMoments.empty(64, sketch="exact")
    moments.add(*extract_features(pixels, stream[0].train))
    method.begin_task(stream[1])
    recipe = AdamW(lr=0.02, batches=BATCHES, weight_decay=0.0)
    found = forecast_from_moments([moments], method, stream[1], recipe)
    true = tangentcl.forecast_forgetting(method, stream[0].train, stream[1], recipe)
    assert found.exact
    assert found.seen == true.seen == 2
    assert found.rms == pytest.approx(float(true.drift.square().mean().sqrt()), rel=1e-5)
    if logits == "current":
        assert float(found.mean_square[:2].sum()) == 0.0
    with pytest.raises(ModelError, match="recipe minimises squared_error"):
        forecast_from_moments([moments], method, stream[1], Ridge(strength=1.0))
    with pytest.raises(DataError, match="moments of 12 features do not fit a head of 65 rows"):
        forecast_from_moments([_moments(*_clusters(9, 1.0, seed=0))], method, stream[1], recipe)


def test_random_views_of_the_new_samples_are_told() -> None:
    stream = tangentcl.class_incremental(tangentcl.load("digits"), n_tasks=5, train_per_class=20, test_per_class=5)
    stream = stream.with_transforms(Jitter(), ArrayTransform())
    pixels = tangentcl.from_module(nn.Flatten(), lambda m, x: m(x.float() / 255), 64, name="pixels", modality="array")
    moments = TaskMoments.empty(64, sketch="exact")
    moments.add(*extract_features(pixels, stream[0].train_eval))
    method = tangentcl.Finetune(pixels, tune="head")
    for task in stream.tasks[:2]:
        method.begin_task(task)
    found = forecast_from_moments([moments], method, stream[1], SGD(lr=0.1, batches=BATCHES))
    assert not found.exact
    assert "random views" in found.notes[0]


class Jitter(ArrayTransform):
    """Adds noise where a generator is given."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Any:
        item = super().__call__(raw, rng)
        return item if rng is None else item + float(rng.normal())
