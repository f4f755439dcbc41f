from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from tangentcl.errors import ModelError
from tangentcl.nn import Backbone, add_lora, add_peft, from_module, linear_roles, trainable_parameters
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.peft import newest_pair, stack_lora
from tangentcl.nn.vit import SmallViT

Tiny = Callable[[str], nn.Module]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def first_token(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)[:, 0]


def small() -> Backbone:
    vit = SmallViT(width=24, depth=2, heads=3)
    return from_module(vit, first_token, 24, name="small", modality="image", sample=X)


def step(made: Backbone) -> None:
    """Move the adapter away from zero."""
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip", "bert", "distilbert", "small"])
def test_lora_on_every_architecture(tiny: Tiny, kind: str) -> None:
    made = small() if kind == "small" else from_transformers(tiny(kind), pooling="mean")
    before = {name: p.clone() for name, p in made.named_parameters()}
    x = made.sample_input()
    features = made(x)
    adapted = add_lora(made, rank=3)
    assert torch.equal(made(x), features)  # B is zero
    assert len(adapted.layers) == 4
    assert adapted.n_parameters == trainable_parameters(made) == 4 * 3 * 2 * made.width
    assert all("lora_" in name for name, p in made.named_parameters() if p.requires_grad)
    frozen = {name: p for name, p in made.named_parameters() if not p.requires_grad}
    assert len(frozen) == len(before)
    step(made)
    made.train()
    made(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters() if p.requires_grad)
    assert all(torch.equal(p, q) for p, q in zip(frozen.values(), before.values()))


def test_scale_is_alpha_over_rank() -> None:
    torch.manual_seed(0)
    plain, doubled = small(), small()
    for made, alpha in ((plain, None), (doubled, 8.0)):
        torch.manual_seed(1)
        add_lora(made, rank=4, alpha=alpha, targets=["blocks.1.fc2"])
        step(made)
    layers = [made.model.get_base_model().blocks[1].fc2 for made in (plain, doubled)]  # type: ignore[operator,union-attr]
    assert [layer.scaling["default"] for layer in layers] == [1.0, 2.0]
    z = torch.randn(1, 96)
    deltas = [layer(z) - layer.base_layer(z) for layer in layers]
    torch.testing.assert_close(deltas[1], 2 * deltas[0])


def test_lora_is_seeded_by_the_global_generator() -> None:
    states = []
    for _ in range(2):
        made = small()
        torch.manual_seed(3)
        add_lora(made)
        states.append(made.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_targets_by_role_by_name_and_by_last_parts() -> None:
    assert add_lora(small(), targets=["fc1", "output"]).layers == (
        "blocks.0.attention.o",
        "blocks.0.fc1",
        "blocks.1.attention.o",
        "blocks.1.fc1",
    )
    assert add_lora(small(), targets=["blocks.1.fc2"]).layers == ("blocks.1.fc2",)
    assert add_lora(small(), targets=["attention.k"]).layers == ("blocks.0.attention.k", "blocks.1.attention.k")


def test_query_and_value_mean_the_fused_layer_where_there_is_only_that() -> None:
    from torch.nn import functional as F

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.joint, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(F.scaled_dot_product_attention(*self.joint(x).chunk(3, -1))).mean(1)

    made = from_module(Fused(), None, 4, name="f", modality="array", sample=torch.ones(1, 3, 4))
    assert add_lora(made).layers == ("joint",)


@pytest.mark.parametrize("targets", [["quary"], ["query", "blocks.7.fc1"]])
def test_a_target_without_a_layer_is_an_error(targets: list[str]) -> None:
    made = small()
    with pytest.raises(ModelError, match=f"'{targets[-1]}' matches no linear layer"):
        add_lora(made, targets=targets)
    assert not hasattr(made.model, "peft_config")


def test_what_cannot_work_is_refused() -> None:
    made = small()
    with pytest.raises(ModelError, match="list of roles"):
        add_lora(made, targets="query")
    with pytest.raises(ModelError, match="rank has to be at least 1"):
        add_lora(made, rank=0)
    add_lora(made)
    with pytest.raises(ModelError, match="already has an adapter"):
        add_lora(made)
    with pytest.raises(ModelError, match="LoraConfig could not be added"):
        add_peft(small(), peft.LoraConfig(target_modules=["nothing"]))
    with pytest.raises(ModelError, match="changes the inputs"):
        add_peft(small(), peft.PromptTuningConfig(num_virtual_tokens=2))


def test_other_adapters_of_peft(tiny: Tiny) -> None:
    made = from_transformers(tiny("bert"))
    roles = linear_roles(made)
    ia3 = peft.IA3Config(target_modules=[*roles["key"], *roles["fc2"]], feedforward_modules=roles["fc2"])
    adapted = add_peft(made, ia3)
    assert len(adapted.layers) == 4
    assert adapted.n_parameters == 2 * 32 + 2 * 64
    for config in (
        peft.LoHaConfig(r=2, target_modules=linear_roles(small())["query"]),
        peft.LoraConfig(r=2, use_dora=True, target_modules=linear_roles(small())["query"]),
    ):
        made = small()
        features = made(X)
        assert len(add_peft(made, config).layers) == 2
        torch.testing.assert_close(made(X), features)
        step(made)
        assert not torch.allclose(made(X), features)


def test_saved_adapters_are_ordinary_peft_adapters(tiny: Tiny, tmp_path: Path) -> None:
    made = from_transformers(tiny("vit"))
    add_lora(made, rank=2, targets=["query", "fc2"])
    step(made)
    made.model.save_pretrained(tmp_path)  # type: ignore[operator]
    plain = peft.PeftModel.from_pretrained(tiny("vit").eval(), tmp_path)
    tokens = plain(pixel_values=X).last_hidden_state
    torch.testing.assert_close(made(X), tokens[:, 0])


def test_state_round_trip() -> None:
    made, other = small(), small()
    add_lora(made)
    step(made)
    add_lora(other)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(X), made(X))


def test_a_stacked_pair_starts_at_nothing_and_the_earlier_ones_stay() -> None:
    made = small()
    add_lora(made, rank=3, dropout=0.5)
    step(made)
    before = {name: p.clone() for name, p in made.named_parameters()}
    features = made.eval()(X)
    for number in (1, 2):
        adapted = stack_lora(made)
        assert len(adapted.layers) == 4
        assert adapted.n_parameters == trainable_parameters(made) == 4 * 3 * 2 * 24
        assert torch.equal(made(X), features)  # the new B is zero
        trained = {name for name, p in made.named_parameters() if p.requires_grad}
        pairs = [pair for module in made.modules() if (pair := newest_pair(module)) is not None]
        assert len(pairs) == 4
        assert {id(layer.weight) for pair in pairs for layer in pair} == {
            id(p) for name, p in made.named_parameters() if name in trained
        }
        assert all(f"pair_{number}" in name for name in trained)
    step(made)
    made.train()
    made(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters() if p.requires_grad)
    now = dict(made.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert not torch.equal(made.eval()(X), features)


def test_dropout_is_on_the_newest_pair_alone() -> None:
    made = small()
    add_lora(made, rank=3, dropout=0.5)
    step(made)
    features = made.eval()(X)
    made.train()
    assert not torch.equal(made(X), features)
    stack_lora(made)
    made.train()
    torch.testing.assert_close(made(X), features)  # B of the newest is zero, and the earlier pair drops nothing
    step(made)
    assert not torch.equal(made(X), made(X))


def test_only_lora_is_stacked() -> None:
    with pytest.raises(ModelError, match="no LoRA to put another pair beside"):
        stack_lora(small())
