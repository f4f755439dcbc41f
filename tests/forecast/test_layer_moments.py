"""Changes of layers' outputs from moments of their inputs equal those of running the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import DataError, ModelError
from tangentcl.forecast import layer_moments
from tangentcl.forecast.layer_moments import (
    adapted_layers,
    effective_weight,
    forecast_layers,
    layer_sketches,
    sketched_inputs,
)
from tangentcl.forecast.moments import TaskMoments

WIDTH = 6


class Toy(nn.Module):
    """Two layers on tokens, the first one adapted, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 5)
        self.norm = nn.LayerNorm(5)
        self.second = nn.Linear(5, 4, bias=False)
        self.frozen = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.second(self.norm(self.first(x).tanh()))).mean(dim=1)


@pytest.fixture
def model() -> nn.Module:
    """LoRA on the first layer, the second one and the norm trainable."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    found: Any = peft.get_peft_model(
        Toy(), peft.LoraConfig(r=2, lora_alpha=6, target_modules=["first"], lora_dropout=0.3)
    )
    nn.init.normal_(found.base_model.model.first.lora_B.default.weight)
    for name in ("second", "norm"):
        getattr(found.base_model.model, name).requires_grad_(True)
    return found.eval()


def _recorded(model: Any, x: Tensor, kind: str = "exact", mask: Tensor | None = None, k: int = 3) -> TaskMoments:
    layers = adapted_layers(model)
    moments = TaskMoments.empty(4, sketch="exact")
    moments.layers.update(layer_sketches(layers, kind, k))
    with sketched_inputs(layers, moments.layers) as masks, torch.no_grad():
        for i in range(0, len(x), 3):
            masks[:] = [] if mask is None else [mask[i : i + 3]]
            model(x[i : i + 3])
    return moments


def _moved(model: Any, scale: float = 0.1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: p + scale * torch.randn(p.shape, generator=g) for name, p in named.items()}


def _layer_outputs(model: Any, inputs: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each layer makes of given inputs with other parameters, by running it."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(values, strict=False)
    with torch.no_grad():
        found = {name: module(inputs[name]) for name, module in adapted_layers(model).items()}
    model.load_state_dict(kept, strict=False)
    return found


def _inputs(model: Any, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: found.__setitem__(name, args[0]))
        for name, module in adapted_layers(model).items()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def _tokens(n: int = 10) -> Tensor:
    return torch.randn(n, 7, WIDTH, generator=torch.Generator().manual_seed(2)) + 0.5


def test_adapted_and_trainable_linear_layers_are_found_once(model: Any) -> None:
    assert [name.rsplit(".", 1)[-1] for name in adapted_layers(model)] == ["first", "second"]


def test_the_effective_weight_of_lora_is_the_sum_with_its_product(model: Any) -> None:
    layer = model.base_model.model.first
    A, B, base = layer.lora_A.default.weight, layer.lora_B.default.weight, layer.base_layer
    found = effective_weight(layer)
    assert torch.allclose(found[:-1], (base.weight + 3.0 * B @ A).T.double(), atol=1e-6)
    assert torch.allclose(found[-1], base.bias.double(), atol=1e-12)
    other = effective_weight(layer, {"lora_B.default.weight": torch.zeros_like(B)})
    assert torch.allclose(other[:-1], base.weight.T.double(), atol=1e-12)
    assert torch.equal(layer.lora_B.default.weight, B)


def test_a_layer_that_is_not_linear_is_refused() -> None:
    class Bent(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).square()

    with pytest.raises(ModelError, match="not linear in its input"):
        effective_weight(Bent(3, 2))


@pytest.mark.parametrize("n", [10, 1])
def test_energy_is_that_of_running_the_layers(model: Any, n: int) -> None:
    x, after = _tokens(n), _moved(model)
    inputs = _inputs(model, x)
    before = _layer_outputs(model, inputs, {})
    later = _layer_outputs(model, inputs, after)
    found = forecast_layers([_recorded(model, x)], model, after)
    for i, name in enumerate(found.layers):
        change = (later[name] - before[name]).double().square().sum(dim=-1).mean()
        size = before[name].double().square().sum(dim=-1).mean()
        assert float(found.energy[i]) == pytest.approx(float(change), rel=1e-5)
        assert float(found.relative[i]) == pytest.approx(float((change / size).sqrt()), rel=1e-5)
    assert found.total == pytest.approx(float(found.energy.sum()))
    assert [name.rsplit(".", 2)[-2] for name in found.left_out] == ["norm", "norm"]


def test_before_may_be_given(model: Any) -> None:
    x, start, after = _tokens(), _moved(model, 0.3), _moved(model)
    moments = _recorded(model, x)
    found = forecast_layers([moments], model, after, start)
    assert found.total > 0
    assert forecast_layers([moments], model, after, after).total == 0.0
    now = {name: p.detach() for name, p in model.named_parameters()}
    assert torch.allclose(
        forecast_layers([moments], model, now, after).energy, forecast_layers([moments], model, after).energy
    )


def test_tasks_count_by_their_tokens(model: Any) -> None:
    x, after = _tokens(10), _moved(model)
    whole = forecast_layers([_recorded(model, x)], model, after)
    parts = forecast_layers([_recorded(model, x[:3]), _recorded(model, x[3:])], model, after)
    assert torch.allclose(parts.energy, whole.energy, rtol=1e-6)
    sketched = forecast_layers([_recorded(model, x, "low_rank_diagonal", k=WIDTH + 1)], model, after)
    assert torch.allclose(sketched.energy, whole.energy, rtol=1e-6)


def test_masked_tokens_do_not_count(model: Any) -> None:
    x = _tokens()
    mask = torch.zeros(10, 7, dtype=torch.int64)
    mask[:, :4] = 1
    masked = _recorded(model, x, mask=mask)
    name = next(iter(masked.layers))
    kept = torch.cat([x[:, :4].reshape(-1, WIDTH), torch.ones(40, 1)], dim=1).double()
    assert masked.layers[name].n == 40
    assert torch.allclose(masked.layers[name].matrix(), kept.T @ kept, rtol=1e-6)


def test_of_many_tokens_a_draw_is_taken(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_moments, "TOKENS", 4)
    one, two = _recorded(model, _tokens(9)), _recorded(model, _tokens(9))
    name = next(iter(one.layers))
    assert one.layers[name].n == 36
    assert torch.equal(one.layers[name].matrix(), two.layers[name].matrix())


def test_what_does_not_fit_is_refused(model: Any) -> None:
    moments, after = _recorded(model, _tokens()), _moved(model)
    with pytest.raises(DataError, match="moments are of 0 layers"):
        forecast_layers([TaskMoments.empty(4)], model, after)
    with pytest.raises(DataError, match="model adapts 1"):
        forecast_layers([moments], nn.Linear(2, 2), {})
    with pytest.raises(ModelError, match="no parameter 'x'"):
        forecast_layers([moments], model, {"x": torch.zeros(1)})
    other = TaskMoments.empty(4, sketch="exact")
    with pytest.raises(DataError, match="different layers"):
        other.merge(moments)


@pytest.mark.parametrize("kind", ["dora", "ia3", "loha"])
def test_other_adapters_are_layers_like_any(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config: Any = {
        "dora": lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=["first"]),
        "ia3": lambda: peft.IA3Config(target_modules=["first"], feedforward_modules=[]),
        "loha": lambda: peft.LoHaConfig(r=2, target_modules=["first"]),
    }[kind]()
    adapted: Any = peft.get_peft_model(Toy(), config).eval()
    x, after = _tokens(), _moved(adapted, 0.3)
    inputs = _inputs(adapted, x)
    before, later = _layer_outputs(adapted, inputs, {}), _layer_outputs(adapted, inputs, after)
    found = forecast_layers([_recorded(adapted, x)], adapted, after)
    (name,) = found.layers
    change = (later[name] - before[name]).double().square().sum(dim=-1).mean()
    assert float(change) > 1e-4
    assert float(found.energy[0]) == pytest.approx(float(change), rel=1e-4)
