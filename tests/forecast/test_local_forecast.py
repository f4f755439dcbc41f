"""Local forecasts against really training: linearised networks, bilinear networks, and small steps of others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Samples, Task, TaskStream
from tangentcl.forecast import SGD, AdamW, Dynamics, Forecast, GradientDescent, prepare_forecast
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TaskFit, TrainingPlan, recipe

N, OLD, C, STEPS = 10, 7, 4, 12
RATES = [0.1 * min(1.0, (s + 1) / 3) * 0.5 * (1 + math.cos(math.pi * s / STEPS)) for s in range(STEPS)]
BATCHES = [[(3 * s + 2 * i) % N for i in range(3 if s % 4 else 2)] for s in range(STEPS)]
X_OLD = torch.randn(OLD, 5, generator=torch.Generator().manual_seed(1)).double()
X_NEW = torch.randn(N, 5, generator=torch.Generator().manual_seed(2)).double()
LABELS = torch.tensor([2, 3, 2, 2, 3, 0, 1, 3, 2, 3])

Optimizer = Callable[[Any], torch.optim.Optimizer]
RECIPES: dict[str, tuple[Callable[..., Dynamics], Optimizer]] = {
    "momentum and decay": (
        lambda **k: SGD(lr=RATES, batches=BATCHES, momentum=0.9, weight_decay=0.03, **k),
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.9, weight_decay=0.03),
    ),
    "nesterov": (
        lambda **k: SGD(lr=RATES, batches=BATCHES, momentum=0.8, nesterov=True, **k),
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.8, nesterov=True),
    ),
    "all samples": (
        lambda **k: GradientDescent(lr=RATES, momentum=0.5, **k),
        lambda g: torch.optim.SGD(g, lr=0.0, momentum=0.5),
    ),
    "adamw": (
        lambda **k: AdamW(lr=RATES, batches=BATCHES, betas=(0.8, 0.95), weight_decay=0.1, **k),
        lambda g: torch.optim.AdamW(g, lr=0.0, betas=(0.8, 0.95), weight_decay=0.1),
    ),
}


class Net(nn.Module):
    """Linear layers with or without a bend between them, and a linear head."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, C)
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.bend(self.first(x))))


def net(kind: str = "full") -> nn.Module:
    torch.manual_seed(0)
    model: Any = Net(torch.tanh).double()
    if "lora" in kind:
        config: Any = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["first", "second"], modules_to_save=["head"])
        model = peft.get_peft_model(model, config)
        for name, p in model.named_parameters():
            if "lora_B" in name and "live" in kind:
                nn.init.normal_(p, std=0.3)
    return model.double()


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def loss_of(loss: str, f: Tensor, labels: Tensor, columns: Sequence[int]) -> Tensor:
    targets = (labels[:, None] == torch.tensor(list(columns))).to(f)
    if loss == "cross_entropy":
        return F.cross_entropy(f[:, list(columns)], targets)
    return 0.5 * (f[:, list(columns)] - targets).square().sum(dim=1).mean()


def train(
    named: dict[str, nn.Parameter],
    outputs: Callable[[Tensor], Tensor],
    make: Optimizer,
    *,
    batches: Sequence[Sequence[int]] | None = BATCHES,
    loss: str = "cross_entropy",
    columns: Sequence[int] = range(C),
    labels: Tensor = LABELS,
    head_lr: float | None = None,
    rates: Sequence[float] = RATES,
    stop: int = STEPS,
    fresh_at: int | None = None,
) -> None:
    """Really train with torch.optim; at step ``fresh_at`` the optimiser forgets."""
    groups = [{"params": [p for name, p in named.items() if ("head" in name) is own]} for own in (False, True)]
    optimizer = make([group for group in groups if group["params"]])
    for step in range(stop):
        optimizer = make(optimizer.param_groups) if step == fresh_at else optimizer
        rows = torch.arange(N) if batches is None else torch.tensor(batches[step])
        for group, own in zip(optimizer.param_groups, (False, True)):
            group["lr"] = head_lr if own and head_lr is not None else rates[step]
        optimizer.zero_grad()
        loss_of(loss, outputs(rows), labels[rows], columns).backward()
        optimizer.step()


