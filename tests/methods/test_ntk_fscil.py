"""The base session's terms, what is frozen after it, and forecasts of a session before it is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tangentcl.data import ArrayTransform, Source, TaskStream, few_shot
from tangentcl.errors import ConfigError, ModelError
from tangentcl.heads import ClassMeans, RidgeHead
from tangentcl.methods import NTKFSCIL
from tangentcl.nn import Backbone, PrototypeHead, extract_features
from tangentcl.training import Runtime, TrainingPlan, run_stream
from tangentcl.training.stream import ignore, learn_task

Make = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.01, device="cpu", seed=3)


@pytest.fixture
def sessions(tiny_source: Source) -> TaskStream:
    """Four base classes, then two sessions of 1-way 3-shot."""
    stream = few_shot(tiny_source, base_classes=4, n_way=1, k_shot=3)
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


def _learned(method: NTKFSCIL, stream: TaskStream, n_tasks: int) -> NTKFSCIL:
    for task in [stream[i] for i in range(n_tasks)]:
        learn_task(method, task, PLAN, Runtime(device="cpu"), ignore)
    return method.eval()


@pytest.mark.parametrize(
    "settings",
    [{}, {"head": "prototypes"}, {"strength": "holdout"}, {"strength": 0.01, "balanced": False}],
    ids=["ridge by GCV", "prototypes", "ridge by holdout", "ridge of fixed strength"],
)
def test_a_forecast_of_a_session_equals_what_happens(
    settings: dict[str, Any], tiny_backbone: Make, sessions: TaskStream
) -> None:
    method = _learned(NTKFSCIL(tiny_backbone(), rank=2, n_units=48, **settings), sessions, 1)
    old = sessions[0].test
    x, y = next(old.batches(100))
    with torch.no_grad():
        before = method.predict(x)
    forecast = method.forecast_session(old, sessions[1])
    assert forecast.outputs.shape == (len(old), 5)
    torch.testing.assert_close(forecast.outputs[:, :4], before)
    with torch.no_grad():
        torch.testing.assert_close(method.predict(x), before)  # nothing was learned
    learn_task(method, sessions[1], PLAN, Runtime(device="cpu"), ignore)
    with torch.no_grad():
        after = method.eval().predict(x)
    torch.testing.assert_close(forecast.outputs + forecast.drift, after)
    now, later = forecast.accuracy(y, known=4)
    assert now == pytest.approx(float((before.argmax(1) == y).double().mean()))
    assert later == pytest.approx(float((after.argmax(1) == y).double().mean()))


def test_the_posterior_gives_the_same_drift_at_the_present_strength(tiny_backbone: Make, sessions: TaskStream) -> None:
    method = _learned(NTKFSCIL(tiny_backbone(), rank=2, n_units=48, strength=0.01, balanced=False), sessions, 1)
    head = method.head
    assert isinstance(head, RidgeHead)
    strength = head.strength.value
    old, _ = extract_features(method.backbone, sessions[0].test)
    new, labels = extract_features(method.backbone, sessions[1].train_eval)
    drift, _ = head.update_drift(old, new, labels)
    everything = head.fitted
    before = head.lifted(old).double() @ everything.weights(strength)
    head.fit_task(new, labels)
    after = head.lifted(old).double() @ head.fitted.weights(strength)
    torch.testing.assert_close(drift, after - F.pad(before, (0, 1)), rtol=1e-6, atol=1e-7)


def test_forecasts_out_of_turn_are_refused(tiny_backbone: Make, sessions: TaskStream) -> None:
    method = NTKFSCIL(tiny_backbone(), rank=2, n_units=16)
    with pytest.raises(ModelError, match="base session comes first"):
        method.forecast_session(sessions[0].test, sessions[1])
    _learned(method, sessions, 2)
    with pytest.raises(ModelError, match="learned already"):
        method.forecast_session(sessions[0].test, sessions[1])


def test_uncertainty_is_small_where_samples_were_seen_and_falls_with_more(
    tiny_backbone: Make, sessions: TaskStream
) -> None:
    method = _learned(NTKFSCIL(tiny_backbone(), n_units=200, first_session="off", strength=0.01), sessions, 1)
    base, _ = next(sessions[0].test.batches(100))
    novel, _ = next(sessions[1].test.batches(100))
    variance = method.uncertainty(torch.cat([base, novel]))
    assert variance.shape == (len(base) + len(novel),)
    assert bool((variance > 0).all())
    head = method.head
    assert isinstance(head, RidgeHead)
    h = head.lifted(method.backbone(base)).double()
    gram = head.fitted.rows.double().T @ head.fitted.rows.double() if not head.fitted.is_dense else head.fitted.gram
    inverse = torch.linalg.inv(gram + head.strength.value * torch.eye(200, dtype=torch.float64))
    torch.testing.assert_close(variance[: len(base)], (h @ inverse * h).sum(1), rtol=1e-5, atol=1e-8)
    assert float(variance[len(base) :].mean()) > float(variance[: len(base)].mean())
    with pytest.raises(ModelError, match="head='ridge'"):
        NTKFSCIL(tiny_backbone(), head="prototypes", first_session="off").uncertainty(base)


def test_named_terms_of_the_base_session_and_none_after_it(tiny_backbone: Make, sessions: TaskStream) -> None:
    settings: dict[str, Any] = {"rank": 2, "n_units": 32, "fused_weight": 0.5, "spectrum": "orthogonality"}
    method = NTKFSCIL(tiny_backbone(), **settings)
    method.begin_task(sessions[0])
    x, y = next(sessions[0].train.subset(range(0, len(sessions[0].train), 5)).batches(16))
    terms = method.training_loss(x, y)
    assert set(terms) == {"cross_entropy", "fused", "spectrum"}
    assert all(bool(term.isfinite()) and term.item() > 0 for term in terms.values())
    assert len(method.penalised) == 2  # A of query and of value
    torch.stack(list(terms.values())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)
    one_class = method.training_loss(x[y == y[0]], y[y == y[0]])
    assert one_class["fused"].item() == 0.0
    method.end_task(sessions[0])
    method.begin_task(sessions[1])
    assert method.training_loss(x, y) == {}
    assert not any(p.requires_grad for p in method.parameters())


def test_cross_entropy_is_that_of_cosines_over_the_lift(tiny_backbone: Make, sessions: TaskStream) -> None:
    method = NTKFSCIL(tiny_backbone(), rank=2, n_units=32, scale=7.0)
    method.begin_task(sessions[0])
    x, y = next(sessions[0].train.batches(9))
    head = method.head
    assert isinstance(head, RidgeHead)
    classifier = next(p for p in method.session.parameters())  # type: ignore[union-attr]
    rows = torch.relu(method.backbone(x) @ head.lift.projection)
    logits = 7.0 * F.normalize(rows, dim=1) @ F.normalize(classifier, dim=1).T
    torch.testing.assert_close(method.training_loss(x, y)["cross_entropy"], F.cross_entropy(logits, y))


def test_images_are_fused_before_the_backbone(pixel_backbone: Callable[..., Backbone]) -> None:
    seen: list[torch.Size] = []
    backbone = pixel_backbone()
    method = NTKFSCIL(backbone, n_units=16, first_session="off")
    method.fused_weight = 1.0  # the backbone has nothing for LoRA
    method.n_base, method.session = 3, torch.nn.Linear(backbone.width, 6)
    handle = backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    terms = method.training_loss(torch.rand(12, 3, 8, 8), torch.arange(12) % 3)
    handle.remove()
    assert len(seen) == 2
    assert seen[1][1:] == seen[0][1:]
    assert bool(terms["fused"].isfinite())


def test_class_means_are_those_of_the_prototype_head_and_unlearn() -> None:
    features, labels = torch.randn(30, 5), torch.arange(30) % 3
    head = ClassMeans(5).fit_task(features, labels)
    reference = PrototypeHead(5)
    reference.grow(3)
    reference.update(features, labels)
    torch.testing.assert_close(head.predict(features), reference(features))
    more = torch.randn(4, 5)
    head.fit_task(more, torch.tensor([0, 1, 2, 3]))
    head.forget(more, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(head.predict(features)[:, :3], reference(features))
    left, right = ClassMeans(5).fit_task(features[:9], labels[:9]), ClassMeans(5).fit_task(features[9:], labels[9:])
    torch.testing.assert_close(left.merge(right).predict(features), reference(features))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "prototype"}, "Did you mean 'prototypes'"),
        ({"spectrum": "orthogonal"}, "Did you mean 'orthogonality'"),
        ({"first_session": "full"}, "first_session must be one of"),
        ({"first_session": "off", "fused_weight": 1.0}, "act in the base session"),
        ({"fused_weight": -1.0}, "fused_weight must be"),
        ({"scale": 0.0}, "scale must be"),
        ({"n_virtual": 0}, "n_virtual must be"),
        ({"strength": "gvc"}, "Did you mean 'gcv'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str, tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        NTKFSCIL(tiny_backbone(), **settings)


@pytest.mark.parametrize("head", ["ridge", "prototypes"])
def test_a_few_shot_stream_from_end_to_end(head: Any, tiny_backbone: Make, sessions: TaskStream) -> None:
    result = run_stream(NTKFSCIL(tiny_backbone(), head=head, rank=2, n_units=100), sessions, PLAN)
    assert result.scenario == "few_shot"
    assert np.isfinite(result.matrix[2]).all()
    assert result.matrix[2].mean() > 0.6  # chance is one sixth
