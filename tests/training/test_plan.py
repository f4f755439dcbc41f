"""The plan: its bounds, its schedules against closed forms, its optimisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tangentcl.errors import ConfigError
from tangentcl.training import TrainingPlan


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"optimizer": "adam"}, "Did you mean 'adamw'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"precision": "bf32"}, "Known: bf16, fp16, fp32"),
        ({"device": "gpu"}, "Known: auto, cpu, cuda, mps"),
        ({"epochs": 0}, "at least 1, got 0"),
        ({"epochs": 2.5}, "whole number"),
        ({"batch_size": True}, "whole number"),
        ({"lr": -1.0}, "plan.lr must be a finite number of at least 0"),
        ({"lr": "fast"}, "got 'fast'"),
        ({"momentum": 1.5}, "between 0 and 1"),
        ({"clip_norm": 0.0}, "must be a positive number"),
        ({"milestones": (30, 60)}, "shares of a task's steps"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"lr": float("nan")}, "plan.lr"),
        ({"lr": math.inf}, "finite"),
        ({"clip_norm": "1"}, "positive number"),
        ({"nesterov": 1}, "true or false"),
        ({"milestones": 0.5}, "list of numbers"),
        ({"betas": ("a", "b")}, "list of numbers"),
    ],
)
def test_impossible_plans_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingPlan(**keywords)


def test_schedules_follow_their_formula() -> None:
    n = 20
    cosine = TrainingPlan(schedule="cosine")
    assert [cosine.factor(s, n) for s in range(n)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * s / n)) for s in range(n)]
    )
    step = TrainingPlan(schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [step.factor(s, n) for s in (0, 9, 10, 14, 15, 19)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert {TrainingPlan(schedule="constant").factor(s, n) for s in range(n)} == {1.0}
    share = TrainingPlan(schedule="constant", warmup=0.25)
    assert [share.factor(s, n) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_the_scheduler_applies_the_factor_to_each_step() -> None:
    plan = TrainingPlan(lr=0.5, schedule="cosine", warmup=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = plan.make_optimizer([parameter])
    schedule = plan.make_schedule(optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5 * plan.factor(s, 10) for s in range(10)])


def test_sgd_with_momentum_and_decay_matches_hand_calculation() -> None:
    plan = TrainingPlan(optimizer="sgd", lr=0.1, momentum=0.5, weight_decay=0.2)
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = plan.make_optimizer([w])
    for _ in range(2):
        w.grad = torch.tensor([3.0])
        optimizer.step()
    # v1 = 3 + 0.2; w1 = 1 - 0.32; v2 = 0.5 v1 + 3 + 0.2 w1; w2 = w1 - 0.1 v2
    assert w.item() == pytest.approx(0.68 - 0.1 * (1.6 + 3 + 0.2 * 0.68))