def really(model: nn.Module, make: Optimizer, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Drift of the old outputs and parameters of a copy that is trained."""
    learner = copy.deepcopy(model).eval()
    before = learner(X_OLD).detach()
    named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    train(named, lambda rows: learner(X_NEW[rows]), make, **settings)
    return learner(X_OLD).detach() - before, {name: p.detach() for name, p in named.items()}


def linearised(model: nn.Module, make: Optimizer, **settings: Any) -> Tensor:
    """Drift of the old outputs of f0 + J delta, trained."""
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    jacobians = [
        torch.func.jacrev(lambda v, x=x: torch.func.functional_call(model, v, (x,)))(start) for x in (X_NEW, X_OLD)
    ]
    named = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    f0 = model(X_NEW).detach()

    def change(J: dict[str, Tensor]) -> Tensor:
        return sum((J[name].flatten(2) @ (p - start[name]).flatten() for name, p in named.items()), torch.zeros(1))

    train(named, lambda rows: f0[rows] + change(jacobians[0])[rows], make, **settings)
    return change(jacobians[1]).detach()


@pytest.mark.parametrize("kind", ["full", "lora, live", "lora"])
@pytest.mark.parametrize("head_lr", [None, 0.02])
@pytest.mark.parametrize("name", RECIPES)
def test_the_plain_form_is_the_linearised_network_trained(name: str, head_lr: float | None, kind: str) -> None:
    recipe_of, make = RECIPES[name]
    model, batches = net(kind), None if name == "all samples" else BATCHES
    for loss, columns in (("cross_entropy", [3, 2, 0, 1]), ("squared_error", range(C))):
        prepared = prepare_forecast(model, X_OLD, (X_NEW, LABELS), form="ntk", columns=columns, modes=0)
        forecast = prepared.forecast(recipe_of(loss=loss, head_lr=head_lr))
        assert (forecast.form, forecast.exact) == ("ntk", False)
        truth = linearised(model, make, batches=batches, loss=loss, columns=columns, head_lr=head_lr)
        assert relative(forecast.drift, truth) < 1e-9


def test_the_plain_form_with_some_outputs_in_the_loss() -> None:
    model, labels = net(), LABELS.clamp(min=2)
    recipe_of, make = RECIPES["adamw"]
    prepared = prepare_forecast(model, X_OLD, (X_NEW, labels), form="ntk", columns=[3, 2], modes=0)
    truth = linearised(model, make, columns=[3, 2], labels=labels)
    assert relative(prepared.forecast(recipe_of()).drift, truth) < 1e-9


class Products(nn.Module):
    """Features that are linear in what trains: a frozen bend, then a linear layer and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, C)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.tanh(self.frozen(x))))


@pytest.mark.parametrize("head_lr", [None, 0.2])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_network_that_is_its_own_local_model_is_forecast_exactly(name: str, loss: str, head_lr: float | None) -> None:
    torch.manual_seed(0)
    model, (recipe_of, make) = Products().double(), RECIPES[name]
    prepared = prepare_forecast(model, X_OLD, (X_NEW, LABELS), directions=12, modes=0)
    forecaster = prepared._localised(loss, None)
    forecaster._here().local.saturate = False
    dynamics = recipe_of(loss=loss, head_lr=head_lr)
    batches = None if name == "all samples" else BATCHES
    drift, truth = really(model, make, batches=batches, loss=loss, head_lr=head_lr)
    found = forecaster.parameters_after(dynamics)
    assert found.keys() == truth.keys()
    assert max(relative(found[key], truth[key]) for key in truth) < 1e-9
    forecast = prepared.forecast(dynamics)
    assert relative(forecast.drift, drift) < 1e-9
    assert forecast.trust is not None
    assert forecast.trust.gap < 1e-9


def test_a_frozen_head_reads_what_is_learned_below_it() -> None:
    model, (_, make) = net("lora, live"), RECIPES["momentum and decay"]
    for name, p in model.named_parameters():
        p.requires_grad_("lora" in name)
    prepared = prepare_forecast(model, X_OLD, (X_NEW, LABELS), directions=12, modes=0)
    assert prepared._setting.head is not None
    errors = []
    for scale in (0.01, 0.1):
        rates = [scale * rate for rate in RATES]
        drift, _ = really(model, make, rates=rates)
        found = prepared.forecast(SGD(lr=rates, batches=BATCHES, momentum=0.9, weight_decay=0.03))
        errors.append(relative(found.drift, drift))
    assert errors[0] < 4e-3
    assert 5 * errors[0] < errors[1] < 0.05


class _Doubles:
    """Arrays in float64, so that small drifts are not lost in rounding."""

    def __call__(self, raw: Any, rng: Any) -> Tensor:
        return torch.as_tensor(raw).double()

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)

    def describe(self) -> dict[str, Any]:
        return {}


def learn(method: Finetune, task: Task, plan: TrainingPlan) -> None:
    TaskFit(method, task, task.train, plan, Runtime(device="cpu"), lambda *_: None).run()
    method.eval()


@torch.no_grad()
def outputs(method: Finetune, samples: Samples) -> Tensor:
    return torch.cat([method.predict(x) for x, _ in samples.batches(16)])


