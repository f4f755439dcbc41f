"""Which layers are adapted, and what a change of their weights does to their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.forecast.site_check import checked_sites
from tangentcl.forecast.sites import LinearSite, LoRASite, NormSite, find_sites, wide_values
from tangentcl.kernels.network import Network
from tangentcl.nn import from_module
from tangentcl.nn.lora_stack import LoRAStack, add_stacks


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6, bias=False)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.second(torch.relu(self.first(x))))))


def adapted(**settings: Any) -> nn.Module:
    config: Any = peft.LoraConfig(**{"r": 2, "target_modules": ["first", "second"], **settings})
    torch.manual_seed(0)
    return peft.get_peft_model(Body(), config)


def kinds(model: nn.Module, apart: nn.Module | None = None) -> tuple[list[str], tuple[str, ...]]:
    sites, rest = find_sites(Network(model), apart)
    return [type(site).__name__ for site in sites], rest


def test_every_trainable_layer_is_one_site() -> None:
    model = Body()
    assert kinds(model) == (["LinearSite", "LinearSite", "NormSite", "LinearSite"], ())
    assert kinds(model, model.last) == (["LinearSite", "LinearSite", "NormSite"], ())
    model.first.weight.requires_grad_(False)
    model.norm.bias.requires_grad_(False)
    model.second.requires_grad_(False)
    names = [site.names for site in find_sites(Network(model), model.last)[0]]
    assert names == [("first.bias",), ("norm.weight",)]


def test_a_pair_of_lora_factors_is_one_site() -> None:
    model = adapted()
    sites, rest = find_sites(Network(model), None)
    assert rest == ()
    assert [site.names for site in sites] == [
        tuple(f"base_model.model.{layer}.lora_{f}.default.weight" for f in "AB") for layer in ("first", "second")
    ]
    assert all(isinstance(site, LoRASite) and site.is_blind for site in sites)
    assert not any(site.is_blind for site in find_sites(Network(model), None, first_order=True)[0])
    for name, p in model.named_parameters():
        if "first.lora_B" in name:
            nn.init.ones_(p)
    assert [site.is_blind for site in find_sites(Network(model), None)[0]] == [False, True]


def test_the_pair_of_a_stack_is_one_site_and_b_alone_a_linear_one() -> None:
    model = Body().requires_grad_(False)
    features = from_module(model, None, 3, name="body", modality="array")
    stack = add_stacks(features, ["second"], LoRAStack)["second"]
    stack.begin(2)
    (site,), rest = find_sites(Network(features), None)
    assert isinstance(site, LoRASite)
    assert (site.names, site.is_blind, rest) == (("model.second.A.weight", "model.second.B.weight"), True, ())
    stack.pair[0].weight.requires_grad_(False)
    (site,), rest = find_sites(Network(features), None)
    assert isinstance(site, LinearSite)
    assert (site.names, rest) == (("model.second.B.weight",), ())


@pytest.mark.parametrize("kind", ["dora", "only B", "a bias of LoRA", "convolution", "three axes"])
def test_what_has_no_rule_is_the_rest(kind: str) -> None:
    if kind in ("convolution", "three axes"):
        layer: nn.Module = nn.Conv1d(1, 3, 2) if kind == "convolution" else nn.LayerNorm([2, 4])
        expected = [f"0.{name}" for name, _ in layer.named_parameters()]
        assert kinds(nn.Sequential(layer, nn.Flatten())) == ([], tuple(expected))
        return
    model = adapted(**{"dora": {"use_dora": True}, "a bias of LoRA": {"lora_bias": True}}.get(kind, {}))
    if kind == "only B":
        for name, p in model.named_parameters():
            p.requires_grad_("lora_B" in name)
    sites, rest = find_sites(Network(model), None)
    claimed = {name for site in sites for name in site.names}
    assert not any(isinstance(site, LoRASite) for site in sites)
    assert claimed | set(rest) == set(Network(model).parameters)
    assert not claimed & set(rest)
    if kind == "dora":
        assert any("magnitude" in name for name in rest)


def test_changes_are_those_of_the_layers() -> None:
    torch.manual_seed(0)
    a = torch.randn(5, 6, dtype=torch.float64)
    linear, norm = nn.Linear(6, 3).double(), nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    for layer, kind in ((linear, LinearSite), (norm, NormSite)):
        (site,), _ = find_sites(Network(layer), None)
        assert isinstance(site, kind)
        values = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
        inputs = site.inputs(a)
        if kind is NormSite:  # its rows already hold the gradients: a change of weight and bias, next to each other
            g = torch.randn(5, 2, 6, dtype=torch.float64)
            one, rows = site.reduced(inputs, g)
            found = torch.einsum("tko,to->k", rows, site.change(one, values))
            truth = torch.func.functional_call(layer, values, (a,)) - layer(a)
            torch.testing.assert_close(found, torch.einsum("tko,to->k", g, truth), rtol=1e-12, atol=1e-12)
            continue
        truth = torch.func.functional_call(layer, values, (a,)) - layer(a)
        torch.testing.assert_close(site.change(inputs, values), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("live", [False, True])
def test_lora_keeps_the_product_where_first_order_is_blind(live: bool) -> None:
    model = adapted(lora_alpha=2).double()
    if live:
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p)
    site = find_sites(Network(model), None)[0][0]
    g = torch.Generator().manual_seed(1)
    values = {name: v + torch.randn(v.shape, generator=g, dtype=v.dtype) for name, v in site.start.items()}
    (A0, B0), (A, B) = site.start.values(), values.values()
    x = torch.randn(7, 4, dtype=torch.float64)
    product = x @ (B @ A - B0 @ A0).T
    first = x @ ((B - B0) @ A0 + B0 @ (A - A0)).T
    torch.testing.assert_close(site.change(x, values), first if live else product, rtol=1e-12, atol=1e-12)
    assert (product - first).norm() > 0.1 * product.norm()


def test_values_are_wide_copies() -> None:
    model = nn.Linear(3, 2).bfloat16()
    values = wide_values(Network(model))
    assert {v.dtype for v in values.values()} == {torch.float32}
    nn.init.zeros_(model.weight)
    assert values["weight"].any()


class Twice(nn.Module):
    """A weight that a layer and a function use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(x)) + F.linear(x, self.layer.weight))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.last = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.Linear(7, 3)
        self.layer.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(torch.tanh(self.embed(x[:, :2].abs().long() % 7)).mean(dim=1)))


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None] * torch.linspace(0.5, 2.0, 4, dtype=x.dtype)[:, None]  # [B, 4, d]
        return self.last(torch.tanh(self.layer(tokens.transpose(0, 1))).sum(dim=0))


