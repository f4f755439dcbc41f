"""Effective times against closed forms, the optimiser itself, and the exact recursion they stand in for."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.errors import ConfigError
from tangentcl.forecast import SGD, AdamW, GradientDescent, GradientFlow, Ridge, effective_time, linear_problem
from tangentcl.forecast.problem import LinearProblem
from tangentcl.training import TrainingPlan
from tangentcl.training.recipe import recipe

N, D, C = 24, 7, 3


def problem() -> LinearProblem:
    g = torch.Generator().manual_seed(0)
    x, w, y = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((N, D), (C, D), (N, C)))
    return linear_problem(x, w, None, y, list(range(C)))


def _curvature(p: LinearProblem) -> float:
    return float(torch.linalg.matrix_norm(p.features, 2) ** 2 / p.n)


def test_exponential_decay_has_a_closed_form() -> None:
    eta, gamma, n, mu = 0.3, 0.97, 150, 0.9
    rates = [eta * gamma**k for k in range(n)]
    assert effective_time(rates) == pytest.approx(eta * (1 - gamma**n) / (1 - gamma), rel=1e-12)
    assert effective_time(rates, mu) == pytest.approx(eta * (1 - gamma**n) / (1 - gamma) / (1 - mu), rel=1e-12)
    both = eta * ((1 - gamma**n) / (1 - gamma) - mu * (1 - (gamma * mu) ** n) / (1 - gamma * mu)) / (1 - mu)
    assert effective_time(rates, mu, from_rest=True) == pytest.approx(both, rel=1e-12)
    assert effective_time(torch.tensor(rates, dtype=torch.float64)) == effective_time(rates)


@pytest.mark.parametrize(("mu", "nesterov"), [(0.0, False), (0.9, False), (0.6, True)])
def test_under_a_gradient_that_stays_the_optimiser_moves_by_the_time_from_rest(mu: float, nesterov: bool) -> None:
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.2, momentum=mu, nesterov=nesterov)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=13)
    time = effective_time(scheduler, steps=13, from_rest=True)  # momentum and its kind are the optimiser's
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        w.grad = torch.full_like(w, 2.0)
        optimizer.step()
        scheduler.step()
    assert -w.item() / 2.0 == pytest.approx(time, rel=1e-12)
    assert effective_time(rates, mu, nesterov=nesterov, from_rest=True) == pytest.approx(time, rel=1e-12)
    late = effective_time(rates, mu) - time
    if mu and not nesterov:  # at a constant rate the build-up misses eta mu (1 - mu^K) / (1 - mu)^2
        assert late > 0
        missed = effective_time([0.2] * 13, mu) - effective_time([0.2] * 13, mu, from_rest=True)
        assert missed == pytest.approx(0.2 * mu * (1 - mu**13) / (1 - mu) ** 2, rel=1e-12)


def test_a_scheduler_is_read_from_where_it_is_and_left_there() -> None:
    w = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.SGD([w], lr=0.4, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
    w.sum().backward()
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    kept, state = w.detach().clone(), scheduler.state_dict()
    assert effective_time(scheduler, steps=3) == pytest.approx(0.4 * (1 / 3 + 1 / 4 + 1 / 5) / 0.5, rel=1e-12)
    assert effective_time(scheduler, momentum=0.0, steps=1) == pytest.approx(0.4 / 3, rel=1e-12)
    assert torch.equal(w, kept)
    assert scheduler.state_dict() == state
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 / 3)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_plan_and_recipe_agree(schedule: str) -> None:
    plan = TrainingPlan(epochs=3, batch_size=4, optimizer="sgd", lr=0.1, head_lr=0.3, schedule=schedule, warmup=2)
    steps = plan.steps(10)
    factors = [plan.factor(k, steps) for k in range(steps)]
    by_hand = 0.3 * sum(factors) / (1 - plan.momentum)
    assert effective_time(plan, steps=steps) == pytest.approx(by_hand, rel=1e-12)
    assert effective_time(recipe(plan, 10, task=0)) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 40, 1000])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_the_flow_is_as_close_to_exact_descent_as_stated(steps: int, share: float) -> None:
    p = problem()
    rate = share / _curvature(p)
    rates = [rate * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    exact = SGD(lr=rates, batches=[list(range(N))] * steps, loss="squared_error").displacement(p).weight
    flow = GradientFlow.of_schedule(rates).displacement(p).weight
    off = float((p.features @ (exact - flow)).norm() / p.residual.norm())
    assert off <= share / math.e
    if steps == 5 and share < 0.5:  # another time is further off
        wrong = GradientFlow(time=1.5 * effective_time(rates)).displacement(p).weight
        assert float((p.features @ (exact - wrong)).norm() / p.residual.norm()) > 2 * off


@pytest.mark.parametrize("mu", [0.5, 0.9])
@pytest.mark.parametrize("steps", [3, 30, 300])
def test_with_momentum_the_time_from_rest_is_close_where_nothing_oscillates(mu: float, steps: int) -> None:
    p = problem()
    h = _curvature(p)
    rate = 0.3 * (1 - math.sqrt(mu)) ** 2 / h
    exact = GradientDescent(lr=rate, steps=steps, momentum=mu, loss="squared_error").displacement(p).weight
    flow = GradientFlow.of_schedule([rate] * steps, mu).displacement(p).weight
    off = float((p.features @ (exact - flow)).norm() / p.residual.norm())
    assert off <= rate * h * (1 + mu) / math.e / (1 - mu) ** 2
    if steps == 3:  # without the build-up the flow is several times too long
        naive = GradientFlow(time=effective_time([rate] * steps, mu)).displacement(p).weight
        assert float((p.features @ (exact - naive)).norm() / p.residual.norm()) > 5 * off


def test_mini_batches_add_noise_and_decay_goes_along() -> None:
    p = problem()
    rate = 0.1 / _curvature(p)
    order = [torch.randperm(N, generator=torch.Generator().manual_seed(e)).view(4, 6).tolist() for e in range(10)]
    batches = [batch for epoch in order for batch in epoch]
    exact = SGD(lr=rate, batches=batches, weight_decay=0.05, loss="squared_error")
    flow = GradientFlow.of_schedule(exact)
    assert (flow.weight_decay, flow.time) == (0.05, pytest.approx(40 * rate, rel=1e-12))
    moved, change = exact.displacement(p).weight, flow.displacement(p).weight
    assert float((moved - change).norm() / moved.norm()) < 0.1
    assert GradientFlow.of_schedule(exact, weight_decay=0.0).weight_decay == 0.0


def test_small_gradients_are_exact_to_first_order() -> None:
    p = problem()
    for mu in (0.0, 0.8):
        step = GradientDescent(lr=1e-9, steps=9, momentum=mu, loss="squared_error").displacement(p).weight
        flow = GradientFlow.of_schedule([1e-9] * 9, mu).displacement(p).weight
        torch.testing.assert_close(flow, step, rtol=1e-6, atol=0)


def test_what_has_no_effective_time_is_refused() -> None:
    w = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.lr_scheduler.ExponentialLR(torch.optim.AdamW([w]), 0.9)
    damped = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([w], lr=1.0, momentum=0.5, dampening=0.1), 0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([w], lr=1.0))
    sgd = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([w], lr=1.0), 0.9)
    for schedule, steps, said in (
        (adam, 3, "proportion to gradients"),
        (damped, 3, "dampening"),
        (plateau, 3, "metric"),
        (sgd, None, "steps=None"),
        (TrainingPlan(optimizer="adamw"), 3, "adamw"),
        (TrainingPlan(optimizer="sgd"), None, "plan.steps"),
        (AdamW(lr=0.1, steps=3), None, "AdamW"),
        (Ridge(strength=1.0), None, "Ridge"),
        (GradientDescent(lr=0.1, steps=3), 4, "3 steps"),
        ([0.1, -0.1], None, "positive"),
    ):
        with pytest.raises(ConfigError, match=said):
            effective_time(schedule, steps=steps)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="momentum"):
        effective_time([0.1], 1.0)
