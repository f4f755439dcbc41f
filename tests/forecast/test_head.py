"""The layer that makes the outputs is found by what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from tangentcl.forecast.head import linear_head, watched
from tangentcl.kernels.network import Network
from tangentcl.nn import GrowingLinear

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Features, a head under some name, and what is done to its outputs."""

    def __init__(self, head: nn.Module, after: Callable[[Tensor], Tensor] = lambda f: f) -> None:
        super().__init__()
        self.body, self.top, self.after = nn.Linear(5, 6), head, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.top(torch.tanh(self.body(x))))


def found(model: nn.Module, x: Any = X, outputs: Any = None) -> Any:
    network = Network(model.eval(), outputs, ())
    with network.evaluating():
        return linear_head(network, x)


def _grown() -> GrowingLinear:
    head = GrowingLinear(6)
    head.grow(3)
    return head


def test_a_last_linear_layer_is_the_head() -> None:
    torch.manual_seed(0)
    for head in (nn.Linear(6, 3), nn.Linear(6, 3, bias=False), _grown()):
        assert found(Body(head)) is head
        assert found(Body(head).to(torch.bfloat16), X.bfloat16(), lambda m, x: m(x).float()) is head
    shared = nn.Linear(6, 6)
    assert found(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), shared)) is shared


@pytest.mark.parametrize(
    "after",
    [torch.relu, lambda f: f * 1.5, lambda f: f.clamp(-50, 50), lambda f: f.softmax(dim=1), lambda f: f[:, :2]],
    ids=["relu", "scaled", "clamped far out", "softmax", "some of them"],
)
def test_what_is_done_afterwards_makes_it_no_head(after: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 3)
    nn.init.constant_(head.bias, 5.0)  # all outputs are positive here, so that a relu does nothing
    assert found(Body(head)) is head
    assert found(Body(head, after)) is None


class Other(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.top = nn.Linear(5, 5), nn.Linear(5, 5)
        self.kind, self.embed = kind, nn.Embedding(5, 5)
        if kind == "tied":
            self.embed.weight = self.top.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "other":
            return self.body(x)
        h = torch.tanh(self.body(x))
        if self.kind == "twice":
            return self.top(self.top(h))
        if self.kind == "tokens":
            return self.top(torch.stack([h, -h], dim=1))
        if self.kind == "summed":
            return self.top(h) + h
        if self.kind == "tied":
            return self.top(h + self.embed(torch.zeros(len(x), dtype=torch.int64)))
        return nn.functional.linear(h, self.top.weight, self.top.bias)


@pytest.mark.parametrize("kind", ["twice", "tokens", "summed", "tied", "by function"])
def test_layers_that_are_no_head(kind: str) -> None:
    torch.manual_seed(0)
    assert found(Other(kind)) is None


def test_the_layer_that_is_used_and_not_the_last_one() -> None:
    torch.manual_seed(0)
    model = Other("other")
    assert found(model) is model.body


def test_inside_modules_to_save() -> None:
    torch.manual_seed(0)
    config: Any = peft.LoraConfig(r=2, target_modules=["body"], modules_to_save=["top"])
    inner = Body(nn.Linear(6, 3))
    original = inner.top
    model: Any = peft.get_peft_model(inner, config)  # type: ignore[arg-type]
    wrapper = model.base_model.model.top
    assert found(model) is wrapper.modules_to_save["default"]
    assert found(model) is not original
    with model.disable_adapter():
        assert found(model) is wrapper.original_module


def test_watching_keeps_inputs_and_outputs_and_leaves_no_hook() -> None:
    layer = nn.Linear(5, 2)
    with watched(layer) as calls:
        layer(X)
        layer(input=X[:1])
    layer(X)
    assert [(len(a), len(f)) for a, f in calls] == [(4, 4), (1, 1)]
    assert torch.equal(calls[0][1], layer(X))
    assert not layer._forward_hooks
    model = Body(nn.Linear(6, 3))
    found(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
