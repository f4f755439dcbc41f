"""CODA-Prompt: the weighted sum by hand, what is frozen, the orthogonality term and the initial values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods import CODAPrompt
from tangentcl.nn import Backbone
from tangentcl.nn.prefix import prefixed
from tangentcl.training import Runtime, TrainingPlan
from tangentcl.training.stream import ignore, learn_task

Make = Callable[[], Backbone]
PLAN = TrainingPlan(epochs=1, batch_size=8, lr=0.05, device="cpu", weight_decay=0.1)


def _second_task(make: Make, stream: TaskStream, **keywords: object) -> CODAPrompt:
    method = CODAPrompt(make(), **{"n_components": 6, "length": 4, "blocks": (0, 1), **keywords})  # type: ignore[arg-type]
    for task in stream.tasks[:2]:
        method.begin_task(task)
    with torch.no_grad():
        for p in (*method.components.groups, *method.keys, *method.attention):
            p.add_(0.1 * torch.randn_like(p))
    return method


def test_a_prefix_is_the_weighted_sum_of_all_components(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _second_task(tiny_blocks, tiny_stream)
    x, y = next(tiny_stream[1].train.batches(3))
    query = method.trunk.backbone(x)
    prefixes = {}
    for block in (0, 1):
        keys, values = torch.zeros(3, 2, 16), torch.zeros(3, 2, 16)
        for b in range(3):
            for task in (0, 1):
                for m in (0, 1):
                    asked, key = query[b] * method.attention[task][m, block], method.keys[task][m, block]
                    alpha = asked @ key / (asked.norm() * key.norm())
                    keys[b] += alpha * method.components.groups[task][m, block, 0]
                    values[b] += alpha * method.components.groups[task][m, block, 1]
        prefixes[block] = (keys, values)
    expected = prefixed(method.trunk.model, method.trunk.embed(x), prefixes)
    torch.testing.assert_close(method.features(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.prompted(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert set(method.training_loss(x, y)) == {"cross_entropy", "orthogonality"}


def test_old_components_stay_bit_equal_while_the_new_ones_learn(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = CODAPrompt(tiny_blocks(), n_components=6, length=4)
    learn_task(method, tiny_stream[0], PLAN, Runtime(device="cpu"), ignore)
    lists = (method.components.groups, method.keys, method.attention)
    old = [each[0].detach().clone() for each in lists]
    learn_task(method, tiny_stream[1], PLAN, Runtime(device="cpu"), ignore)
    assert all(torch.equal(each[0], before) for each, before in zip(lists, old))
    assert all(not each[0].requires_grad and each[1].requires_grad for each in lists)
    assert all(p.grad is None for each in lists for p in [each[0]])
    new = method.components.groups[1].detach().flatten(2)  # [m, L, n]
    assert (new.norm(dim=2) - 1).abs().max() > 1e-3  # it left its initial length


def test_the_orthogonality_term_and_its_gradient(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _second_task(tiny_blocks, tiny_stream, orthogonality=0.25)
    x, y = next(tiny_stream[1].train.batches(3))
    term = method.training_loss(x, y)["orthogonality"]
    total = torch.zeros((), dtype=torch.float64)
    for block in (0, 1):
        for both in (method.components.groups, method.keys, method.attention):
            rows = torch.cat([p[:, block].flatten(1) for p in both]).double()  # [4, n]
            total += ((rows @ rows.T - torch.eye(4)) ** 2).mean()
    assert term.item() == pytest.approx(0.25 * total.item(), rel=1e-5)
    term.backward()
    rows = torch.cat([p[:, 1] for p in method.keys]).detach()
    expected = 0.25 * 4 / 16 * (rows @ rows.T - torch.eye(4)) @ rows  # of all four rows; the last two train
    assert method.keys[1].grad is not None
    torch.testing.assert_close(method.keys[1].grad[:, 1], expected[2:], rtol=1e-4, atol=1e-6)
    assert method.keys[0].grad is None


def test_new_rows_start_orthonormal_to_trained_ones(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _second_task(tiny_blocks, tiny_stream)  # old rows are no longer orthonormal
    method.begin_task(tiny_stream[2])
    for both in (method.components.groups, method.keys, method.attention):
        rows = torch.cat([p.flatten(2) if p.ndim == 5 else p for p in both]).detach()  # [6, L, n]
        for block in (0, 1):
            old, new = rows[:4, block], rows[4:, block]
            torch.testing.assert_close(new @ new.T, torch.eye(2), rtol=0, atol=1e-5)
            assert (old @ new.T).abs().max() < 1e-5
            assert (old @ old.T - torch.eye(4)).abs().max() > 1e-2


def test_no_term_without_weight_and_wrong_values_are_named(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method = _second_task(tiny_blocks, tiny_stream, orthogonality=0.0)
    assert set(method.training_loss(*next(tiny_stream[1].train.batches(3)))) == {"cross_entropy"}
    with pytest.raises(ConfigError, match="must be even, got 3"):
        CODAPrompt(tiny_blocks(), n_components=6, length=3)
    with pytest.raises(ConfigError, match="from 1 to the width of the backbone, 16, got 100"):
        CODAPrompt(tiny_blocks())
    with pytest.raises(ConfigError, match="n_components must be at least the 3 tasks, got 2"):
        CODAPrompt(tiny_blocks(), n_components=2).begin_task(tiny_stream[0])
    with pytest.raises(ModelError, match="begin_task"):
        CODAPrompt(tiny_blocks(), n_components=6).predict(torch.zeros(1, 3, 4))
