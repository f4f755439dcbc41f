"""New tasks do not move what adapted layers put out on old inputs; the old space against its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentcl.data import ArrayTransform, TaskStream, class_incremental, from_arrays
from tangentcl.errors import ConfigError
from tangentcl.methods import InfLoRA
from tangentcl.methods.inflora import OldSpace
from tangentcl.nn import Backbone
from tangentcl.nn.layer_inputs import layer_inputs
from tangentcl.nn.lora_stack import LoRAStack
from tangentcl.training import Runtime, TrainingPlan
from tangentcl.training.stream import ignore, learn_task

PLAN = TrainingPlan(epochs=3, batch_size=8, lr=0.05, device="cpu", seed=0)


def _learn(method: InfLoRA, stream: TaskStream, index: int) -> None:
    learn_task(method, stream[index], PLAN, Runtime(device="cpu"), ignore)
    method.eval()


def _seen(method: InfLoRA, stream: TaskStream, index: int) -> dict[str, Tensor]:
    """Inputs of the adapted layers on a task's samples, [n, d]."""
    rows: dict[str, list[Tensor]] = {name: [] for name in method.stacks}
    with torch.no_grad(), layer_inputs(method.stacks, lambda name, x, _: rows[name].append(x)):
        for x, _ in stream[index].train_eval.batches(100):
            method.learner.backbone(x)
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _narrow_stream() -> TaskStream:
    """Tokens of the first two classes have two numbers of four; those of the next task have all."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    x = (rng.normal(size=(4, 3, 4))[labels] * 2 + rng.normal(size=(80, 3, 4))).astype(np.float32)
    x[labels < 2, :, 2:] = 0.0
    stream = class_incremental(from_arrays(x, labels, x, labels, name="narrow", modality="array"), n_tasks=2)
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


def test_old_outputs_do_not_move_when_everything_is_kept(tiny_backbone: Callable[[], Backbone]) -> None:
    stream = _narrow_stream()
    method = InfLoRA(tiny_backbone(), rank=3, energy=1.0, targets=("query",))
    stack = method.stacks["q"]
    _learn(method, stream, 0)
    old = _seen(method, stream, 0)["q"]
    assert torch.linalg.matrix_rank(old.double(), rtol=1e-5) == 3  # two numbers and the bias of the embedding, of 16
    before, weight = stack(old).detach(), _product(stack)
    _learn(method, stream, 1)
    new = _seen(method, stream, 1)["q"]
    learned = stack.merged + _product(stack) - weight
    assert float((new @ learned.T).norm()) > 0.1
    torch.testing.assert_close(stack(old), before, rtol=0, atol=1e-5)
    assert stack.pair[0].weight.norm(dim=1).tolist() == pytest.approx([3**-0.5, 3**-0.5, 0.0])  # two new directions


def test_where_old_inputs_span_all_that_new_ones_do_nothing_moves(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = InfLoRA(tiny_backbone(), rank=3, energy=1.0, targets=("query",))
    _learn(method, tiny_stream, 0)
    _learn(method, tiny_stream, 1)
    assert not method.stacks["q"].pair[0].weight.any()
    assert not method.stacks["q"].pair[1].weight.any()


def _product(stack: LoRAStack) -> Tensor:
    a, b = stack.pair
    return (b.weight @ a.weight).detach()


@pytest.mark.parametrize("energy", [0.6, 0.9])
def test_what_gets_through_is_bounded_by_the_energy_left_out(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream, energy: float
) -> None:
    method = InfLoRA(tiny_backbone(), rank=3, energy=energy, targets=("fc1", "fc2"))
    _learn(method, tiny_stream, 0)
    old = _seen(method, tiny_stream, 0)
    before = {name: stack(old[name]).detach() for name, stack in method.stacks.items()}
    _learn(method, tiny_stream, 1)
    for name, stack in method.stacks.items():
        change = float((stack(old[name]).detach() - before[name]).norm())
        limit = float(torch.linalg.matrix_norm(_product(stack), 2)) * ((1 - energy) ** 0.5) * float(old[name].norm())
        assert 0 < change <= limit * (1 + 1e-4)


def test_only_the_output_side_trains_and_the_input_side_is_main_new_directions(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = InfLoRA(tiny_backbone(), rank=2, targets=("fc2",))
    stack = method.stacks["fc2"]
    method.begin_task(tiny_stream[0])
    assert not stack.pair[0].weight.any()
    method.training_samples(tiny_stream[0])
    a = stack.pair[0].weight
    assert [p.requires_grad for p in (a, stack.pair[1].weight)] == [False, True]
    rows = _seen(method.eval(), tiny_stream, 0)["fc2"].double()
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:2]
    cosines = (3**0.5 * a.double() * expected).sum(dim=1).abs()
    torch.testing.assert_close(cosines, torch.ones(2).double(), rtol=0, atol=1e-5)


def test_asking_again_for_samples_leaves_a_trained_pair_alone(
    tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream
) -> None:
    method = InfLoRA(tiny_backbone(), rank=2)
    _learn(method, tiny_stream, 0)
    before = [stack.pair[0].weight.clone() for stack in method.stacks.values()]
    method.training_samples(tiny_stream[1])
    assert all(torch.equal(a, stack.pair[0].weight) for a, stack in zip(before, method.stacks.values()))


def test_old_space_against_its_definition() -> None:
    torch.manual_seed(1)
    space, kept = OldSpace(6), torch.zeros(6, 6).double()
    for share in (0.5, 0.8, 0.9, 0.95):
        rows = torch.randn(40, 6).double() * torch.rand(6).double() ** 3
        moment = rows.T @ rows
        off = torch.eye(6).double() - kept
        values, vectors = torch.linalg.eigh(off @ moment @ off)
        values, vectors = values.flip(0), vectors.flip(1)
        k = 0
        while float((kept * moment).sum() + values[:k].sum()) < share * float(moment.trace()):
            k += 1
        kept = kept + vectors[:, :k] @ vectors[:, :k].T
        space.extend(moment, share)
        torch.testing.assert_close(space.projector.double(), kept, rtol=0, atol=1e-6)
    projector = space.projector
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-6)


def test_full_old_space_leaves_nothing_to_learn_in() -> None:
    space = OldSpace(4)
    space.extend(torch.eye(4), share=1.0)
    assert not space.unused(torch.randn(4, 4).double().square(), rank=2).any()
    before = space.projector.clone()
    space.extend(torch.eye(4), share=1.0)
    assert torch.equal(space.projector, before)


def test_share_grows_with_the_tasks(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = InfLoRA(tiny_backbone(), rank=2, energy=0.7)
    shares: list[float] = []
    for space in method._spaces():
        space.extend = lambda moment, share: shares.append(share)  # type: ignore[method-assign]
    for task in tiny_stream:
        method.begin_task(task)
        method.end_task(task)
    assert shares[::2] == pytest.approx([0.7, 0.8, 0.9])


def test_old_spaces_count_in_the_state(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    method = InfLoRA(tiny_backbone(), rank=2)
    method.begin_task(tiny_stream[0])
    layers, head = 2, 4 * (2 * 16 + 2)
    per_layer = 4 * (16 * 16 + 16 * 16 + 2 * (2 * 16))  # projector, merged, A and B
    assert method.state_bytes == layers * per_layer + head


def test_wrong_settings(tiny_backbone: Callable[[], Backbone]) -> None:
    with pytest.raises(ConfigError, match="energy"):
        InfLoRA(tiny_backbone(), energy=1.2)
    with pytest.raises(ConfigError, match="rank"):
        InfLoRA(tiny_backbone(), rank=0)
    with pytest.raises(ConfigError, match="Did you mean 'current'"):
        InfLoRA(tiny_backbone(), logits="curent")  # type: ignore[arg-type]
