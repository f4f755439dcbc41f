"""Plans against really training every recipe, and the rules of the choice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Samples, TaskStream
from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast import SGD, GradientDescent, Ridge, forecast_forgetting
from tangentcl.forecast.planning import Candidate, plan_training
from tangentcl.forecast.training_choice import Prospect, TrainingChoice, joined_choice, sampling_margin
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TaskFit, TrainingPlan
from tangentcl.training.recipe import recipe


def row(old: float, new: float, trust: str = "exact", samples: int = 0, **settings: Any) -> Prospect:
    return Prospect(settings, 0.9, old, new, trust, training_samples=samples)


# The choice.


def test_the_most_learned_within_the_tolerance_is_chosen() -> None:
    rows = (row(0.9, 0.75), row(0.89, 0.85), row(0.8, 0.95), row(0.885, 0.85))
    choice = TrainingChoice(rows, 0.02)
    assert choice.chosen is rows[1]  # as accurate as the last, and forgets less
    assert choice.front == (rows[0], rows[1], rows[2])
    assert [choice.admits(r) for r in rows] == [False, True, False, True]  # 0.75 is below 0.8 * 0.95
    assert choice.closest is rows[1]


def test_of_equals_the_shortest_is_chosen() -> None:
    rows = row(0.9, 0.9, samples=300), row(0.9, 0.9, samples=100)
    assert TrainingChoice(rows, 0.02).chosen is rows[1]


def test_low_trust_is_shown_and_never_chosen() -> None:
    rows = row(0.9, 1.0, "low"), row(0.89, 0.7, "medium"), Prospect({}, *[float("nan")] * 3, "refused", "diverges")
    choice = TrainingChoice(rows, 0.02)
    assert choice.chosen is rows[1]
    assert choice.floor == pytest.approx(0.8 * 0.7)  # what cannot be believed sets no standard
    assert choice.front == (rows[1],)
    said = choice.to_dict()
    assert (said["chosen"], said["closest"], said["front"]) == (1, 1, [1])
    assert said["rows"][2]["old_after"] is None
    assert len(said["rows"]) == 3


def test_a_gap_that_could_break_the_tolerance_does() -> None:
    safe, risky = (Prospect({}, 0.9, 0.89, new, "medium", old_cautious=low) for new, low in ((0.8, 0.885), (0.9, 0.8)))
    choice = TrainingChoice((risky, safe), 0.02)
    assert choice.chosen is safe
    assert (risky.forgetting, risky.cautious_forgetting) == pytest.approx((0.01, 0.1))


def test_a_local_forecast_is_taken_with_its_gap(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    torch.manual_seed(0)
    method, task, old = Finetune(tiny_backbone(), tune="full"), tiny_stream[1], tiny_stream[0].test
    first = TrainingPlan(epochs=3, batch_size=8, optimizer="sgd", lr=0.05, device="cpu")
    method.begin_task(tiny_stream[0])
    TaskFit(method, tiny_stream[0], tiny_stream[0].train, first, Runtime(device="cpu"), lambda *_: None).run()
    method.begin_task(task)
    plan = TrainingPlan(epochs=2, batch_size=8, optimizer="sgd", lr=0.02, device="cpu")
    steps = recipe(plan, len(task.train), task.index)
    (found,) = plan_training([Candidate({}, steps, method)], old, task, task.test).rows
    forecast = forecast_forgetting(method, Samples.concat([old, task.test]), task, steps)
    assert forecast.trust is not None
    assert found.trust == forecast.trust.level != "low"
    scaled = forecast.outputs + (1 + forecast.trust.gap) * forecast.drift
    labels = torch.from_numpy(old.labels)
    further = float((scaled[: len(old)].argmax(1) == labels).double().mean())
    assert found.old_cautious == min(further, found.old_after)


def test_low_trust_is_refined_where_asked(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    torch.manual_seed(0)
    method, task, old = Finetune(tiny_backbone(), tune="full"), tiny_stream[1], tiny_stream[0].test
    method.begin_task(tiny_stream[0])
    method.begin_task(task)
    gentle, wild = (TrainingPlan(epochs=3, batch_size=8, optimizer="adamw", lr=lr, device="cpu") for lr in (1e-4, 0.1))
    candidates = [Candidate({"lr": p.lr}, recipe(p, len(task.train), task.index), method) for p in (gentle, wild)]
    state = {key: value.clone() for key, value in method.state_dict().items() if isinstance(value, Tensor)}
    rows = plan_training(candidates, old, task, task.test, refine=0.9).rows
    assert [r.refined for r in rows] == [0.0, 0.9]
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in state.items())
    assert plan_training(candidates[1:], old, task, task.test).rows[0].refined == 0.0


def test_a_margin_by_hand() -> None:
    """8 lost and 2 gained of 98: 6 / 98 now, and at most (8 - 2) / 100 + z sqrt(8.5 + 2.5 - 36 / 100) / 100."""
    upper = 0.06 + 1.2815515655446004 * math.sqrt(10.64) / 100
    assert sampling_margin(8, 2, 98, 0.9) == pytest.approx(upper - 6 / 98, rel=1e-12)
    assert sampling_margin(0, 0, 98, 0.9) == pytest.approx(1.2815515655446004 / 100)  # none seen is not none at all
    assert sampling_margin(8, 2, 98, 0.99) > sampling_margin(8, 2, 98, 0.9) > sampling_margin(8, 2, 98, 0.0) == 0.0


def test_the_margin_covers_what_it_says() -> None:
    """Samples lost and gained at given rates: true forgetting is above the limit about as often as was allowed."""
    g = torch.Generator().manual_seed(0)
    lost, gained, n = 0.03, 0.01, 300
    draws = torch.rand(4000, n, generator=g)
    b, c = (draws < lost).sum(1).tolist(), (draws > 1 - gained).sum(1).tolist()
    limits = [(x - y) / n + sampling_margin(x, y, n, 0.9) for x, y in zip(b, c)]
    assert sum(limit >= lost - gained for limit in limits) / len(limits) == pytest.approx(0.9, abs=0.02)


def test_a_margin_counts_against_the_tolerance() -> None:
    near, far = (
        Prospect({}, 0.9, 0.9 - lost, new, "exact", old_margin=0.01) for lost, new in ((0.015, 0.9), (0.005, 0.8))
    )
    assert TrainingChoice((near, far), 0.02).chosen is far
    assert near.cautious_forgetting == pytest.approx(0.025)


def test_nothing_meets_the_demands() -> None:
    rows = row(0.9, 0.1), row(0.7, 0.9), row(0.85, 0.85)
    choice = TrainingChoice(rows, 0.02)
    assert choice.chosen is None
    assert choice.closest is rows[2]
    assert TrainingChoice((row(0.9, 0.9, "low"),), 0.02).closest is None
    assert TrainingChoice(rows, 0.02, min_learned=0.0).chosen is rows[0]
    with pytest.raises(ConfigError, match="share of old samples"):
        TrainingChoice(rows, 2.0)
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        TrainingChoice(rows, 0.02, min_learned=1.5)


def test_choices_join_when_they_ask_the_same() -> None:
    first, second = TrainingChoice((row(0.9, 0.5),), 0.02), TrainingChoice((row(0.9, 0.9),), 0.02)
    joined = joined_choice([first, second])
    assert joined.rows == first.rows + second.rows
    assert joined.chosen is second.rows[0]
    for wrong in ([], [first, TrainingChoice(second.rows, 0.05)]):
        with pytest.raises(ConfigError, match="one max_forgetting"):
            joined_choice(wrong)


# Forecasts and training.


def features(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Three old and two new Gaussian classes in eight dimensions."""
    g = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(5, 8, generator=g, dtype=torch.float64)

    def draw(classes: range, n: int) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([c for c in classes for _ in range(n)])
        return centres[labels] + torch.randn(len(labels), 8, generator=g, dtype=torch.float64), labels

    return {
        "train": draw(range(3), 20),
        "old": draw(range(3), 15),
        "new": draw(range(3, 5), 20),
        "test": draw(range(3, 5), 15),
    }


