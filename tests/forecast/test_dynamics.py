"""Settings that every recipe refuses, idle outputs, and training that diverges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tangentcl.errors import ConfigError, DataError
from tangentcl.forecast import SGD, AdamW, Dynamics, GradientDescent, GradientFlow, Ridge, forecast_linear
from tangentcl.forecast.gradient_descent import stable_rate

Make = Callable[..., Any]


def _forecast(case: Any, dynamics: Dynamics) -> Any:
    return forecast_linear(case.features_old, case.head, case.features_new, case.labels, dynamics)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GradientDescent(lr=0.1), "needs the number of steps"),
        (lambda: GradientDescent(lr=[0.1, 0.2], steps=3), "2 learning rates for 3 steps"),
        (lambda: GradientDescent(lr=-1.0, steps=3), "zero or positive"),
        (lambda: GradientDescent(lr=0.1, steps=3, loss="hinge"), "loss must be one of"),
        (lambda: GradientDescent(lr=0.1, steps=3, momentum=1.0), "momentum must be"),
        (lambda: GradientDescent(lr=0.1, steps=3, nesterov=True), "nesterov needs a momentum"),
        (lambda: SGD(lr=[0.1], batches=[[0], [1]]), "1 learning rates for 2 steps"),
        (lambda: SGD(lr=0.1, batches=[[0]], weight_decay=-1.0), "weight_decay must be"),
        (lambda: AdamW(lr=0.1), "needs the number of steps"),
        (lambda: AdamW(lr=0.1, batches=[[0]], steps=2), "there are 1 batches"),
        (lambda: AdamW(lr=0.1, steps=2, betas=(0.9, 1.0)), "betas must be"),
        (lambda: Ridge(strength=0.0), "strength of a ridge must be positive"),
        (lambda: Ridge(strength=1.0, centre="middle"), "centre must be"),  # type: ignore[arg-type]
        (lambda: GradientFlow(time=-1.0), "time must be"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Dynamics], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("batches", [[[0], []], [[0], [20]], [[0], [-1]]])
def test_batches_of_other_samples(make_case: Make, batches: list[list[int]]) -> None:
    with pytest.raises(DataError, match="batch 1 must hold positions from 0 to 19"):
        _forecast(make_case(20), SGD(lr=0.1, batches=batches))


def test_a_sample_twice_in_a_batch_counts_twice(make_case: Make) -> None:
    for n in (20, 7):
        case = make_case(n)
        batches = [[0, 1, 1], [2, 2, 2]]
        truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0), "cross_entropy", [0.1, 0.1], batches)
        torch.testing.assert_close(_forecast(case, SGD(lr=0.1, batches=batches)).drift, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_the_stability_limit_is_where_it_says(make_case: Make, options: dict[str, Any]) -> None:
    case = make_case(20, bias=False)
    curvature = float(torch.linalg.eigvalsh(case.features_new.T @ case.features_new / 20).max())
    limit = stable_rate(options.get("momentum", 0.0), "nesterov" in options, curvature)
    keywords: dict[str, Any] = {"steps": 2000, "loss": "squared_error", **options}
    assert _forecast(case, GradientDescent(lr=0.99 * limit, **keywords)).drift.norm() < 100
    with pytest.raises(ConfigError, match=f"diverges: .* Stable is a constant lr below {limit:.4g}"):
        _forecast(case, GradientDescent(lr=1.01 * limit, **keywords))


def test_close_to_the_limit_the_forecast_still_equals_training(make_case: Make) -> None:
    case = make_case(20, bias=False)
    curvature = float(torch.linalg.eigvalsh(case.features_new.T @ case.features_new / 20).max())
    rates = [1.9 / curvature] * 100
    truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0), "squared_error", rates)
    found = _forecast(case, GradientDescent(lr=rates, loss="squared_error")).drift
    assert (found - truth).norm() < 1e-9 * truth.norm()


def test_a_recursion_that_overflows_is_refused(make_case: Make) -> None:
    with pytest.raises(ConfigError, match="weights become infinite"):
        _forecast(make_case(20), SGD(lr=100.0, batches=[list(range(20))] * 200, loss="squared_error"))


def test_no_step_is_no_drift(make_case: Make) -> None:
    for dynamics in (
        GradientDescent(lr=[]),
        GradientDescent(lr=0.1, steps=0, loss="squared_error"),
        SGD(lr=0.1, batches=[]),
        AdamW(lr=0.1, steps=0),
        GradientFlow(time=0.0),
    ):
        assert _forecast(make_case(20), dynamics).drift.abs().max() == 0


def test_small_steps_approach_the_flow(make_case: Make) -> None:
    case = make_case(7)
    flow = _forecast(case, GradientFlow(time=1.0, weight_decay=0.1)).drift
    errors = []
    for steps in (100, 1000):
        descent = GradientDescent(lr=1 / steps, steps=steps, weight_decay=0.1, loss="squared_error")
        errors.append(float((_forecast(case, descent).drift - flow).norm() / flow.norm()))
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)  # first order in the step


def test_solves_tell_their_residual(make_case: Make) -> None:
    for dynamics in (Ridge(strength=0.1), GradientFlow(), GradientFlow(weight_decay=0.1)):
        assert 0 < _forecast(make_case(20), dynamics).residual < 1e-12
    assert _forecast(make_case(20), GradientFlow(time=1.0)).residual == 0
