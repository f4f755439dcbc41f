"""What SD-LoRA trains, and the ranks of its variant; the forward pass is in tests/nn/test_lora_stack.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import SDLoRA
from tangentcl.nn import Backbone
from tangentcl.training import TrainingPlan, run_stream

PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.02, device="cpu")


def test_past_directions_stay_and_their_magnitudes_learn(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = SDLoRA(tiny_backbone(), rank=2)
    run_stream(method, tiny_stream, PLAN)
    stack = method.stacks["q"]
    for part in (stack.old_A[:2], stack.old_A[2:], stack.old_B[:, :2], stack.old_B[:, 2:]):
        assert float(part.norm()) == pytest.approx(1.0, rel=1e-5)
    assert stack.magnitudes.shape == (3,)
    directions = stack.old_A.clone()
    magnitudes = stack.magnitudes.detach().clone()
    x, y = next(tiny_stream[2].train.batches(8))
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.training_loss(x, y)["cross_entropy"].backward()
    optimizer.step()
    assert torch.equal(stack.old_A, directions)
    assert bool((stack.magnitudes != magnitudes).all())


def test_a_new_task_leaves_the_network_as_it_was(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = SDLoRA(tiny_backbone(), rank=2)
    run_stream(method, tiny_stream, PLAN)
    x, _ = next(tiny_stream[0].test.batches(100))
    method.eval()
    before = method.predict(x)
    for stack in method.stacks.values():
        stack.begin(2)
    torch.testing.assert_close(method.predict(x), before, rtol=0, atol=1e-5)


def test_ranks_by_task(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = SDLoRA(tiny_backbone(), rank=4, reduction=((1, 3), (2, 1)))
    for task, rank in zip(tiny_stream, (4, 3, 1), strict=True):
        method.begin_task(task)
        pairs = [(stack.A, stack.B) for stack in method.stacks.values()]
        assert {len(a.weight) for a, _ in pairs if a is not None} == {rank}
    assert method.stacks["q"].old_A.shape == (7, 16)


@pytest.mark.parametrize("reduction", [((0, 2),), ((1, 9),), ((2, 2), (1, 1)), ((1, 2, 3),), ((1, 0),)])
def test_wrong_reductions(tiny_backbone: Callable[[], Backbone], reduction: Sequence[Sequence[int]]) -> None:
    with pytest.raises(ConfigError, match="reduction needs pairs"):
        SDLoRA(tiny_backbone(), rank=4, reduction=reduction)
