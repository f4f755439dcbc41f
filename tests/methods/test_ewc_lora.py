"""EWC-LoRA against dense matrices, and its independence of how a product is split into factors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tangentcl.data import TaskStream
from tangentcl.methods import EWCLoRA
from tangentcl.nn import Backbone

Make = Callable[[], Backbone]


def _displace(method: EWCLoRA) -> None:
    with torch.no_grad():
        for p in method.learner.parameters():
            if p.requires_grad:
                p += torch.randn_like(p) / 3


def _dense(method: EWCLoRA) -> dict[str, torch.Tensor]:
    """The update of every adapted layer, by peft's own account."""
    layers = {update.weight: update.weight.removesuffix(".base_layer.weight") for update in method.updates}
    modules = dict(method.learner.named_modules())
    return {weight: modules[name].get_delta_weight("default") for weight, name in layers.items()}  # type: ignore[operator]


def _second_task(make: Make, stream: TaskStream) -> tuple[EWCLoRA, dict[str, torch.Tensor]]:
    method = EWCLoRA(make(), rank=2, alpha=6.0, strength=4.0, fisher="exact")
    method.begin_task(stream[0])
    _displace(method)
    before = {name: change.detach() for name, change in _dense(method).items()}
    method.end_task(stream[0])
    method.begin_task(stream[1])
    return method, before


def test_penalty_and_gradients_are_those_of_dense_matrices(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method, before = _second_task(tiny_backbone, tiny_stream)
    x, y = next(tiny_stream[1].train.batches(4))
    assert method.training_loss(x, y)["ewc"].item() < 1e-9
    _displace(method)
    assert len(before) == 2  # query and value
    dense = sum((method.fisher[name] * (now - before[name]) ** 2).sum() for name, now in _dense(method).items())
    penalty = method.training_loss(x, y)["ewc"]
    torch.testing.assert_close(penalty, 2.0 * dense)
    trained = list(method.learner.trainable_backbone().values())
    for mine, other in zip(torch.autograd.grad(penalty, trained), torch.autograd.grad(2.0 * dense, trained)):
        torch.testing.assert_close(mine, other)
    head = method.training_loss(x, y)["ewc_head"]
    moved = method.learner.head.bias.detach() - method.reference["head.bias"]
    (gradient,) = torch.autograd.grad(head, [method.learner.head.bias])
    torch.testing.assert_close(gradient, 4.0 * method.fisher["head.bias"] * moved)
    assert not gradient[2:].any()


def test_fisher_is_that_of_the_merged_weight(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    """Gradients with respect to W of a network whose updates were merged, sample by sample."""
    method, _ = _second_task(tiny_backbone, tiny_stream)
    merged = method.learner.backbone.model.merge_and_unload()  # type: ignore[operator]
    expected = {}
    layers = {name: merged.get_submodule(name.split(".")[-3]) for name in _names(method)}
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    head = {name: method.reference[f"head.{name}"][:2] for name in ("weight", "bias")}
    for x, _ in tiny_stream[0].train_eval.batches(1):
        log_p = torch.nn.functional.linear(merged(x), head["weight"], head["bias"])[0].log_softmax(dim=0)
        for c in range(2):
            gradients = torch.autograd.grad(log_p[c], [layer.weight for layer in layers.values()], retain_graph=True)
            for name, gradient in zip(layers, gradients):
                expected[name] = expected.get(name, 0) + log_p[c].exp().detach() * gradient**2 / 40
    for name, value in expected.items():
        torch.testing.assert_close(method.fisher[name], value, rtol=1e-4, atol=1e-9)


def _names(method: EWCLoRA) -> list[str]:
    return [update.weight for update in method.updates]


def test_other_factors_of_the_same_product_cost_nothing(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method, _ = _second_task(tiny_backbone, tiny_stream)
    trained = dict(method.learner.named_parameters())
    with torch.no_grad():
        for update in method.updates:
            trained[update.down] *= 3.0
            trained[update.up] /= 3.0
    x, y = next(tiny_stream[1].train.batches(4))
    assert method.training_loss(x, y)["ewc"].item() < 1e-9


def test_memory_is_a_dense_matrix_for_each_layer(tiny_backbone: Make, tiny_stream: TaskStream) -> None:
    method, _ = _second_task(tiny_backbone, tiny_stream)
    head = 4 * (16 * 4 + 4)
    adapters = 4 * 2 * 2 * (2 * 16)
    assert method.learner.state_bytes == head + adapters
    assert method.state_bytes == 3 * head + 2 * adapters + 4 * 2 * 16 * 16
