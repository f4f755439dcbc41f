"""The theory report inside a stream: against data it does not keep, and without a trace in what is learned."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tangentcl.data import Samples, Task, TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import NCM, Finetune, Joint, Method, Replay
from tangentcl.nn import Backbone, extract_features
from tangentcl.training import Stage, StageTheory, StreamResult, TheoryOptions, TheoryReport, TrainingPlan, run_stream

MakeBackbone = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=3, batch_size=8, lr=5e-3, head_lr=2e-2, weight_decay=0.01, device="cpu")


def _made(cls: type[Method], make: MakeBackbone, **keywords: Any) -> Method:
    torch.manual_seed(0)
    return cls(make(), **keywords)  # type: ignore[call-arg]


def _run(method: Method, stream: TaskStream, plan: TrainingPlan = PLAN, **options: Any) -> list[StageTheory]:
    report = TheoryReport(TheoryOptions(**options))
    run_stream(method, stream, plan, watchers=[report])
    assert [found.reason for found in report.made] == [None] * len(report.made)
    return report.made


class OldOutputs:
    """Scores of past tasks' training samples before and after each task, from the data themselves."""

    def __init__(self) -> None:
        self.past: list[Task] = []
        self.energies: list[list[float]] = []
        self._start: list[Tensor] = []

    def before(self, stage: Stage) -> None:
        self._start = [self._scores(stage.method, task) for task in self.past]

    def after(self, stage: Stage) -> None:
        now = [self._scores(stage.method, task) for task in self.past]
        self.energies.append([float((b - a).square().sum()) for a, b in zip(self._start, now)])
        self.past.append(stage.task)

    @torch.no_grad()
    def _scores(self, method: Method, task: Task) -> Tensor:
        method.eval()
        return torch.cat([method.predict(x) for x, _ in task.train_eval.batches(64)]).double()


