from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tangentcl.nn import blocks
from tangentcl.nn.blocks import SeparateProjections, attention, attention_of_few
from tangentcl.nn.frozen_linear import FrozenLinear


def frozen(*sizes: tuple[int, int], bias: bool = True) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(n, m, bias=bias).requires_grad_(False) for n, m in sizes]


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_is_the_layers_one_by_one(bias: bool) -> None:
    layers = frozen((6, 4), (6, 4), (6, 4), bias=bias)
    x = torch.randn(2, 5, 6, requires_grad=True)
    joined = FrozenLinear(layers)(x)
    apart = [layer(x) for layer in layers]
    for mine, theirs in zip(joined, apart, strict=True):
        torch.testing.assert_close(mine, theirs)
    (mine,) = torch.autograd.grad(sum(t.square().sum() for t in joined), x, retain_graph=True)
    (theirs,) = torch.autograd.grad(sum(t.square().sum() for t in apart), x)
    torch.testing.assert_close(mine, theirs)


def test_weights_follow_the_layer_in_place_and_on_loading() -> None:
    layers = frozen((4, 4), (4, 4))
    both, x = FrozenLinear(layers), torch.randn(3, 4)
    both(x)
    with torch.no_grad():
        layers[0].weight.mul_(2)
    torch.testing.assert_close(both(x)[0], layers[0](x))
    layers[1].load_state_dict(frozen((4, 4))[0].state_dict())
    torch.testing.assert_close(both(x)[1], layers[1](x))
    layers[1].weight = nn.Parameter(torch.eye(4), requires_grad=False)
    torch.testing.assert_close(both(x)[1], layers[1](x))


def test_weights_that_lie_where_others_lay_are_not_taken_for_them() -> None:
    (layer,) = frozen((64, 64))
    one, x = FrozenLinear([layer]), torch.randn(2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(20):
            assert torch.equal(one(x)[0], layer(x))
            del layer.weight
            layer.weight = nn.Parameter(torch.randn(64, 64), requires_grad=False)
        for _ in range(20):
            assert torch.equal(one(x)[0], layer(x))
            layer.weight.data = torch.randn(64, 64)


def test_under_autocast_weights_are_cast_once() -> None:
    (layer,) = frozen((8, 8))
    one = FrozenLinear([layer])
    x = torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = one.weights("cpu"), one.weights("cpu")
        (found,) = one(x)
        torch.testing.assert_close(found, layer(x))
    assert first is not None
    assert second is not None
    assert first[0] is second[0]
    assert first[0].dtype == torch.bfloat16
    assert one(x)[0].dtype == torch.float32


def test_cast_while_predicting_serves_training() -> None:
    (layer,) = frozen((4, 4))
    one = FrozenLinear([layer])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        one(torch.randn(2, 4))
    x = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        one(x)[0].float().sum().backward()
    assert x.grad is not None


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_is_not_a_frozen_linear_layer_is_called_as_it_is() -> None:
    x = torch.randn(2, 4)
    own = Doubled(4, 4).requires_grad_(False)
    torch.testing.assert_close(FrozenLinear([own])(x)[0], own(x))
    trained = nn.Linear(4, 4)
    (found,) = FrozenLinear([trained])(x)
    found.sum().backward()
    assert trained.weight.grad is not None
    (watched,) = frozen((4, 4))
    seen: list[Tensor] = []
    watched.register_forward_hook(lambda module, inputs, output: seen.append(output))
    FrozenLinear([watched])(x)
    assert len(seen) == 1
    torch.testing.assert_close(FrozenLinear([nn.GELU()])(x)[0], nn.GELU()(x))
    unequal = frozen((4, 4), (4, 3))
    torch.testing.assert_close(FrozenLinear(unequal)(x)[1], unequal[1](x))


def test_a_copy_looks_at_its_own_layers() -> None:
    (layer,) = frozen((4, 4))
    one, x = FrozenLinear([layer]), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        one(x)
        other = copy.deepcopy(one)
        assert other.layers[0] is not layer
        assert torch.equal(other(x)[0], one(x)[0])
    with torch.no_grad():
        other.layers[0].weight.zero_()
    torch.testing.assert_close(one(x)[0], layer(x))
    torch.testing.assert_close(other(x)[0], layer.bias.expand(2, -1))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_few_is_attention(masked: bool) -> None:
    torch.manual_seed(1)
    heads, d, n = 2, 12, 9
    projections = SeparateProjections(*(layer.double() for layer in frozen((d, d), (d, d), (d, d))))
    x = torch.randn(3, n, d, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1] * n, [1] * 4 + [0] * (n - 4), [1] + [0] * (n - 1)]) if masked else None
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in projections.all(x))
    whole = attention(q[:, :, :2], k, v, mask).transpose(1, 2).flatten(2)
    weights = projections.weights("cpu")
    assert weights is not None
    few = attention_of_few(x, q[:, :, :2], *weights, mask)
    torch.testing.assert_close(few, whole, rtol=1e-12, atol=1e-12)
    (mine,) = torch.autograd.grad(few.square().sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad(whole.square().sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 4, 7, 5, dtype=torch.float64).unbind(0)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4]) if masked else None
    written = attention(q, k, v, mask)
    monkeypatch.setattr(blocks, "FUSED_FROM", 1)
    torch.testing.assert_close(attention(q, k, v, mask), written, rtol=1e-12, atol=1e-12)


def test_attention_in_bf16_keeps_two_digits() -> None:
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, 4, 80, 16).unbind(0)
    exact = attention(q, k, v)
    found = attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.01 * exact.norm()
