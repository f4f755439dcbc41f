"""The loop: exact continuation, accumulation, clipping, refusal of non-finite losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tangentcl.data import Task, TaskStream
from tangentcl.errors import ConfigError, ModelError, NonFiniteLoss
from tangentcl.methods import Finetune, Method
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TaskFit, TrainingPlan, predicted_classes, run_stream

Events = list[tuple[str, dict[str, Any]]]


def _fit(method: Method, task: Task, plan: TrainingPlan, events: Events | None = None) -> TaskFit:
    runtime = Runtime(device="cpu", precision=plan.precision)
    collect = [] if events is None else events
    return TaskFit(method, task, task.train, plan, runtime, lambda event, fields: collect.append((event, fields)))


def _method(make: Callable[[], Backbone], task: Task, **keywords: Any) -> Finetune:
    torch.manual_seed(0)
    method = Finetune(make(), **{"rank": 2, **keywords})
    method.begin_task(task)
    return method


def _weights(method: Method) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.parameters() if p.requires_grad])


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopping_anywhere_and_continuing_is_bit_equal(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, stop: int, optimizer: str
) -> None:
    plan = TrainingPlan(epochs=3, batch_size=9, optimizer=optimizer, lr=0.02, warmup=2, log_every=4, device="cpu")
    task = tiny_stream[0]
    whole: Events = []
    straight = _method(tiny_backbone, task, dropout=0.3)
    assert _fit(straight, task, plan, whole).run() == 15  # 40 samples in windows of 9: 5 steps, the last of 4 samples

    parts: Events = []
    first = _fit(_method(tiny_backbone, task, dropout=0.3), task, plan, parts)
    first.run(stop_at=stop)
    state = first.state_dict()
    torch.rand(17)  # whatever happens between must not matter
    resumed = _method(tiny_backbone, task, dropout=0.3)
    second = _fit(resumed, task, plan, parts)
    second.load_state_dict(state)
    second.run()

    assert torch.equal(_weights(resumed), _weights(straight))

    def numbers(events: Events) -> list[Any]:
        return [(fields["step"], fields["terms"], fields["lr"]) for _, fields in events]

    assert numbers(parts) == numbers(whole)


def test_accumulated_batches_equal_one_large_batch(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    task = tiny_stream[0]
    results = []
    for batch, accumulate in ((12, 1), (4, 3), (5, 1)):
        plan = TrainingPlan(
            epochs=2, batch_size=batch, accumulate=accumulate, optimizer="sgd", lr=0.1, clip_norm=0.5, device="cpu"
        )
        method = _method(tiny_backbone, task)
        _fit(method, task, plan).run()
        results.append(_weights(method))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(results[2], results[0], rtol=1e-3, atol=1e-4)  # another batch size does differ


def test_one_step_is_the_optimisers_step_on_the_mean_loss(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    task = tiny_stream[0]
    plan = TrainingPlan(
        epochs=1, batch_size=40, optimizer="sgd", lr=0.1, momentum=0.0, schedule="constant", device="cpu"
    )
    method = _method(tiny_backbone, task, tune="head")
    x, y = next(task.train.batches(40))
    features = method.backbone(x)
    weight = method.head.weight.detach().clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(features @ weight.T + method.head.bias.detach(), y)
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = weight.detach() - 0.1 * gradient
    events: Events = []
    _fit(method, task, plan, events).run()
    torch.testing.assert_close(method.head.weight.detach(), expected)
    assert events[-1][1]["terms"]["cross_entropy"] == pytest.approx(loss.item(), rel=1e-6)


def test_the_head_rate_reaches_what_lies_outside_the_backbone(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    task = tiny_stream[0]
    method = _method(tiny_backbone, task)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    _fit(method, task, TrainingPlan(epochs=1, batch_size=8, lr=0.0, head_lr=0.1, device="cpu")).run()
    moved = {name for name, p in method.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_clipping_bounds_the_step(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    task = tiny_stream[0]
    plan = TrainingPlan(
        epochs=1,
        batch_size=40,
        optimizer="sgd",
        lr=1.0,
        momentum=0.0,
        schedule="constant",
        clip_norm=1e-3,
        device="cpu",
    )
    method = _method(tiny_backbone, task)
    before = _weights(method)
    _fit(method, task, plan).run()
    assert (_weights(method) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_mixed_precision_trains_close_to_full(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    task = tiny_stream[0]
    weights = {}
    for precision in ("fp32", "bf16"):
        plan = TrainingPlan(epochs=2, batch_size=8, optimizer="sgd", lr=0.05, precision=precision, device="cpu")
        method = _method(tiny_backbone, task)
        _fit(method, task, plan).run()
        weights[precision] = _weights(method)
        assert weights[precision].dtype == torch.float32
    difference = (weights["bf16"] - weights["fp32"]).norm() / weights["fp32"].norm()
    assert 0 < difference < 0.05


class _Exploding(Finetune):
    def training_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        terms = super().training_loss(x, y)
        self.calls = getattr(self, "calls", 0) + 1
        return {**terms, "penalty": terms["cross_entropy"] * (float("inf") if self.calls == 3 else 0.0)}


def test_a_non_finite_term_is_named_with_task_and_step(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    plan = TrainingPlan(epochs=2, batch_size=8, device="cpu")
    with pytest.raises(NonFiniteLoss, match=r"'penalty' became (inf|nan) at step 3 of 10 of task 0 \('T1'\)"):
        run_stream(_Exploding(tiny_backbone(), rank=2), tiny_stream, plan)


def test_nan_scores_are_refused_by_evaluation(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = _method(tiny_backbone, tiny_stream[0])
    with torch.no_grad():
        method.head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="gave NaN for sample"):
        predicted_classes(method, tiny_stream[0].test, Runtime(device="cpu"))


def test_devices_and_precisions_that_are_absent() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"'cuda', which this machine does not have\. It has: cpu"):
            Runtime(device="cuda")
    with pytest.raises(ConfigError, match="'fp16' needs CUDA"):
        Runtime(device="cpu", precision="fp16")


def test_batches_made_by_workers_are_the_same(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    task = tiny_stream[0]
    results = []
    for workers in (0, 2):
        method = _method(tiny_backbone, task)
        _fit(method, task, TrainingPlan(epochs=1, batch_size=8, workers=workers, device="cpu")).run()
        results.append(_weights(method))
    assert torch.equal(results[0], results[1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_trains_as_the_cpu_does(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, precision: str
) -> None:
    matrices = []
    for device, kind in (("cpu", "fp32"), ("cuda", precision)):
        torch.manual_seed(0)
        plan = TrainingPlan(epochs=4, batch_size=8, lr=0.01, device=device, precision=kind)
        matrices.append(run_stream(Finetune(tiny_backbone(), rank=2), tiny_stream, plan).matrix)
    assert abs(matrices[0][2, :3] - matrices[1][2, :3]).max() < 0.2
