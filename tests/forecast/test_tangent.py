"""The derivative along a displacement against torch.func, and for blind LoRA against the merged weight."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.forecast.forgetting import prepare_forecast
from tangentcl.forecast.setting import Setting
from tangentcl.forecast.sites import Values, find_sites, wide_values
from tangentcl.forecast.tangent import along
from tangentcl.kernels.network import Network


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.norm, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x + nn.functional.scaled_dot_product_attention(self.q(x), x, self.v(x)))
        return self.head(torch.tanh(h).mean(dim=1))


X = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(lora: bool, live: bool = True) -> nn.Module:
    torch.manual_seed(1)
    model: Any = Attention()
    if lora:
        config: Any = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q", "v"], modules_to_save=["head"])
        model = peft.get_peft_model(model, config)
        for name, p in model.named_parameters():
            if "lora_B" in name and live:
                nn.init.normal_(p)
    return model.double()


def setting(model: nn.Module, **settings: Any) -> Setting:
    new = X[:2], torch.tensor([0, 1])
    return prepare_forecast(model, X, new, batch_size=3, **settings)._setting


def moved(values: Values) -> Values:
    g = torch.Generator().manual_seed(2)
    return {name: v + 0.7 * torch.randn(v.shape, generator=g, dtype=v.dtype) for name, v in values.items()}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_along_is_the_jacobian_times_the_displacement(lora: bool, whole: bool) -> None:
    model = made(lora)
    s = setting(model)
    body = s.network if whole else s.body()
    start = wide_values(s.network)
    values = moved(start)
    sites, _ = find_sites(body, None if whole else s.head)

    def truth(at: Values) -> tuple[Tensor, Tensor]:
        primal = {name: at[name] for name in body.parameters}
        return torch.func.jvp(
            lambda v: body.at(v, X), (primal,), ({name: values[name] - start[name] for name in primal},)
        )

    with body.evaluating():
        expected, elsewhere = truth(start), truth(values)
    h, change = along(s, body, sites, start, values, s.old)
    torch.testing.assert_close(h, expected[0].detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(change, expected[1].detach(), rtol=1e-11, atol=1e-12)
    h, change = along(s, body, sites, start, values, s.old, at=values)
    torch.testing.assert_close(h, elsewhere[0].detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(change, elsewhere[1].detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("zero", ["B", "A", "both"])
def test_blind_lora_moves_by_its_product(zero: str) -> None:
    model = made(True, live=zero == "A")
    for name, p in model.named_parameters():
        if "lora_A" in name and zero in ("A", "both"):
            nn.init.zeros_(p)
    s = setting(model)
    body, start = s.body(), wide_values(s.network)
    values = moved(start)
    sites, _ = find_sites(body, s.head)
    assert all(site.is_blind for site in sites)
    layers = [f"base_model.model.{layer}" for layer in "qv"]
    change = {}
    for layer in layers:
        A, B = (values[f"{layer}.lora_{f}.default.weight"] for f in "AB")
        change[f"{layer}.base_layer.weight"] = 2.0 * B @ A  # alpha / r = 2
    merged = Network(model, body.output_function, list(change))
    primal = {name: merged.parameters[name].detach() for name in change}
    with merged.evaluating():
        expected = torch.func.jvp(lambda v: merged.at(v, X), (primal,), (change,))
    h, found = along(s, body, sites, start, values, s.old)
    torch.testing.assert_close(h, expected[0].detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found, expected[1].detach(), rtol=1e-11, atol=1e-12)


def test_nothing_below_the_head_moves() -> None:
    model = made(False)
    model.requires_grad_(False)
    model.head.requires_grad_(True)  # type: ignore[union-attr]
    s = setting(model, form="bilinear")
    start = wide_values(s.network)
    h, change = along(s, s.body(), [], start, moved(start), s.old)
    assert h.shape == change.shape == (7, 4)
    assert not change.any()


def test_an_operation_without_forward_mode_is_named() -> None:
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Backward.apply(self.body(x).mean(dim=1)))

    s = setting(Odd().double())
    start = wide_values(s.network)
    with pytest.raises(ModelError, match=r"no forward-mode derivative .* Replace it"):
        along(s, s.body(), [], start, moved(start), s.old)
