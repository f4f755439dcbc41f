"""Changes of layers against matrices written out."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from tangentcl.forecast.layer_moments import adapted_layers, effective_weight
from tangentcl.protect.moment import Moment
from tangentcl.protect.weight_changes import DenseChanges, LoRAChanges, ProbedChange, grouped, total_change

D_IN, D_OUT, K = 6, 4, 3


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D_IN, D_OUT), nn.Linear(D_IN, D_OUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


def _plain() -> nn.Module:
    return Two()


def _bias_alone() -> nn.Module:
    model = Two()
    model.a.weight.requires_grad_(False)
    model.b.weight.requires_grad_(False)
    return model


def _adapted(config: peft.PeftConfig) -> nn.Module:
    model: nn.Module = peft.get_peft_model(Two(), config)  # type: ignore[arg-type]
    return model


def _lora(**settings: Any) -> nn.Module:
    return _adapted(peft.LoraConfig(r=2, lora_alpha=6, target_modules=["a", "b"], **settings))


MODELS = {
    "plain": (_plain, DenseChanges),
    "bias": (_bias_alone, DenseChanges),
    "lora": (_lora, LoRAChanges),
    "dora": (lambda: _lora(use_dora=True), ProbedChange),
    "ia3": (
        lambda: _adapted(peft.IA3Config(target_modules=["a", "b"], feedforward_modules=[])),
        ProbedChange,
    ),
}


@pytest.fixture(params=sorted(MODELS))
def moved(request: pytest.FixtureRequest) -> tuple[nn.Module, type, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model, the kind of its layers, and values of what trains before and after a step."""
    make, kind = MODELS[request.param]
    model = make().double()
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    before = {name: dict(model.named_parameters())[name].detach().clone() for name in names}
    after = {name: value + 0.2 * torch.randn_like(value) for name, value in before.items()}
    return model, kind, before, after


def _dense(layer: nn.Module, name: str, values: dict[str, torch.Tensor]) -> torch.Tensor:
    inside = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    return effective_weight(layer, inside)


def test_changes_and_energies_equal_those_of_the_matrices(moved: Any) -> None:
    model, kind, before, after = moved
    layers = adapted_layers(model)
    groups = grouped(layers)
    assert all(isinstance(group, kind) for group in groups)
    assert sorted(name for group in groups for name in group.layers) == sorted(layers)
    draw = torch.Generator().manual_seed(1)
    for group in groups:
        n = len(group.layers)
        group.hold(before)
        inputs = Moment(torch.randn(n, K, D_IN + 1, generator=draw), torch.rand(n, D_IN + 1, generator=draw))
        outputs = Moment(torch.randn(n, K, D_OUT, generator=draw), torch.rand(n, D_OUT, generator=draw))
        found = group.energies(after, inputs), group.energies(after, inputs, outputs)
        for i, name in enumerate(group.layers):
            delta = _dense(layers[name], name, after) - _dense(layers[name], name, before)  # [d_in + 1, d_out]
            torch.testing.assert_close(total_change([group], after)[name].double(), delta, rtol=1e-4, atol=1e-5)
            M = (inputs.rows[i].T @ inputs.rows[i] + inputs.diagonal[i].diag()).double()
            G = (outputs.rows[i].T @ outputs.rows[i] + outputs.diagonal[i].diag()).double()
            plain, weighted = torch.trace(delta.T @ M @ delta), torch.trace(delta.T @ M @ delta @ G)
            torch.testing.assert_close(found[0][i].double(), plain, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found[1][i].double(), weighted, rtol=1e-4, atol=1e-6)


def test_nothing_at_the_reference_not_even_rounding(moved: Any) -> None:
    model, _, before, _ = moved
    for group in grouped(adapted_layers(model)):
        group.hold(before)
        n = len(group.layers)
        moment = Moment(torch.randn(n, K, D_IN + 1), torch.rand(n, D_IN + 1))
        values = {name: value.clone().requires_grad_() for name, value in before.items()}
        energy = group.energies(values, moment).sum()
        assert float(energy) == 0.0
        gradients = torch.autograd.grad(energy, list(values.values()), allow_unused=True)
        assert all(g is None or float(g.abs().max()) < 1e-12 for g in gradients)


def test_a_merged_adapter_is_refused() -> None:
    model = _lora()
    model.merge_adapter()  # type: ignore[operator]
    with pytest.raises(Exception, match="unmerge_adapter"):
        grouped(adapted_layers(model))


def test_layers_of_one_shape_are_one_group() -> None:
    assert [group.layers for group in grouped(adapted_layers(_lora()))] == [
        ("base_model.model.a", "base_model.model.b")
    ]