def trained(head: nn.Linear, pair: tuple[Tensor, Tensor], lr: float, steps: int, outputs: int = 5) -> nn.Linear:
    """A copy of the head after full-batch gradient descent on cross-entropy, by torch."""
    head = copy.deepcopy(head)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(head(pair[0])[:, :outputs], pair[1]).backward()
        optimizer.step()
    return head


def accuracy(head: nn.Linear, pair: tuple[Tensor, Tensor], outputs: int = 5) -> float:
    return float((head(pair[0])[:, :outputs].argmax(1) == pair[1]).double().mean())


@pytest.fixture
def learner() -> tuple[nn.Linear, dict[str, tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    data = features()
    head = nn.Linear(8, 5).double()
    with torch.no_grad():
        head.weight[3:] *= 0.01
        head.bias[3:] = -2.0
    return trained(head, data["train"], 0.5, 60, outputs=3), data


def test_every_row_is_what_training_gives(learner: tuple[nn.Linear, dict[str, tuple[Tensor, Tensor]]]) -> None:
    head, data = learner
    grid = [(lr, steps) for lr in (0.02, 0.05, 0.5) for steps in (5, 40)]
    candidates = [
        Candidate({"lr": lr, "steps": steps}, GradientDescent(lr=lr, steps=steps), head, training_samples=40 * steps)
        for lr, steps in grid
    ]
    choice = plan_training(candidates, data["old"], data["new"], data["test"], max_forgetting=0.05, seen=3)
    for (lr, steps), found in zip(grid, choice.rows):
        real = trained(head, data["new"], lr, steps)
        assert found.trust == "exact"
        assert found.old_now == accuracy(head, data["old"], outputs=3)
        assert found.old_after == accuracy(real, data["old"])
        assert found.new_after == accuracy(real, data["test"])
    assert len({r.old_after for r in choice.rows}) > 2  # there is something to choose from
    assert choice.chosen is not None
    chosen = trained(head, data["new"], choice.chosen.settings["lr"], choice.chosen.settings["steps"])
    now = accuracy(head, data["old"], outputs=3)
    assert now - accuracy(chosen, data["old"]) <= 0.05
    assert accuracy(chosen, data["test"]) >= choice.floor > 0.5


def test_recipes_that_diverge_are_kept_with_the_reason(
    learner: tuple[nn.Linear, dict[str, tuple[Tensor, Tensor]]],
) -> None:
    head, data = learner
    candidates = [
        Candidate({"lr": 10.0}, GradientDescent(lr=10.0, steps=50, loss="squared_error"), head),
        Candidate({"strength": 5.0}, Ridge(strength=5.0), head),
    ]
    seen = []
    choice = plan_training(
        candidates, data["old"], data["new"], data["test"], seen=3, observe=lambda i, r: seen.append((i, r.trust))
    )
    assert seen == [(0, "refused"), (1, "exact")]
    assert "diverges" in choice.rows[0].sentence
    assert not choice.rows[0].believable


def test_a_model_is_made_once_for_all_its_recipes(learner: tuple[nn.Linear, dict[str, tuple[Tensor, Tensor]]]) -> None:
    head, data = learner
    made = []

    def make() -> nn.Linear:
        made.append(1)
        return head

    candidates = [Candidate({"k": k}, Ridge(strength=k), make) for k in (1.0, 10.0)]
    plan_training(candidates, data["old"], data["new"], data["test"], seen=3)
    assert made == [1]


def test_a_model_that_cannot_be_forecast_does_not_stop_the_others(
    learner: tuple[nn.Linear, dict[str, tuple[Tensor, Tensor]]],
) -> None:
    head, data = learner
    random = nn.Sequential(nn.Linear(8, 5).double(), _Noise())
    bad, good = (Candidate({"model": i}, Ridge(strength=5.0), m) for i, m in enumerate((random, head)))
    choice = plan_training([bad, good], data["old"], data["new"], data["test"], seen=3)
    assert [r.trust for r in choice.rows] == ["refused", "exact"]
    assert choice.rows[0].sentence
    with pytest.raises(ModelError):
        plan_training([bad], data["old"], data["new"], data["test"], seen=3)


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_refusals(learner: tuple[nn.Linear, dict[str, tuple[Tensor, Tensor]]]) -> None:
    head, data = learner
    candidates = [Candidate({}, Ridge(strength=1.0), head)]
    with pytest.raises(ConfigError, match="at least one candidate"):
        plan_training([], data["old"], data["new"], data["test"])
    with pytest.raises(ConfigError, match="share of old samples"):
        plan_training(candidates, data["old"], data["new"], data["test"], max_forgetting=-3.0)
    with pytest.raises(DataError, match="labels of new_test"):
        plan_training(candidates, data["old"], data["new"], data["test"][0])
    with pytest.raises(DataError, match="differ in shape"):
        plan_training(candidates, data["old"], data["new"], (data["test"][0][:, :3], data["test"][1]))


def test_a_plan_for_a_method_holds_when_the_loop_trains_it(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    plans = [
        TrainingPlan(epochs=e, batch_size=8, optimizer="sgd", lr=lr, device="cpu") for e in (1, 4) for lr in (0.01, 0.1)
    ]
    torch.manual_seed(0)
    method, task, old = Finetune(tiny_backbone(), tune="head"), tiny_stream[1], tiny_stream[0].test
    method.begin_task(tiny_stream[0])
    TaskFit(method, tiny_stream[0], tiny_stream[0].train, plans[3], Runtime(device="cpu"), lambda *_: None).run()
    method.begin_task(task)
    candidates = [
        Candidate({"lr": p.lr, "epochs": p.epochs}, recipe(p, len(task.train), task.index), method) for p in plans
    ]
    choice = plan_training(candidates, old, task, task.test, max_forgetting=0.2)

    def right(model: Finetune, samples: Samples) -> float:
        model.eval()
        with torch.no_grad():
            return sum(int((model.predict(x).argmax(1) == y).sum()) for x, y in samples.batches(99)) / len(samples)

    assert isinstance(candidates[0].dynamics, SGD)
    for plan, found in zip(plans, choice.rows):
        real = copy.deepcopy(method)
        TaskFit(real, task, task.train, plan, Runtime(device="cpu"), lambda *_: None).run()
        assert found.trust == "exact"
        assert (found.old_after, found.new_after) == (right(real, old), right(real, task.test))
