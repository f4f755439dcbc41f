"""L2SP: its penalty and gradient by hand, its two references, the rows it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import L2SP
from tangentcl.nn import Backbone

Make = Callable[[], Backbone]


def _at_second_task(make: Make, stream: TaskStream, **keywords: Any) -> tuple[L2SP, dict[str, torch.Tensor]]:
    """A method in its second task, displaced from what the first left, and what that was."""
    method = L2SP(make(), rank=2, **keywords)
    method.begin_task(stream[0])
    start = {name: p.detach().clone() for name, p in method.learner.named_parameters() if p.requires_grad}
    _displace(method)
    left = {name: p.detach().clone() for name, p in method.learner.named_parameters() if p.requires_grad}
    method.end_task(stream[0])
    method.begin_task(stream[1])
    _displace(method)
    backbone = start if keywords.get("reference") == "pretrained" else left
    return method, {name: (left if name.startswith("head.") else backbone)[name] for name in left}


def _displace(method: L2SP) -> None:
    with torch.no_grad():
        for p in method.learner.parameters():
            if p.requires_grad:
                p += torch.randn_like(p)


@pytest.mark.parametrize("reference", ["last", "pretrained"])
def test_penalty_and_gradient_by_hand(tiny_backbone: Make, tiny_stream: TaskStream, reference: str) -> None:
    method, before = _at_second_task(tiny_backbone, tiny_stream, strength=0.6, reference=reference)
    x, y = next(tiny_stream[1].train.batches(4))
    penalty = method.training_loss(x, y)["l2sp"]
    now = dict(method.learner.named_parameters())
    moved = {name: now[name].detach()[: len(value)] - value for name, value in before.items()}
    torch.testing.assert_close(penalty.detach(), 0.3 * sum((m**2).sum() for m in moved.values()))
    penalty.backward()
    for name, change in moved.items():
        gradient = now[name].grad
        assert gradient is not None
        torch.testing.assert_close(gradient[: len(change)], 0.6 * change)
        assert not gradient[len(change) :].any(), "rows of new classes are free"
    assert now["head.weight"].grad.shape[0] == 4  # type: ignore[union-attr]


def test_the_first_task(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    x, y = next(tiny_stream[0].train.batches(4))
    free = L2SP(tiny_backbone(), rank=2)
    free.begin_task(tiny_stream[0])
    assert free.training_loss(x, y).keys() == {"cross_entropy"}
    ball = L2SP(tiny_backbone(), rank=2, reference="pretrained", strength=2.0)
    ball.begin_task(tiny_stream[0])
    assert ball.training_loss(x, y)["l2sp"].item() == 0.0
    with torch.no_grad():
        next(p for p in ball.learner.trainable_backbone().values()).view(-1)[0] += 3.0
        ball.learner.head.weight += 1.0  # has no pre-trained value
    torch.testing.assert_close(ball.training_loss(x, y)["l2sp"].item(), 9.0, rtol=1e-5, atol=0)
    head = L2SP(tiny_backbone(), tune="head", reference="pretrained")
    head.begin_task(tiny_stream[0])
    assert head.training_loss(x, y).keys() == {"cross_entropy"}


def test_it_remembers_one_copy_of_what_trains(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method, _ = _at_second_task(tiny_backbone, tiny_stream)
    assert method.state_bytes == 2 * method.learner.state_bytes


def test_impossible_settings(tiny_backbone: Make) -> None:
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        L2SP(tiny_backbone(), strength=-1)
    with pytest.raises(ConfigError, match="Did you mean 'pretrained'"):
        L2SP(tiny_backbone(), reference="pretraind")  # type: ignore[arg-type]