class Scaled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Fused(nn.Module):
    """Attention that reads the weights of a layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, -x, x.roll(1, dims=1)], dim=1)
        return self.last(self.attention(tokens, tokens, tokens)[0].mean(dim=1))


WRONG: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "a weight used twice": (Twice, ("layer.weight", "layer.bias")),
    "tokens before samples": (SequenceFirst, ("layer.weight", "layer.bias")),
    "another function": (lambda: nn.Sequential(Scaled(4, 5), nn.Tanh(), nn.Linear(5, 3)), ("0.weight", "0.bias")),
    "a layer that is not called": (Fused, ("attention.out_proj.weight", "attention.out_proj.bias")),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_rules_that_do_not_hold_are_found(kind: str, n: int) -> None:
    make, wrong = WRONG[kind]
    torch.manual_seed(0)
    model = make().eval()
    network = Network(model)
    sites, rest = find_sites(network, None)
    assert set(wrong) <= {name for site in sites for name in site.names}
    good, left = checked_sites(network, sites, rest, 3 * torch.randn(n, 4))
    if kind == "tokens before samples" and n == 1:
        assert (good, left) == (sites, rest)  # one sample has no order
        return
    assert set(left) - set(rest) == set(wrong)
    assert [site for site in sites if not set(site.names) & set(wrong)] == good


def test_a_weight_tied_to_an_embedding_has_no_rule() -> None:
    network = Network(Tied())
    sites, rest = find_sites(network, None)
    assert rest == ("embed.weight",)
    assert [site.names for site in sites] == [("last.weight", "last.bias")]


class Idle(nn.Module):
    """With a layer whose output nobody uses, one that is never called, and a table that every sample shares."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(3, 4)
        self.used, self.unread, self.never = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.places(torch.arange(3)[None])
        self.unread(h)
        return self.used(h).mean(dim=1)


def test_what_the_features_do_not_use_is_neither_site_nor_rest() -> None:
    network = Network(Idle())
    sites, rest = checked_sites(network, *find_sites(network, None), torch.tensor([[0, 1, 2], [3, 4, 6]]))
    assert {name for site in sites for name in site.names} == {"words.weight", "used.weight", "used.bias"}
    assert rest == ("places.weight",)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rules_that_hold_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inplace = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 3))
    for model in (Body(), inplace, adapted()):
        network = Network(model.to(dtype).eval())
        sites, rest = find_sites(network, None)
        assert checked_sites(network, sites, rest, torch.randn(3, 4, dtype=dtype)) == (sites, rest)
