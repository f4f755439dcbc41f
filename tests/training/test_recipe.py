"""The recipe of a plan is what the loop does: rates, samples and the drift of a linear head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.forecast import SGD, AdamW
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TaskFit, TrainingPlan, recipe, recipe_notes

PLANS = {
    "sgd, cosine, warm-up": TrainingPlan(epochs=3, batch_size=9, optimizer="sgd", lr=0.05, warmup=3, device="cpu"),
    "nesterov, accumulated": TrainingPlan(
        epochs=2, batch_size=4, accumulate=3, optimizer="sgd", nesterov=True, lr=0.1, warmup=0.1, device="cpu"
    ),
    "nesterov without momentum": TrainingPlan(
        epochs=1, batch_size=8, optimizer="sgd", momentum=0.0, nesterov=True, weight_decay=0.1, device="cpu"
    ),
    "adamw, milestones": TrainingPlan(
        epochs=2, batch_size=8, schedule="step", betas=(0.8, 0.99), weight_decay=0.1, seed=4, device="cpu"
    ),
}


class Watched(Finetune):
    """Notes the labels of every batch."""

    seen: list[list[int]]

    def training_loss(self, x: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(y.tolist())
        return super().training_loss(x, y)


@pytest.mark.parametrize("name", PLANS)
def test_rates_and_batches_are_those_of_the_loop(
    name: str, tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    plan, task = PLANS[name], tiny_stream[1]
    method = Watched(tiny_backbone(), tune="head")
    method.seen = []
    for earlier in tiny_stream.tasks[:2]:
        method.begin_task(earlier)
    rates: list[float] = []
    fit = TaskFit(method, task, task.train, plan, Runtime(device="cpu"), lambda *_: None)
    step = fit.optimizer.step
    fit.optimizer.step = lambda: (rates.append(fit.schedule.get_last_lr()[0]), step())  # type: ignore
    fit.run()
    found = recipe(plan, len(task.train), task.index)
    assert isinstance(found, (SGD, AdamW))
    assert found.batches is not None
    assert list(found.lr) == pytest.approx(rates, rel=1e-12)  # type: ignore[arg-type]
    seen = iter(method.seen)
    per_step = [[label for _ in range(-(-len(b) // plan.batch_size)) for label in next(seen)] for b in found.batches]
    assert per_step == [task.train.labels[list(batch)].tolist() for batch in found.batches]
    assert next(seen, None) is None
    settings = fit.optimizer.param_groups[0]
    if isinstance(found, AdamW):
        assert (found.betas, found.eps, found.weight_decay) == tuple(
            settings[k] for k in ("betas", "eps", "weight_decay")
        )
    else:
        assert (found.momentum, found.nesterov, found.weight_decay) == tuple(
            settings[k] for k in ("momentum", "nesterov", "weight_decay")
        )


def test_what_a_recipe_leaves_out_is_said() -> None:
    assert recipe_notes(TrainingPlan()) == ()
    notes = recipe_notes(TrainingPlan(clip_norm=0.5, precision="bf16"))
    assert [("0.5 are clipped" in note, "bf16" in note) for note in notes] == [(True, False), (False, True)]


def test_two_learning_rates() -> None:
    for optimizer in ("sgd", "adamw"):
        plan = TrainingPlan(optimizer=optimizer, epochs=3, batch_size=4, lr=0.1, head_lr=0.2, schedule="cosine")
        found = recipe(plan, 4, 0)
        assert isinstance(found, (SGD, AdamW))
        assert found.lr == pytest.approx((0.1, 0.075, 0.025))
        assert found.head_lr == pytest.approx((0.2, 0.15, 0.05))
