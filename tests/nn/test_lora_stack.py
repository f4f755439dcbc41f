"""Stacks against dense algebra; a new pair, a merge and a direction leave the layer as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn import Backbone, add_lora
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.lora_stack import DecoupledStack, LoRAStack, add_stacks

Factors = list[tuple[Tensor, Tensor]]


def _learned(stack: LoRAStack | DecoupledStack, ranks: list[int]) -> Factors:
    """Pairs of these ranks, each as if it had been trained."""
    factors = []
    for rank in ranks:
        stack.begin(rank)
        assert stack.A is not None
        assert stack.B is not None
        nn.init.normal_(stack.B.weight)
        factors.append((stack.A.weight.detach().clone(), stack.B.weight.detach().clone()))
    return factors


def _layer() -> nn.Linear:
    return nn.Linear(5, 4).double().requires_grad_(False)


def test_stack_is_the_dense_weight_and_the_sum_of_all_products() -> None:
    layer, x = _layer(), torch.randn(2, 3, 5, dtype=torch.float64)
    stack = LoRAStack(layer, keep_directions=True)
    factors = _learned(stack, [2, 1, 3])
    dense = layer.weight + sum(b @ a for a, b in factors)
    torch.testing.assert_close(stack(x), x @ dense.T + layer.bias, rtol=0, atol=1e-12)
    assert torch.equal(stack.old_A, torch.cat([a for a, _ in factors[:2]]))
    assert {name for name, p in stack.named_parameters() if p.requires_grad} == {"A.weight", "B.weight"}


def test_decoupled_stack_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False).double().requires_grad_(False)
    nn.init.zeros_(layer.weight)
    stack = DecoupledStack(layer)
    stack.begin(1)
    assert stack.A is not None
    assert stack.B is not None
    stack.A.weight.data = torch.tensor([[3.0, 4.0]]).double()  # length 5
    stack.B.weight.data = torch.tensor([[0.0], [2.0]]).double()  # length 2
    x = torch.tensor([[1.0, 1.0]]).double()
    torch.testing.assert_close(stack(x), torch.tensor([[0.0, 0.8 * 2 * 7]]).double())
    stack.begin(1)
    assert stack.magnitudes.tolist() == pytest.approx([8.0, 0.8])  # 0.8 * 5 * 2
    torch.testing.assert_close(stack(x), torch.tensor([[0.0, 11.2]]).double())
    stack.magnitudes.data[0] = 1.0
    torch.testing.assert_close(stack(x), torch.tensor([[0.0, 7 / 5]]).double())  # the direction alone


def test_decoupled_stack_is_the_sum_of_scaled_directions() -> None:
    layer, x = _layer(), torch.randn(3, 5, dtype=torch.float64)
    stack = DecoupledStack(layer)
    factors = _learned(stack, [3, 1, 2])
    stack.magnitudes.data = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    (a1, b1), (a2, b2), (a3, b3) = factors
    dense = layer.weight + 3.0 * b3 @ a3
    dense = dense + 0.5 * b1 @ a1 / (b1.norm() * a1.norm()) - 2.0 * b2 @ a2 / (b2.norm() * a2.norm())
    torch.testing.assert_close(stack(x), x @ dense.T + layer.bias, rtol=0, atol=1e-12)
    trained = {name for name, p in stack.named_parameters() if p.requires_grad}
    assert trained == {"A.weight", "B.weight", "magnitudes"}


@pytest.mark.parametrize("kind", [LoRAStack, DecoupledStack])
def test_a_new_pair_changes_nothing(kind: type[LoRAStack] | type[DecoupledStack]) -> None:
    layer, x = _layer(), torch.randn(3, 5, dtype=torch.float64)
    stack = kind(layer)
    assert torch.equal(stack(x), layer(x))
    _learned(stack, [2, 2])
    before = stack(x)
    stack.begin(2)
    torch.testing.assert_close(stack(x), before, rtol=0, atol=1e-12)
    stack.begin(1)  # a pair that was never trained
    torch.testing.assert_close(stack(x), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [LoRAStack, DecoupledStack])
def test_state_loads_into_a_stack_that_began_alike(kind: type[LoRAStack] | type[DecoupledStack]) -> None:
    layer, x = _layer(), torch.randn(3, 5, dtype=torch.float64)
    stack, other = kind(layer), kind(copy.deepcopy(layer))
    _learned(stack, [2, 1, 2])
    for rank in (2, 1, 2):
        other.begin(rank)
    other.load_state_dict(stack.state_dict())
    assert torch.equal(other(x), stack(x))


@pytest.mark.parametrize("kind", [LoRAStack, DecoupledStack])
def test_bf16_autocast_stays_close(kind: type[LoRAStack] | type[DecoupledStack]) -> None:
    stack = kind(nn.Linear(5, 4).requires_grad_(False))
    _learned(stack, [2, 2])
    x = torch.randn(6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = stack(x)
    torch.testing.assert_close(y.float(), stack(x), rtol=0.05, atol=0.1)


def test_roles_find_the_layers_and_only_they_change(tiny_backbone: Callable[[], Backbone]) -> None:
    features = tiny_backbone()
    stacks = add_stacks(features, ["query", "fc2"], LoRAStack)
    assert list(stacks) == ["q", "fc2"]
    assert features.model.get_submodule("q") is stacks["q"]
    x = torch.randn(2, 3, 4)
    expected = tiny_backbone()(x)
    assert torch.equal(features(x), expected)
    for stack in stacks.values():
        stack.begin(2)
    torch.testing.assert_close(features(x), expected, rtol=0, atol=1e-6)
    assert {n for n, p in features.named_parameters() if p.requires_grad} == {
        f"model.{layer}.{factor}.weight" for layer in stacks for factor in "AB"
    }


def test_what_is_refused(tiny_backbone: Callable[[], Backbone]) -> None:
    with pytest.raises(ModelError, match="Did you mean 'query'"):
        add_stacks(tiny_backbone(), ["qury"], LoRAStack)
    features = tiny_backbone()
    stacks = add_stacks(features, ["query"], LoRAStack)
    with pytest.raises(ModelError, match="already has an adapter"):
        add_stacks(features, ["value"], LoRAStack)
    with pytest.raises(ModelError, match="at least 1"):
        stacks["q"].begin(0)
    with pytest.raises(ModelError, match="Call begin"):
        _ = stacks["q"].pair
    adapted = tiny_backbone()
    add_lora(adapted, rank=1)
    with pytest.raises(ModelError, match="already has an adapter"):
        add_stacks(adapted, ["value"], LoRAStack)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "vit", "clip"])  # modernbert: Wqkv
def test_transformers_equal_the_model_with_dense_weights(kind: str, tiny: Callable[[str], nn.Module]) -> None:
    model = tiny(kind)
    features = from_transformers(model)
    dense = from_transformers(copy.deepcopy(model))
    x = dense.sample_input()
    stacks = add_stacks(features, ["query", "value"], LoRAStack)
    before = features(x)
    for name, stack in stacks.items():
        weight = dense.model.get_submodule(name).weight
        for a, b in _learned(stack, [2, 1]):
            weight.data += b @ a
    torch.testing.assert_close(features(x), dense(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features(x), before, atol=1e-3)