def begun(network: Backbone, stream: TaskStream, tune: str) -> tuple[Finetune, TaskStream]:
    """Has learned the first task and begun the second."""
    doubles = stream.with_transforms(_Doubles(), _Doubles())
    torch.manual_seed(0)
    method = Finetune(network, tune=tune, targets=("q", "v"), rank=3).double()  # type: ignore[arg-type]
    for module in method.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # of the tiny transformer; no recipe knows what it drops
    method.begin_task(doubles[0])
    method.double()
    lr = {"lora": 1e-2, "full": 1e-3}[tune]
    learn(method, doubles[0], TrainingPlan(epochs=6, batch_size=8, lr=lr, head_lr=3e-2, device="cpu"))
    method.end_task(doubles[0])
    torch.manual_seed(1)
    method.begin_task(doubles[1])
    return method.double().eval(), doubles


def compared(method: Finetune, stream: TaskStream, plan: TrainingPlan, **settings: Any) -> tuple[Forecast, Tensor]:
    """The forecast, and the drift of really training."""
    old, task = stream[0].test, stream[1]
    forecast = prepare_forecast(method, old, task, modes=0).forecast(
        recipe(plan, len(task.train), task.index), **settings
    )
    learner = copy.deepcopy(method)
    learn(learner, task, plan)
    return forecast, outputs(learner, old) - outputs(method, old)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize(("optimizer", "lr", "bound"), [("sgd", 0.02, 6e-3), ("adamw", 1e-3, 4e-4)])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_small_steps_are_forecast_well_and_large_ones_with_less_trust(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, tune: str, optimizer: str, lr: float, bound: float
) -> None:
    method, stream = begun(tiny_backbone(), tiny_stream, tune)
    errors, gaps = [], []
    for scale in (0.01, 0.1, 1.0):
        rate = lr * scale
        plan = TrainingPlan(epochs=2, batch_size=8, optimizer=optimizer, lr=rate, head_lr=0.1 * rate, device="cpu")
        forecast, real = compared(method, stream, plan)
        assert forecast.trust is not None
        errors.append(relative(forecast.drift, real))
        gaps.append(forecast.trust.gap)
    assert cosine(forecast.drift, real) > 0.97
    assert errors[0] < bound
    assert errors[1] > 4 * errors[0]
    assert errors[2] > 4 * errors[1]
    assert gaps == sorted(gaps)
    absurd = TrainingPlan(epochs=2, batch_size=8, optimizer=optimizer, lr=300 * lr, head_lr=lr, device="cpu")
    dynamics = recipe(absurd, len(stream[1].train), 1)
    trust = prepare_forecast(method, stream[0].test, stream[1], modes=0).forecast(dynamics).trust
    assert trust is not None
    assert trust.level == "low"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_refining_until_the_last_step_is_the_truth(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, optimizer: str
) -> None:
    method, stream = begun(tiny_backbone(), tiny_stream, "lora")
    plan = TrainingPlan(epochs=2, batch_size=8, optimizer=optimizer, lr=3e-3, schedule="constant", device="cpu")
    steps = len(recipe(plan, len(stream[1].train), 1).batches)  # type: ignore[attr-defined]
    forecast, real = compared(method, stream, plan, refine=(steps - 1) / steps)
    plain, _ = compared(method, stream, plan)
    half, _ = compared(method, stream, plan, refine=0.5)
    errors = [relative(f.drift, real) for f in (forecast, half, plain)]
    assert errors[0] < 1e-3
    assert errors[0] < errors[1] < errors[2]
    assert forecast.trust is not None
    assert math.isfinite(forecast.trust.pilot_cosine)
    assert forecast.cost.forward_passes > plain.cost.forward_passes


def test_refining_takes_the_memory_of_the_optimiser_along() -> None:
    model, (recipe_of, make) = net("lora"), RECIPES["adamw"]
    prepared = prepare_forecast(model, X_OLD, (X_NEW, LABELS), directions=12, modes=0)
    forecast = prepared.forecast(recipe_of(), refine=9 / STEPS)
    drift, _ = really(model, make)
    forgetful, _ = really(model, make, fresh_at=9)
    assert relative(forecast.drift, drift) < 0.1 * relative(forgetful, drift)
    whole, _ = really(model, make, stop=9)
    assert relative(forecast.drift, drift) < 0.1 * relative(whole, drift)


def test_a_pilot_agrees_where_steps_are_small() -> None:
    model = net("lora")
    prepared = prepare_forecast(model, X_OLD, (X_NEW, LABELS), modes=0)
    trusts = [
        prepared.forecast(SGD(lr=lr, batches=BATCHES, momentum=0.9), refine=0.5).trust for lr in (1e-3, 1e-2, 3.0)
    ]
    cosines = [trust.pilot_cosine for trust in trusts if trust is not None]
    assert cosines[0] > 0.9999
    assert cosines[0] >= cosines[1] > 0.99 > cosines[2]
