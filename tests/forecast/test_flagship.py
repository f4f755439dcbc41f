"""With a frozen backbone and a linear head the forecast equals training, for every recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tangentcl.forecast import SGD, AdamW, Dynamics, GradientDescent, GradientFlow, Ridge, forecast_linear
from tangentcl.kernels import FeatureKernel

Case = Any  # of conftest.py
Make = Callable[..., Case]

STEPS = 25
COSINE = [0.1 * min(1.0, (s + 1) / 5) * 0.5 * (1 + math.cos(math.pi * s / STEPS)) for s in range(STEPS)]
SHAPES = [(20, True), (20, False), (7, True), (7, False)]  # more and fewer new samples than the 12 features
BOUND = {torch.float64: 1e-9, torch.float32: 1e-5}

# Settings of torch.optim.SGD and the learning rates they go with.
DESCENT: dict[str, tuple[dict[str, Any], list[float]]] = {
    "plain": ({}, [0.1] * STEPS),
    "decay": ({"weight_decay": 0.05}, [0.1] * STEPS),
    "heavy ball": ({"momentum": 0.9}, [0.05] * STEPS),
    "nesterov": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}, [0.05] * STEPS),
    "cosine with warm-up": ({"momentum": 0.8, "weight_decay": 0.01}, COSINE),
    "steps": ({"momentum": 0.5}, [0.1] * 15 + [0.01] * 10),
}
ADAMW: dict[str, tuple[dict[str, Any], list[float]]] = {
    "plain": ({"weight_decay": 0.0}, [0.02] * STEPS),
    # In float32 the run itself rounds 1 - lr * decay, by up to 6e-8 / (lr * decay) of what decay alone moves.
    "decay": ({"weight_decay": 0.5}, [0.02] * STEPS),
    "cosine with warm-up": ({"betas": (0.8, 0.99), "weight_decay": 0.01}, [0.3 * rate for rate in COSINE]),
}


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


def _error(case: Case, dynamics: Dynamics, truth: Tensor) -> float:
    forecast = forecast_linear(
        case.features_old, case.head, case.features_new, case.labels, dynamics, columns=case.columns
    )
    assert forecast.exact
    assert forecast.drift.dtype == case.features_old.dtype
    return relative(forecast.drift, truth)


def _batches(n: int, size: int) -> list[list[int]]:
    """A random order per epoch, cut into batches of which the last is short, for STEPS steps."""
    rng = np.random.default_rng(0)
    batches: list[list[int]] = []
    while len(batches) < STEPS:
        order = rng.permutation(n).tolist()
        batches += [order[i : i + size] for i in range(0, n, size)]
    return batches[:STEPS]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[False, True], ids=["all outputs", "new outputs"])
def masked(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=SHAPES, ids=[f"n={n}{' bias' if b else ''}" for n, b in SHAPES])
def case(request: pytest.FixtureRequest, make_case: Make, masked: bool, dtype: torch.dtype) -> Case:
    n, bias = request.param
    return make_case(n, bias, masked, dtype)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", DESCENT)
def test_gradient_descent(case: Case, dtype: torch.dtype, name: str, loss: str) -> None:
    options, rates = DESCENT[name]
    truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, **options), loss, rates)
    assert _error(case, GradientDescent(lr=rates, loss=loss, **options), truth) < BOUND[dtype]


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", DESCENT)
def test_sgd_in_the_real_batch_order(case: Case, dtype: torch.dtype, name: str, loss: str) -> None:
    options, rates = DESCENT[name]
    batches = _batches(len(case.labels), 3)
    truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, **options), loss, rates, batches)
    assert _error(case, SGD(lr=rates, batches=batches, loss=loss, **options), truth) < BOUND[dtype]


@pytest.mark.parametrize("batched", [False, True], ids=["full batch", "batches"])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", ADAMW)
def test_adamw(case: Case, dtype: torch.dtype, name: str, loss: str, batched: bool) -> None:
    options, rates = ADAMW[name]
    batches = _batches(len(case.labels), 3) if batched else None
    truth = case.train(lambda p: torch.optim.AdamW(p, lr=0.0, **options), loss, rates, batches)
    assert _error(case, AdamW(lr=rates, batches=batches, loss=loss, **options), truth) < BOUND[dtype]


def _flow(case: Case, time: float, decay: float) -> Tensor:
    """Follow the flow with an ODE solver on gradients from autograd."""
    integrate = pytest.importorskip("scipy.integrate")
    head = case.copy_of_head()
    parameters = list(head.parameters())
    before = head(case.features_old).detach()

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        nn.utils.vector_to_parameters(torch.from_numpy(y), parameters)
        loss = case.loss("squared_error", head(case.features_new), case.labels)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        return -gradient.numpy() - decay * y

    start = nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    end = integrate.solve_ivp(velocity, (0.0, time), start, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    nn.utils.vector_to_parameters(torch.from_numpy(end), parameters)
    return head(case.features_old).detach() - before


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("n, bias", SHAPES)
def test_gradient_flow(make_case: Make, n: int, bias: bool, masked: bool, decay: float) -> None:
    case = make_case(n, bias, masked)
    dynamics = GradientFlow(time=2.0, weight_decay=decay)
    assert _error(case, dynamics, _flow(case, 2.0, decay)) < 1e-9


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("n, bias", [(40, True), (6, True), (6, False)])
def test_flow_without_end_is_where_long_training_arrives(
    make_case: Make, n: int, bias: bool, masked: bool, decay: float
) -> None:
    case = make_case(n, bias, masked)
    rates = [0.2] * 3000
    truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.8, weight_decay=decay), "squared_error", rates)
    assert _error(case, GradientFlow(weight_decay=decay), truth) < 1e-9


@pytest.mark.parametrize("centre", ["initial", "zero"])
@pytest.mark.parametrize("n, bias", SHAPES)
def test_ridge_is_the_minimiser(make_case: Make, n: int, bias: bool, masked: bool, centre: str) -> None:
    case = make_case(n, bias, masked)
    strength = 0.7
    head = case.copy_of_head()
    chosen = case.columns or list(range(head.out_features))
    parts = [p for p in (head.weight, head.bias) if p is not None]
    centres = [p.detach().clone() if centre == "initial" else torch.zeros_like(p) for p in parts]
    before = head(case.features_old).detach()
    # Exactly quadratic: one Newton step from anywhere, with the Hessian of autograd, is the minimum.
    flat = torch.cat([p.detach()[chosen].flatten() for p in parts])
    sizes = [p[chosen].numel() for p in parts]

    def objective(vector: Tensor) -> Tensor:
        pieces = [v.view_as(p[chosen]) for v, p in zip(vector.split(sizes), parts)]
        outputs = case.features_new @ pieces[0].T + (pieces[1] if len(pieces) > 1 else 0.0)
        one_hot = (case.labels[:, None] == torch.tensor(chosen)[None]).to(outputs)
        penalty = sum((v - c[chosen]).square().sum() for v, c in zip(pieces, centres))
        return 0.5 * (outputs - one_hot).square().sum() + 0.5 * strength * penalty

    gradient = torch.autograd.functional.jacobian(objective, flat)
    hessian = torch.autograd.functional.hessian(objective, flat)
    found = flat - torch.linalg.solve(hessian, gradient)
    with torch.no_grad():
        for piece, p in zip(found.split(sizes), parts):
            p[chosen] = piece.view_as(p[chosen])
    truth = head(case.features_old).detach() - before
    assert _error(case, Ridge(strength=strength, centre=centre), truth) < 1e-9


@pytest.mark.parametrize("n, bias", SHAPES)
def test_the_drift_is_the_cross_kernel_times_a_dual_vector(make_case: Make, n: int, bias: bool) -> None:
    case = make_case(n, bias)
    kernel = FeatureKernel(5, bias=bias)
    one_hot = nn.functional.one_hot(case.labels, 5).double()
    gap = (one_hot - case.head(case.features_new).detach()).flatten()
    dense = kernel(case.features_new).to_dense()
    dual = torch.linalg.solve(dense + 0.7 * torch.eye(len(dense), dtype=torch.float64), gap).view(n, 5)
    truth = kernel(case.features_old, case.features_new).apply(dual)
    assert _error(case, Ridge(strength=0.7), truth) < 1e-9


def test_float32_features_of_a_long_run(make_case: Make) -> None:
    """Rounding of the real run grows with its length; the forecast has none to speak of."""
    case = make_case(20, True, False, torch.float32)
    rates = [0.05] * 500
    truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), "cross_entropy", rates)
    assert _error(case, GradientDescent(lr=0.05, steps=500, momentum=0.9), truth) < 1e-5


@pytest.mark.parametrize("n", [20, 7])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_features_without_full_rank(make_case: Make, n: int, decay: float) -> None:
    case = make_case(n)
    case.features_new[:, 0] = 0.0
    case.features_new[:, 1] = case.features_new[:, 2]
    case.features_new[1] = case.features_new[0]
    options = {"momentum": 0.9, "weight_decay": decay}
    rates = [0.05] * 400
    truth = case.train(lambda p: torch.optim.SGD(p, lr=0.0, **options), "squared_error", rates)
    assert _error(case, GradientDescent(lr=rates, loss="squared_error", **options), truth) < 1e-9
    truth = case.train(lambda p: torch.optim.AdamW(p, lr=0.0, weight_decay=decay), "cross_entropy", rates[:50])
    assert _error(case, AdamW(lr=rates[:50], weight_decay=decay), truth) < 1e-9
    assert _error(case, GradientFlow(time=3.0, weight_decay=decay), _flow(case, 3.0, decay)) < 1e-9


def test_masked_old_outputs_do_not_move_without_decay(make_case: Make) -> None:
    case = make_case(20, True, True)
    forecast = forecast_linear(
        case.features_old, case.head, case.features_new, case.labels, GradientDescent(lr=0.1, steps=9), columns=[3, 4]
    )
    assert torch.equal(forecast.drift[:, :3], torch.zeros(9, 3, dtype=torch.float64))
    assert forecast.drift[:, 3:].norm() > 0.1


def test_adamw_moves_masked_old_outputs_by_decay_alone(make_case: Make) -> None:
    case = make_case(20, True, True)
    dynamics = AdamW(lr=0.1, steps=9, weight_decay=0.2)
    forecast = forecast_linear(
        case.features_old, case.head, case.features_new, case.labels, dynamics, columns=case.columns
    )
    expected = case.head(case.features_old).detach()[:, :3] * ((1 - 0.1 * 0.2) ** 9 - 1)
    assert relative(forecast.drift[:, :3], expected) < 1e-12