def test_interplay_of_a_linear_head_is_the_real_drift_of_data_that_were_not_kept(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    report, truth = TheoryReport(), OldOutputs()
    run_stream(_made(Finetune, tiny_backbone, tune="head"), tiny_stream, PLAN, watchers=[report, truth])
    for found, energies in zip(report.made, truth.energies, strict=True):
        assert found.after is not None
        assert [row["interplay"] for row in found.after["past"]] == pytest.approx(energies, rel=1e-4)
        assert found.after["radius"]["head"] == pytest.approx(found.after["radius"]["all"], rel=1e-6)
        assert found.after["laziness"]["light"] == "green"
        assert found.after["laziness"]["linearisation_error"] < 1e-4
    assert len(truth.energies[2]) == 2
    assert min(truth.energies[2]) > 1.0


def test_the_theorys_own_head_is_the_ridge_over_all_tasks(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    made = _run(_made(NCM, tiny_backbone), tiny_stream, ridge=0.7)
    backbone, C = tiny_backbone(), 6
    head = torch.zeros(17, C, dtype=torch.float64)
    seen: list[Tensor] = []
    for task, found in zip(tiny_stream, made, strict=True):
        h, y = extract_features(backbone, task.train_eval)
        phi = torch.cat([h.double(), torch.ones(len(h), 1)], dim=1)
        dual = torch.linalg.solve(
            phi @ phi.T + 0.7 * torch.eye(len(phi), dtype=torch.float64), nn.functional.one_hot(y, C) - phi @ head
        )
        before = found.before
        assert before is not None
        assert before["ridge"] == 0.7
        assert before["radius"] == pytest.approx(float((phi.T @ dual).norm()), rel=1e-8)
        for row, old in zip(before["past"], seen, strict=True):
            drift = old @ phi.T @ dual
            assert row["interplay"] == pytest.approx(float(drift.square().sum()), rel=1e-8)
            overlap = (old[:, :-1] @ phi[:, :-1].T).square().sum()
            norms = [(x[:, :-1] @ x[:, :-1].T).norm() for x in (old, phi)]
            assert row["overlap"] == pytest.approx(float(overlap / (norms[0] * norms[1])), rel=1e-8)
            trace = float(old.square().sum())
            assert row["rademacher"] == pytest.approx(before["radius"] / len(old) * trace**0.5, rel=1e-8)
        head = head + phi.T @ dual
        seen.append(phi)


def test_of_past_tasks_nothing_is_kept_but_moments(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    report = TheoryReport()
    run_stream(_made(Finetune, tiny_backbone, tune="lora", rank=2), tiny_stream, PLAN, watchers=[report])
    assert report._look is None
    kept: list[Any] = list(report._past)
    tensors: list[Tensor] = []
    while kept:
        item = kept.pop()
        assert not isinstance(item, Samples | nn.Module)
        if isinstance(item, Tensor):
            tensors.append(item)
        else:
            inside = vars(item).values() if hasattr(item, "__dict__") else item if isinstance(item, list) else ()
            kept += [*inside, *(item.values() if isinstance(item, dict) else ())]
    assert len(tensors) > 3
    assert all(len(t) != 40 for t in tensors)  # samples of a task; features have 16 numbers


def test_the_light_turns_where_training_leaves_the_theory(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    lights = []
    for lr in (1e-5, 0.1):
        plan = TrainingPlan(epochs=6, batch_size=8, lr=lr, device="cpu")
        made = _run(_made(Finetune, tiny_backbone, tune="lora", rank=2), tiny_stream, plan, probe=20)
        assert made[1].after is not None
        lights.append(made[1].after["laziness"]["light"])
        own = min(row["cosine"] for row in made[1].after["staleness"]["own"])
        old = min(row["cosine"] for row in made[1].after["staleness"]["old"])
        assert (own > 0.999, old > 0.999) == (lr < 1e-3,) * 2
    assert lights == ["green", "red"]


def test_views_that_are_the_same_are_one_and_a_methods_own_views_are_taken(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    (first, *_) = _run(_made(NCM, tiny_backbone), tiny_stream)
    assert first.before is not None
    assert first.before["views"]["times"] == pytest.approx(1.0)

    class Views(NCM):
        def feature_views(self, x: Any) -> dict[str, Tensor]:
            h = self.backbone(x)
            return {"as it is": h, "noisy": h + torch.randn(h.shape)}

    (first, *_) = _run(_made(Views, tiny_backbone), tiny_stream)
    assert first.before is not None
    assert first.before["views"]["kind"] == "the method's own features of a sample"
    assert 1.0 < first.before["views"]["times"] <= 2.0


def test_an_anchor_is_measured_where_there_is_one(tiny_backbone: MakeBackbone, tiny_stream: TaskStream) -> None:
    class Anchored(Finetune):
        anchor_weight, anchors = 1e-3, ()

    made = _run(_made(Finetune, tiny_backbone, tune="head"), tiny_stream)
    anchored = _run(_made(Anchored, tiny_backbone, tune="head"), tiny_stream)
    assert made[0].after is not None
    assert anchored[0].after is not None
    assert made[0].after["anchor"] is None
    assert anchored[0].after["anchor"]["efficiency"] == pytest.approx(2e-3 / (2e-3 + 0.01))


def test_a_sketch_keeps_bounds_and_few_samples_keep_their_share(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    made = _run(_made(NCM, tiny_backbone), tiny_stream, sketch="low_rank_diagonal", k=3, samples=10)
    assert made[2].before is not None
    assert (made[2].before["n"], made[2].before["n_available"]) == (10, 40)
    for row in made[2].before["past"]:
        assert row["interplay_low"] <= row["interplay"] <= row["interplay_high"]


def test_a_method_without_features_is_refused_and_the_run_goes_on(tiny_stream: TaskStream) -> None:
    class Blind(Method):
        def begin_task(self, task: Task) -> None:
            self.n_seen = task.n_seen

        def training_loss(self, x: Any, y: Tensor) -> dict[str, Tensor]:
            return {}

        def end_task(self, task: Task) -> None: ...

        def predict(self, x: Any) -> Tensor:
            return torch.zeros(len(x), self.n_seen)

    report = TheoryReport()
    run_stream(Blind(), tiny_stream, PLAN, watchers=[report])
    assert [found.reason for found in report.made] == ["Blind has no backbone, so nobody knows its features"] * 3


@pytest.mark.parametrize(
    "wrong", [{"samples": 1}, {"probe": 2.5}, {"ridge": 0.0}, {"sketch": "all"}, {"energy": 1.5}, {"views": 1}]
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"theory.{next(iter(wrong))}"):
        TheoryOptions(**wrong)


class Restless(Finetune):
    """Draws from every global generator in its loss."""

    def training_loss(self, x: Any, y: Tensor) -> dict[str, Tensor]:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        terms = super().training_loss(x, y)
        return {"cross_entropy": terms["cross_entropy"] * (1 + 0.1 * noise)} if self.training else terms


@pytest.mark.parametrize(
    ("cls", "keywords"),
    [
        (Restless, {"tune": "head"}),
        (Finetune, {"tune": "lora", "rank": 2, "dropout": 0.3}),
        (Finetune, {"tune": "full"}),
        (Replay, {"tune": "head", "budget": 8}),
        (NCM, {}),
        (Joint, {"tune": "head"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value.get("tune", "")),
)
def test_what_is_learned_does_not_depend_on_being_looked_at(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream, cls: type[Method], keywords: dict[str, Any]
) -> None:
    def learned(watched: bool) -> tuple[StreamResult, dict[str, Tensor], list[float]]:
        random.seed(0), np.random.seed(0)
        method = _made(cls, tiny_backbone, **keywords)
        report = TheoryReport(TheoryOptions(samples=20, probe=8))
        result = run_stream(method, tiny_stream, PLAN, watchers=[report] if watched else [])
        assert all(p.grad is None for p in method.parameters())
        assert all(found.reason is None for found in report.made)
        assert bool(report.made) == watched
        state = {key: value for key, value in method.state_dict().items() if isinstance(value, Tensor)}
        return result, state, [random.random(), float(np.random.rand()), float(torch.rand(()))]

    (result, state, drawn), (expected, other, redrawn) = learned(True), learned(False)
    np.testing.assert_array_equal(result.matrix, expected.matrix)
    assert drawn == redrawn
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_the_certificate_of_a_linear_head_is_exact_and_that_of_more_is_drawn(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    learned = _made(Finetune, tiny_backbone, tune="head")
    starts: list[Tensor] = []

    class Starts:
        def before(self, stage: Stage) -> None:
            starts.append(torch.cat([p.detach().flatten() for p in stage.method.parameters() if p.requires_grad]))

        def after(self, stage: Stage) -> None: ...

    report = TheoryReport()
    run_stream(learned, tiny_stream, PLAN, watchers=[report, Starts()])
    last = report.made[-1].after
    assert last is not None
    found = last["certificate"]
    task = list(tiny_stream)[-1]
    h, y = extract_features(tiny_backbone(), task.train_eval)
    now = torch.cat([p.detach().flatten() for p in learned.parameters() if p.requires_grad])
    assert found["kl"] == pytest.approx(float((now - starts[-1]).square().sum()) / (2 * found["sigma"] ** 2), rel=1e-5)
    assert (found["n"], found["draws"]) == (len(y), 0)
    generator = torch.Generator().manual_seed(0)
    wrong = []
    with torch.no_grad():
        weight, bias = learned.head.weight, learned.head.bias  # type: ignore[union-attr]
        for _ in range(2000):
            noise = [found["sigma"] * torch.randn(p.shape, generator=generator) for p in (weight, bias)]
            wrong.append(((h @ (weight + noise[0]).T + bias + noise[1]).argmax(dim=1) != y).double().mean())
    assert found["error"] == pytest.approx(float(torch.stack(wrong).mean()), abs=0.02)

    made = _run(_made(Finetune, tiny_backbone, tune="lora", rank=2), tiny_stream)
    assert made[0].after is not None
    assert made[0].after["certificate"] is None
    assert "theory.draws is 0" in made[0].after["no_certificate"]
    made = _run(_made(Finetune, tiny_backbone, tune="lora", rank=2), tiny_stream, draws=10)
    for one in made:
        assert one.after is not None
        found = one.after["certificate"]
        assert found["draws"] == 10
        assert found["measured"] <= found["error"]
        assert found["kl"] == pytest.approx(one.after["radius"]["all"] ** 2 / (2 * found["sigma"] ** 2), rel=1e-9)


def test_no_certificate_where_predictions_know_the_task_by_more_than_what_trains(
    tiny_backbone: MakeBackbone, tiny_stream: TaskStream
) -> None:
    class Counting(Finetune):
        def __init__(self, backbone: Backbone) -> None:
            super().__init__(backbone, tune="head")
            self.register_buffer("prior", torch.zeros(6))

        def end_task(self, task: Task) -> None:
            self.prior[list(task.classes)] += 1.0

        def predict(self, x: Any) -> Tensor:
            scores = super().predict(x)
            return scores + self.prior[: scores.shape[1]]

    (first, *_) = _run(_made(Counting, tiny_backbone), tiny_stream)
    assert first.after is not None
    assert first.after["certificate"] is None
    assert "by more than what trains" in first.after["no_certificate"]
    (first, *_) = _run(_made(NCM, tiny_backbone), tiny_stream)
    assert first.after is not None
    assert "nothing trains" in first.after["no_certificate"]
