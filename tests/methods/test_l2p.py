"""L2P: which prompts a sample takes, the pull term by hand, and the option against few prompts taking all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError
from tangentcl.methods import L2P
from tangentcl.nn import Backbone
from tangentcl.nn.prompt_tokens import prompted

Make = Callable[[], Backbone]


def _begun(make: Make, stream: TaskStream, **keywords: object) -> tuple[L2P, torch.Tensor, torch.Tensor]:
    method = L2P(make(), **{"n_prompts": 4, "length": 2, "n_chosen": 2, **keywords})  # type: ignore[arg-type]
    method.begin_task(stream[0])
    return method, *next(stream[0].train.batches(6))


def _cosines(method: L2P, x: torch.Tensor) -> torch.Tensor:
    """Of the backbone's features with the keys, ``[B, M]``, one pair at a time."""
    q = method.trunk.backbone(x)
    return torch.stack([torch.stack([a @ k / (a.norm() * k.norm()) for k in method.keys]) for a in q])


def test_each_sample_takes_the_prompts_of_its_nearest_keys(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method, x, _ = _begun(tiny_blocks, tiny_stream)
    features = method.features(x)
    for i, row in enumerate(_cosines(method, x)):
        first, second = row.argsort(descending=True)[:2].tolist()
        prompts = torch.cat([method.prompts[first], method.prompts[second]])[None]  # [1, 4, d]
        expected = prompted(method.trunk.model, method.trunk.embed(x[i : i + 1]), prompts)[0]
        torch.testing.assert_close(features[i], expected, rtol=1e-5, atol=1e-5)


def test_the_pull_term_by_hand_and_what_it_moves(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method, x, y = _begun(tiny_blocks, tiny_stream, pull=0.3)
    terms = method.training_loss(x, y)
    largest = _cosines(method, x).sort(dim=1, descending=True).values[:, :2]
    assert terms["pull"].item() == pytest.approx(0.3 * (1 - largest).sum(1).mean().item(), rel=1e-5)
    terms["pull"].backward()
    assert method.keys.grad is not None
    assert method.prompts.grad is None
    assert method.head.weight.grad is None
    taken = _cosines(method, x).topk(2, dim=1).indices.unique()
    assert method.keys.grad.any(dim=1).nonzero().flatten().tolist() == taken.tolist()
    terms["cross_entropy"].backward()
    assert method.prompts.grad is not None
    assert method.prompts.grad.any(dim=2).any(dim=1).nonzero().flatten().tolist() == taken.tolist()


def test_either_read_out(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    found = []
    for read in ("prompts", "backbone"):
        torch.manual_seed(0)
        method, x, _ = _begun(tiny_blocks, tiny_stream, read=read)
        tokens = method.trunk.embed(x)
        chosen = method.chosen(_cosines(method, x))
        expected = prompted(method.trunk.model, tokens, method.prompts[chosen].flatten(1, 2), read)
        torch.testing.assert_close(method.features(x), expected)
        found.append(expected)
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_balanced_choice_avoids_what_earlier_tasks_took(tiny_blocks: Make, tiny_stream: TaskStream) -> None:
    method, _, _ = _begun(tiny_blocks, tiny_stream, n_chosen=1, balanced=True)
    cosine = torch.tensor([[0.9, 0.5, 0.0, -0.5]])
    assert method.chosen_in_training(cosine).tolist() == [[0]]  # no earlier task
    method.frequency.copy_(torch.tensor([7, 1, 2, 0]))  # (1 - cos) f: 0.07, 0.05, 0.2, 0
    assert method.chosen_in_training(cosine).tolist() == [[3]]
    method.frequency.copy_(torch.tensor([7, 1, 2, 1]))  # 0.7, 0.5, 2, 1.5 over 11
    assert method.chosen_in_training(cosine).tolist() == [[1]]
    assert method.chosen(cosine).tolist() == [[0]]  # at test by the key alone
    method.frequency.zero_()
    method.end_task(tiny_stream[0])
    expected = _cosines(method, torch.cat([x for x, _ in tiny_stream[0].train.batches(100)])).argmax(1)
    assert method.frequency.tolist() == torch.bincount(expected, minlength=4).tolist()


def test_wrong_values_are_named(tiny_blocks: Make) -> None:
    with pytest.raises(ConfigError, match="n_chosen=5, n_prompts=4"):
        L2P(tiny_blocks(), n_prompts=4, n_chosen=5)
    with pytest.raises(ConfigError, match="Did you mean 'prompts'"):
        L2P(tiny_blocks(), read="prompt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'current'"):
        L2P(tiny_blocks(), logits="curent")  # type: ignore[arg-type]
