"""DualPrompt: whose expert a sample gets, in training and at test, and what stays frozen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods import DualPrompt
from tangentcl.nn import Backbone
from tangentcl.nn.prefix import prefixed

Make = Callable[[], Backbone]


def _second_task(make: Make, stream: TaskStream) -> DualPrompt:
    method = DualPrompt(make(), general_length=2, expert_length=3, pull=0.7)
    for task in stream.tasks[:2]:
        method.begin_task(task)
    return method


def _with_expert(method: DualPrompt, x: torch.Tensor, expert: int) -> torch.Tensor:
    """Features of samples that all have the expert of one task."""
    n, general, own = len(x), method.general.groups[0][0], method.experts.groups[expert][0]  # [1, 2, P, d]
    prefixes = {0: (general[0, 0].expand(n, -1, -1), general[0, 1].expand(n, -1, -1))}
    prefixes[1] = (own[0, 0].expand(n, -1, -1), own[0, 1].expand(n, -1, -1))
    return prefixed(method.trunk.model, method.trunk.embed(x), prefixes)


def test_training_takes_the_known_task_whatever_the_keys_say(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _second_task(tiny_blocks, tiny_stream)
    x, y = next(tiny_stream[1].train.batches(6))
    query = method.trunk.backbone(x)
    with torch.no_grad():
        method.keys[0].copy_(query.mean(0))  # every sample is nearest to the old key
        method.keys[1].copy_(-query.mean(0))
    assert method.nearest_task(x).tolist() == [0] * 6
    terms = method.training_loss(x, y)
    logits = method.head(_with_expert(method, x, 1))[:, 2:]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, y - 2), rtol=1e-5, atol=1e-6)
    cosine = torch.stack([q @ method.keys[1] / (q.norm() * method.keys[1].norm()) for q in query])
    assert terms["pull"].item() == pytest.approx(0.7 * (1 - cosine).mean().item(), rel=1e-5)


def test_at_test_each_sample_takes_the_expert_of_its_nearest_key(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _second_task(tiny_blocks, tiny_stream)
    x = torch.cat([next(task.train.batches(4))[0] for task in tiny_stream.tasks[:2]])
    query = method.trunk.backbone(x)
    with torch.no_grad():
        method.keys[0].copy_(query[0])
        method.keys[1].copy_(query[5])
    nearest = [int(F.cosine_similarity(q[None], torch.stack([query[0], query[5]])).argmax()) for q in query]
    assert set(nearest) == {0, 1}
    assert method.nearest_task(x).tolist() == nearest
    expected = torch.stack([_with_expert(method, x[i : i + 1], t)[0] for i, t in enumerate(nearest)])
    torch.testing.assert_close(method.features(x), expected, rtol=1e-5, atol=1e-5)
    assert (_with_expert(method, x, 0) - _with_expert(method, x, 1)).abs().max() > 1e-2


def test_earlier_experts_and_keys_are_frozen_and_general_prompts_are_not(
    tiny_blocks: Make, tiny_stream: TaskStream
) -> None:
    method = _second_task(tiny_blocks, tiny_stream)
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert trained == {"general.groups.0", "experts.groups.1", "keys.1", "head.weight", "head.bias"}


def test_blocks_follow_the_depth_and_must_not_overlap(tiny_blocks: Make) -> None:
    from tangentcl.nn import backbone

    bundled = DualPrompt(backbone("bundled"))
    assert (bundled.general.blocks, bundled.experts.blocks) == ((0,), (1, 2))
    with pytest.raises(ConfigError, match=r"general_blocks \[0\] and expert_blocks \[0\] must not overlap"):
        DualPrompt(tiny_blocks(), general_blocks=[0], expert_blocks=[0])
    with pytest.raises(ConfigError, match="expert_blocks must be different block indices from 0 to 1"):
        DualPrompt(tiny_blocks(), expert_blocks=[2])
    with pytest.raises(ModelError, match="begin_task"):
        DualPrompt(tiny_blocks()).training_loss(torch.zeros(1, 3, 4), torch.zeros(1, dtype=torch.long))
