"""The penalty by hand; what it does to the directions of a new task."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import OLoRA
from tangentcl.methods.olora import direction_overlap
from tangentcl.nn import Backbone
from tangentcl.training import TrainingPlan, run_stream


def test_overlap_by_hand() -> None:
    old = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    new = torch.tensor([[1.0, -3.0, 1.0]])  # products 3 and -3
    assert direction_overlap(old, new).item() == 18.0
    assert direction_overlap(old, new, "absolute").item() == 6.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert direction_overlap(old + 1e-3, new).dtype == torch.float32


@pytest.mark.parametrize("penalty", ["squared", "absolute"])
def test_penalty_sums_over_layers_and_all_earlier_tasks(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, penalty: str
) -> None:
    method = OLoRA(tiny_backbone(), rank=2, strength=0.3, penalty=penalty)  # type: ignore[arg-type]
    pairs: list[list[torch.Tensor]] = []
    batch = next(tiny_stream[0].train.batches(6))
    for task in tiny_stream:
        method.begin_task(task)
        terms = method.training_loss(batch[0], batch[1] + task.classes[0])
        now = [stack.pair[0].weight.detach().double() for stack in method.stacks.values()]
        products = [old @ new.T for earlier in pairs for old, new in zip(earlier, now, strict=True)]
        power = 2 if penalty == "squared" else 1
        expected = 0.3 * sum(float(product.abs().pow(power).sum()) for product in products)
        if task.index == 0:
            assert set(terms) == {"cross_entropy"}
        else:
            assert terms["orthogonality"].item() == pytest.approx(expected, rel=1e-5)
        pairs.append([a.clone() for a in now])


def test_a_strong_penalty_makes_directions_orthogonal(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    overlaps = []
    for strength in (0.0, 10.0):
        torch.manual_seed(0)
        method = OLoRA(tiny_backbone(), rank=2, strength=strength)
        run_stream(method, tiny_stream, TrainingPlan(epochs=4, batch_size=8, lr=0.01, device="cpu"))
        overlaps.append(float(method.overlap()))
    assert overlaps[1] < 0.02 * overlaps[0]


def test_old_directions_stay(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = OLoRA(tiny_backbone(), rank=2)
    method.begin_task(tiny_stream[0])
    first = [stack.pair[0].weight.detach().clone() for stack in method.stacks.values()]
    method.begin_task(tiny_stream[1])
    method.begin_task(tiny_stream[2])
    for a, stack in zip(first, method.stacks.values(), strict=True):
        assert stack.old_A.shape == (4, 16)
        assert torch.equal(stack.old_A[:2], a)


def test_wrong_settings(tiny_backbone: Callable[[], Backbone]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'squared'"):
        OLoRA(tiny_backbone(), penalty="square")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="strength"):
        OLoRA(tiny_backbone(), strength=-1.0)
