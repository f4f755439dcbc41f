"""Recipes step by step, and the head's own rate, against torch.optim with parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tangentcl.errors import ConfigError, DataError
from tangentcl.forecast import SGD, AdamW, Dynamics, GradientDescent, GradientFlow, Ridge, forecast_linear
from tangentcl.forecast.dynamics import head_rates
from tangentcl.training import TrainingPlan, recipe

CPU = torch.device("cpu")
BATCHES = [[0, 2], [1], [3, 0]]
LR, HEAD = [0.1, 0.2, 0.05], [0.3, 0.1, 0.4]

OPTIMIZERS: dict[str, tuple[Dynamics, Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (
        SGD(lr=LR, head_lr=HEAD, batches=BATCHES, momentum=0.9, weight_decay=0.1),
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.9, weight_decay=0.1),
    ),
    "Nesterov": (
        SGD(lr=LR, head_lr=HEAD, batches=BATCHES, momentum=0.5, nesterov=True),
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.5, nesterov=True),
    ),
    "GradientDescent": (
        GradientDescent(lr=LR, head_lr=HEAD, momentum=0.9, weight_decay=0.1),
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.9, weight_decay=0.1),
    ),
    "AdamW": (
        AdamW(lr=LR, head_lr=HEAD, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.2, batches=BATCHES),
        lambda g: torch.optim.AdamW(g, lr=0.0, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.2),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rules_and_rates_are_those_of_the_optimiser(name: str) -> None:
    dynamics, make = OPTIMIZERS[name]
    g = torch.Generator().manual_seed(0)
    body, head = (nn.Parameter(torch.randn(3, generator=g).double()) for _ in range(2))
    ours = {key: p.detach().clone() for key, p in (("body", body), ("head", head))}
    optimizer = make([{"params": [body]}, {"params": [head]}])
    steps = dynamics.stepwise(4, CPU)
    rules = {key: steps.rule() for key in ours}
    for step in range(3):
        gradients = [torch.randn(3, generator=g).double() for _ in range(2)]
        for p, gradient, rate, group in zip((body, head), gradients, (LR[step], HEAD[step]), optimizer.param_groups):
            p.grad, group["lr"] = gradient.clone(), rate
        optimizer.step()
        for key, gradient, rates in zip(ours, gradients, (steps.rates, steps.head_rates)):
            rules[key](ours[key], gradient.clone(), rates[step])
    torch.testing.assert_close(ours["body"], body.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(ours["head"], head.detach(), rtol=1e-13, atol=1e-14)


def test_the_samples_of_every_step() -> None:
    every = torch.arange(4)
    for dynamics, expected in (
        (SGD(lr=0.1, batches=BATCHES), BATCHES),
        (AdamW(lr=0.1, batches=BATCHES), BATCHES),
        (AdamW(lr=0.1, steps=2), [[0, 1, 2, 3]] * 2),
        (GradientDescent(lr=0.1, steps=2), [[0, 1, 2, 3]] * 2),
    ):
        steps = dynamics.stepwise(4, CPU)
        assert [every[rows].tolist() for rows in steps.rows] == expected
        assert steps.rates == steps.head_rates == (0.1,) * len(expected)
        assert dynamics.has_steps
    with pytest.raises(DataError, match=r"positions from 0 to 2 of the new samples, got \[3, 0\]"):
        SGD(lr=0.1, batches=BATCHES).stepwise(3, CPU)


def test_recipes_without_steps_say_so() -> None:
    for dynamics in (Ridge(strength=1.0), GradientFlow(time=1.0)):
        assert not dynamics.has_steps
        with pytest.raises(ConfigError, match=f"{type(dynamics).__name__} has no steps to follow"):
            dynamics.stepwise(4, CPU)


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "GradientDescent", "GradientDescent squared"])
def test_a_head_alone_takes_its_own_rate(make_case: Callable[..., Any], kind: str) -> None:
    case = make_case(20)
    rates, own, batches = [0.5] * 6, [0.05, 0.02, 0.1, 0.01, 0.03, 0.02], [[0, 1, 2], [5, 7], [9, 3]] * 2
    loss = "squared_error" if "squared" in kind else "cross_entropy"
    if kind == "AdamW":
        dynamics: Dynamics = AdamW(lr=rates, head_lr=own, batches=batches)
        truth = case.train(lambda p: torch.optim.AdamW(p, lr=0.0), loss, own, batches)
    elif kind == "SGD":
        dynamics = SGD(lr=rates, head_lr=own, batches=batches, momentum=0.9)
        truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), loss, own, batches)
    else:
        dynamics = GradientDescent(lr=rates, head_lr=own, loss=loss, weight_decay=0.1)
        truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, weight_decay=0.1), loss, own)
    found = forecast_linear(case.features_old, case.head, case.features_new, case.labels, dynamics)
    assert (found.drift - truth).norm() < 1e-11 * truth.norm()


def test_a_head_rate_is_a_number_or_one_per_step() -> None:
    assert head_rates(None, (0.1, 0.2)) == (0.1, 0.2)
    assert head_rates(0.5, (0.1, 0.2)) == (0.5, 0.5)
    assert head_rates([0.5, 0.0], (0.1, 0.2)) == (0.5, 0.0)
    for make in (
        lambda lr: SGD(lr=0.1, batches=BATCHES, head_lr=lr),
        lambda lr: AdamW(lr=0.1, batches=BATCHES, head_lr=lr),
        lambda lr: GradientDescent(lr=0.1, steps=3, head_lr=lr),
    ):
        with pytest.raises(ConfigError, match="2 learning rates for 3 steps"):
            make([0.1, 0.2])
        with pytest.raises(ConfigError, match="zero or positive, got -1"):
            make(-1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_plan_gives_the_rates_that_its_optimiser_takes(optimizer: str) -> None:
    plan = TrainingPlan(epochs=2, batch_size=3, optimizer=optimizer, lr=0.1, head_lr=0.4, warmup=2, device="cpu")
    steps = recipe(plan, 7, task=1).stepwise(7, CPU)
    factors = [plan.factor(step, len(steps.rates)) for step in range(len(steps.rates))]
    assert steps.rates == pytest.approx([0.1 * f for f in factors], rel=1e-12)
    assert steps.head_rates == pytest.approx([0.4 * f for f in factors], rel=1e-12)
