"""Local forecasts of all kinds of models and batches; what stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, DataError
from tangentcl.forecast import SGD, AdamW, Dynamics, GradientDescent, forecast_forgetting, prepare_forecast
from tangentcl.methods import Finetune, Replay
from tangentcl.nn import Backbone, CosineLinear, GrowingLinear
from tangentcl.training import Runtime, TaskFit, TrainingPlan, recipe

Outputs = Callable[[nn.Module, Any], Tensor]
BATCHES = [[0, 1, 2], [3, 4, 5], [5, 0, 3], [2, 4, 1]] * 2
LR = 2e-3
LABELS = torch.tensor([0, 1, 2, 2, 1, 2])


def rows_of(x: Any, rows: Sequence[int]) -> Any:
    if isinstance(x, Tensor):
        return x[list(rows)]
    if isinstance(x, dict):
        return {key: value[list(rows)] if isinstance(value, Tensor) else value for key, value in x.items()}
    return type(x)(value[list(rows)] for value in x)


def call(model: nn.Module, x: Any) -> Tensor:
    return model(x)


def truth(
    model: nn.Module,
    old: Any,
    new: Any,
    targets: Tensor = LABELS,
    *,
    outputs: Outputs = call,
    batches: Sequence[Sequence[int]] = BATCHES,
    lr: float = LR,
) -> Tensor:
    """Drift of really training a copy by SGD."""
    learner = copy.deepcopy(model).eval()
    before = outputs(learner, old).detach()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=lr, momentum=0.5)
    for rows in batches:
        optimizer.zero_grad()
        f, y = outputs(learner, rows_of(new, rows)), targets[list(rows)]
        squared = targets.is_floating_point()
        loss = 0.5 * (f - y).square().sum(dim=1).mean() if squared else F.cross_entropy(f.float(), y)
        loss.backward()
        optimizer.step()
    return outputs(learner, old).detach() - before


def sgd(loss: str = "cross_entropy", lr: float = LR, batches: Sequence[Sequence[int]] = BATCHES) -> Dynamics:
    return SGD(lr=lr, batches=batches, momentum=0.5, loss=loss)


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(n_outputs: int = 3, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, n_outputs)]
    return nn.Sequential(*layers, *([] if last is None else [last])).double()


OLD, NEW = draw(5, 4), draw(6, 4, seed=1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(torch.tanh(self.a(a) * scale + self.b(b)))


@pytest.mark.parametrize("kind", ["dict", "tuple", "list"])
def test_batches_with_several_tensors(kind: str) -> None:
    torch.manual_seed(0)
    model = TwoInputs().double()
    second = {id(OLD): OLD.roll(1, 0), id(NEW): NEW.roll(1, 0)}

    def batch(x: Tensor) -> Any:
        if kind == "dict":
            return {"a": x, "b": second[id(x)], "scale": 0.7}
        return (x, second[id(x)], x) if kind == "tuple" else [x, second[id(x)]]

    outputs: Outputs = (lambda m, b: m(**b)) if kind == "dict" else (lambda m, b: m(b[0], b[1]))
    forecast = forecast_forgetting(model, batch(OLD), (batch(NEW), LABELS), sgd(), outputs=outputs)
    assert forecast.form == "bilinear"
    assert relative(forecast.drift, truth(model, batch(OLD), batch(NEW), outputs=outputs)) < 5e-3


def test_a_pair_of_backbone_and_head() -> None:
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()).double(), GrowingLinear(8)
    head.grow(3)
    head.double()
    forecast = forecast_forgetting((body, head), (OLD, LABELS[:5]), (NEW, LABELS), sgd())
    assert forecast.form == "bilinear"
    assert relative(forecast.drift, truth(nn.Sequential(body, head), OLD, NEW)) < 5e-3
    assert forecast.accuracy()[0] == float((nn.Sequential(body, head)(OLD).argmax(1) == LABELS[:5]).double().mean())


def _classifier(saved: bool) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        initializer_range=0.3,  # a wider draw than by default, so that attention matters in so small a model
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    lora = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["query", "value"],
        task_type="SEQ_CLS" if saved else None,
        modules_to_save=["classifier"] if saved else None,
    )
    adapted = peft.get_peft_model(model, lora).double()
    g = torch.Generator().manual_seed(3)

    def batch(n: int) -> dict[str, Tensor]:
        ids = torch.randint(1, 30, (n, 7), generator=g)
        mask = (torch.arange(7) < torch.randint(3, 8, (n, 1), generator=g)).long()
        return {"input_ids": ids * mask, "attention_mask": mask}

    return adapted, batch(5), batch(6)


def logits(model: Any, batch: Any) -> Tensor:
    return model(**batch).logits


@pytest.mark.parametrize("saved", [True, False], ids=["head trains", "head is frozen"])
def test_a_peft_model_of_transformers(saved: bool) -> None:
    model, old, new = _classifier(saved)
    prepared = prepare_forecast(model, old, (new, LABELS), outputs=logits, directions=16)
    head = model.base_model.model.classifier
    assert prepared._setting.head is (head.modules_to_save["default"] if saved else head)
    lr = 0.01 if saved else 0.002
    forecast, real = prepared.forecast(sgd(lr=lr)), truth(model, old, new, outputs=logits, lr=lr)
    assert relative(forecast.drift, real) < 0.02
    assert float(real.norm() / model(**old).logits.detach().norm()) > 1e-3
    if saved:  # a good part of the drift is the adapter's
        for name, p in (alone := copy.deepcopy(model)).named_parameters():
            p.requires_grad_("classifier" in name and p.requires_grad)
        assert relative(truth(alone, old, new, outputs=logits, lr=lr), real) > 0.1
    assert forecast.notes[0] == "training runs dropout, in the forecast none is"


@pytest.mark.parametrize("padding", [None, 0])
def test_embeddings_that_train(padding: int | None) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6, padding_idx=padding), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embed(x).sum(dim=1)))

    torch.manual_seed(0)
    model = Bag().double()
    old = torch.tensor([[1, 0, 0], [3, 3, 0], [5, 6, 8]])
    new = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 0, 0], [7, 0, 0], [8, 2, 0], [2, 2, 3]])
    forecast = forecast_forgetting(model, old, (new, LABELS), sgd(lr=1e-3))
    assert relative(forecast.drift, truth(model, old, new, lr=1e-3)) < 1e-3


@pytest.mark.parametrize("last", [nn.Softplus(), CosineLinear(3)], ids=["softplus", "cosine"])
def test_a_model_without_a_linear_head(last: nn.Module) -> None:
    torch.manual_seed(0)
    if isinstance(last, CosineLinear):
        last.grow(3)
        nn.init.normal_(last.weight)
    model = mlp(last=last.double())
    prepared = prepare_forecast(model, OLD, (NEW, LABELS))
    assert prepared._setting.head is None
    assert prepared.form == "bilinear"
    assert relative(prepared.forecast(sgd(lr=1e-6)).drift, truth(model, OLD, NEW, lr=1e-6)) < 1e-2


def test_values_as_targets() -> None:
    model, y = mlp(), draw(6, 3, seed=4)
    forecast = forecast_forgetting(model, OLD, (NEW, y), sgd("squared_error"))
    assert relative(forecast.drift, truth(model, OLD, NEW, y)) < 5e-3
    assert forecast.labels is None
    with pytest.raises(DataError, match=r"targets \[6, 3\], got \[6, 2\]"):
        forecast_forgetting(model, OLD, (NEW, y[:, :2]), sgd("squared_error"))


def test_batches_and_tasks_of_one_sample_and_more_classes_than_samples() -> None:
    model, labels = mlp(n_outputs=19), torch.tensor([17])
    single = [[0]] * 4
    forecast = forecast_forgetting(model, OLD[:1], (NEW[:1], labels), sgd(batches=single, lr=2e-4))
    assert forecast.drift.shape == (1, 19)
    assert relative(forecast.drift, truth(model, OLD[:1], NEW[:1], labels, batches=single, lr=2e-4)) < 5e-3
    plain = prepare_forecast(mlp(19, nn.Softplus()), OLD[:1], (NEW[:1], labels)).forecast(sgd(batches=single))
    real = truth(mlp(19, nn.Softplus()), OLD[:1], NEW[:1], labels, batches=single)
    assert relative(plain.drift, real) < 0.5  # sixteen of nineteen outputs of a new sample are followed


def test_bfloat16_models_are_followed_in_float32() -> None:
    model = mlp().float()
    wide = forecast_forgetting(model, OLD.float(), (NEW.float(), LABELS), sgd(lr=0.05))
    half = copy.deepcopy(model).bfloat16()
    before = copy.deepcopy(half.state_dict())
    for outputs in (None, lambda m, x: m(x).float()):
        prepared = prepare_forecast(half, OLD.bfloat16(), (NEW.bfloat16(), LABELS), outputs=outputs, modes=0)
        forecast = prepared.forecast(sgd(lr=0.05))
        assert forecast.drift.dtype == torch.float32
        assert relative(forecast.drift, wide.drift) < 0.1
        moved = prepared._localised("cross_entropy", None).parameters_after(sgd(lr=1e-6))
        start = dict(half.named_parameters())["0.weight"].detach().float()
        assert 0 < float((moved["0.weight"] - start).norm()) < 1e-4  # steps below the rounding of bfloat16 add up
    assert all(torch.equal(before[key], value) for key, value in half.state_dict().items())


@pytest.mark.parametrize("kind", ["replay", "current"])
def test_methods_with_stored_samples_or_some_outputs_in_the_loss(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, kind: str
) -> None:
    torch.manual_seed(0)
    method: Any = (
        Replay(tiny_backbone(), budget=8, targets=("q", "v"))
        if kind == "replay"
        else Finetune(tiny_backbone(), logits="current", targets=("q", "v"))
    )
    plan = TrainingPlan(epochs=3, batch_size=8, lr=3e-3, device="cpu")

    def learn(learner: Any, task: Any) -> None:
        TaskFit(learner, task, learner.training_samples(task), plan, Runtime(device="cpu"), lambda *_: None).run()
        learner.eval()

    method.begin_task(tiny_stream[0])
    learn(method, tiny_stream[0])
    method.end_task(tiny_stream[0])
    method.begin_task(tiny_stream[1])
    old, task = tiny_stream[0].test, tiny_stream[1]
    n = len(method.training_samples(task))
    assert n == 40 + 8 * (kind == "replay")
    prepared = prepare_forecast(method, old, task)
    forecast = prepared.forecast(recipe(plan, n, task.index))
    assert forecast.seen == 2
    assert prepared.columns("cross_entropy") == (None if kind == "replay" else task.classes)

    def outputs() -> Tensor:
        with torch.no_grad():
            return torch.cat([method.predict(x) for x, _ in old.batches(8)])

    method.eval()
    before = outputs()
    learn(method, task)
    assert relative(forecast.drift, outputs() - before) < 0.05


def test_nothing_changes_and_forecasts_repeat() -> None:
    class Counted(nn.Module):
        """With a buffer, dropout, batch statistics and a frozen part."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
            self.head = nn.Linear(8, 3)
            self.first.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(torch.tanh(self.norm(self.first(x)))))

    torch.manual_seed(0)
    model = Counted().double().train()
    model.norm.eval()
    model(OLD)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    generator, old = torch.get_rng_state(), OLD.clone()

    recipes = [sgd(lr=0.05), AdamW(lr=0.01, batches=BATCHES, head_lr=0.1), sgd(lr=0.05)]
    prepared = prepare_forecast(model, OLD, (NEW, LABELS))
    shared = [prepared.forecast(r, refine=refine) for r in recipes for refine in (0.0, 0.4)]
    fresh = [forecast_forgetting(model, OLD, (NEW, LABELS), r, refine=refine) for r in recipes for refine in (0.0, 0.4)]
    for one, other in zip(shared, fresh):
        assert torch.equal(one.drift, other.drift)
        assert one.trust is not None
        assert other.trust is not None
        assert one.trust.gap == other.trust.gap
        assert torch.equal(one.vulnerability.energy, other.vulnerability.energy)
    assert torch.equal(shared[0].drift, shared[4].drift)
    with pytest.raises(ConfigError):
        prepared.forecast(sgd("squared_error", lr=1e30))

    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(OLD, old)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_forms_can_be_chosen() -> None:
    model = mlp()
    found = {
        form: forecast_forgetting(model, OLD, (NEW, LABELS), sgd(lr=1e-4), form=form)  # type: ignore[arg-type]
        for form in ("auto", "bilinear", "ntk")
    }
    assert [f.form for f in found.values()] == ["bilinear", "bilinear", "ntk"]
    assert torch.equal(found["auto"].drift, found["bilinear"].drift)
    assert relative(found["ntk"].drift, found["bilinear"].drift) < 1e-3
    model[:3].requires_grad_(False)
    both = [forecast_forgetting(model, OLD, (NEW, LABELS), sgd(), form=form) for form in ("auto", "bilinear")]  # type: ignore[arg-type]
    assert [f.exact for f in both] == [True, False]
    assert relative(both[1].drift, both[0].drift) < 1e-12
    descent = forecast_forgetting(model, OLD, (NEW, LABELS), GradientDescent(lr=1e-4, steps=2), form="ntk")
    assert (
        relative(descent.drift, forecast_forgetting(model, OLD, (NEW, LABELS), GradientDescent(lr=1e-4, steps=2)).drift)
        < 1e-9
    )
