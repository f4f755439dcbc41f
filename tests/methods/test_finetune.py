"""The loss over all or current logits, against its formula; what is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import Finetune
from tangentcl.nn import Backbone


def _second_task(make: Callable[[], Backbone], stream: TaskStream, logits: str) -> Finetune:
    torch.manual_seed(0)
    method = Finetune(make(), tune="head", logits=logits)  # type: ignore[arg-type]
    method.begin_task(stream[0])
    method.begin_task(stream[1])
    return method


@pytest.mark.parametrize(("logits", "allowed"), [("all", [0, 1, 2, 3]), ("current", [2, 3])])
def test_cross_entropy_follows_its_formula(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, logits: str, allowed: list[int]
) -> None:
    method = _second_task(tiny_backbone, tiny_stream, logits)
    x, y = next(tiny_stream[1].train.batches(7))
    scores = (method.backbone(x) @ method.head.weight.T + method.head.bias).double()
    picked = scores[torch.arange(7), y]
    expected = (torch.logsumexp(scores[:, allowed], dim=1) - picked).mean()
    assert method.training_loss(x, y)["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_current_logits_leave_old_rows_without_gradient(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    for logits, old_rows_move in (("all", True), ("current", False)):
        method = _second_task(tiny_backbone, tiny_stream, logits)
        x, y = next(tiny_stream[1].train.batches(7))
        method.training_loss(x, y)["cross_entropy"].backward()
        assert method.head.weight.grad is not None
        assert bool(method.head.weight.grad[:2].any()) == old_rows_move
        assert bool(method.head.weight.grad[2:].any())


def test_what_each_way_of_tuning_trains(tiny_backbone: Callable[[], Backbone]) -> None:
    width, rank = 16, 2
    assert len(Finetune(tiny_backbone(), tune="head").trainable_backbone()) == 0
    lora = Finetune(tiny_backbone(), tune="lora", rank=rank).trainable_backbone()
    assert sum(p.numel() for p in lora.values()) == 2 * (2 * width * rank)  # A and B of query and value
    full = Finetune(tiny_backbone(), tune="full")
    assert all(p.requires_grad for p in full.backbone.parameters())


def test_unknown_choices_name_the_nearest(tiny_backbone: Callable[[], Backbone]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        Finetune(tiny_backbone(), tune="loro")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'current'"):
        Finetune(tiny_backbone(), logits="curent")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="new_bias must be a finite number"):
        Finetune(tiny_backbone(), new_bias=float("nan"))


def test_new_classes_start_at_the_bias_asked_for(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = Finetune(tiny_backbone(), tune="head", new_bias=-2.0)
    method.begin_task(tiny_stream[0])
    assert method.head.bias.tolist() == [0.0, 0.0]  # the same shift of all classes would be none
    with torch.no_grad():
        method.head.bias.fill_(0.5)
    method.begin_task(tiny_stream[1])
    assert method.head.bias.tolist() == [0.5, 0.5, -2.0, -2.0]
