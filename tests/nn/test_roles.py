from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn import Backbone, from_module, linear_roles
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.vit import SmallViT

SEPARATE = {"query", "key", "value", "output", "fc1", "fc2"}
Tiny = Callable[[str], nn.Module]

LEAVES = {  # kind -> leaf names of query, value, fc2, for the check only; the search does not know them
    "vit": ({"q_proj", "query"}, {"v_proj", "value"}, {"fc2", "dense"}),
    "dinov2": ({"q_proj", "query"}, {"v_proj", "value"}, {"fc2"}),
    "dinov2-swiglu": ({"q_proj", "query"}, {"v_proj", "value"}, {"down_proj", "weights_out"}),
    "clip": ({"q_proj"}, {"v_proj"}, {"fc2"}),
    "siglip": ({"q_proj"}, {"v_proj"}, {"fc2"}),
    "bert": ({"query"}, {"value"}, {"dense"}),
    "distilbert": ({"q_lin"}, {"v_lin"}, {"lin2"}),
    "roberta": ({"query"}, {"value"}, {"dense"}),
    "mpnet": ({"q"}, {"v"}, {"dense"}),
    "deberta": ({"query_proj"}, {"value_proj"}, {"dense"}),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", LEAVES)
def test_roles_of_transformers_models(tiny: Tiny, kind: str, attention: str) -> None:
    model = tiny(kind)
    if kind not in ("mpnet", "deberta"):  # these two have only their own attention
        model.config._attn_implementation = attention  # type: ignore[union-attr]
    made = from_transformers(model, pooling="mean")
    roles = linear_roles(made)
    assert set(roles) == SEPARATE
    # gate and up projection are both fc1; transformers 4 has them in one layer
    gated = kind == "dinov2-swiglu" and any("up_proj" in name for name in roles["fc1"])
    assert {role: len(names) for role, names in roles.items()} == dict.fromkeys(SEPARATE, 2) | {"fc1": 2 + 2 * gated}
    for role, leaves in zip(("query", "value", "fc2"), LEAVES[kind]):
        assert {name.rsplit(".", 1)[-1] for name in roles[role]} <= leaves
    for role, names in roles.items():
        assert "0" in names[0], role  # in order of the blocks
        assert "1" in names[-1], role
    assert len({name for names in roles.values() for name in names}) == 12 + 2 * gated
    for first, second in zip(roles["fc1"][:: 1 + gated], roles["fc2"]):
        layers = made.model.get_submodule(first), made.model.get_submodule(second)
        assert layers[0].in_features == layers[1].out_features == 32


def test_roles_of_the_bundled_architecture() -> None:
    vit = SmallViT(width=24, depth=3, heads=3)
    made = from_module(vit, None, 24, name="v", modality="image")
    made._sample, made.features = torch.ones(2, 3, 32, 32), lambda m, x: m(x)[:, 0]
    assert {role: len(names) for role, names in linear_roles(made).items()} == dict.fromkeys(SEPARATE, 3)


class Fused(nn.Module):
    """One block: a fused projection, rotary-like rotation, attention and a gated MLP; names say nothing."""

    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.eager = eager
        self.a, self.b = nn.Linear(8, 24), nn.Linear(8, 8)
        self.c, self.d, self.e = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, 8]
        q, k, v = self.a(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # each [B, 2, N, 4]
        q, k = self.norm(q * x.new_ones(4)), self.norm(k)
        if self.eager:
            mixed = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.b(mixed.transpose(1, 2).flatten(2))
        x = x + self.e(F.silu(self.c(x)) * self.d(x))
        return x.mean(1)


@pytest.mark.parametrize("eager", [True, False])
def test_fused_projection_rotation_and_gate(eager: bool) -> None:
    made = from_module(Fused(eager), None, 8, name="f", modality="array", sample=torch.ones(1, 3, 8))
    assert linear_roles(made) == {"output": ["b"], "qkv": ["a"], "fc1": ["c", "d"], "fc2": ["e"]}


def test_known_names_where_no_attention_is_seen() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.q_proj(x) + self.v_proj(x)

    made = from_module(Opaque(), None, 4, name="o", modality="array", sample=torch.ones(1, 4))
    assert linear_roles(made) == {"query": ["q_proj"], "value": ["v_proj"]}


def test_nothing_recognised_lists_the_layers() -> None:
    made = from_module(nn.Sequential(nn.Linear(4, 3)), None, 3, name="s", modality="array", sample=torch.ones(1, 4))
    with pytest.raises(ModelError, match=r"linear layers: 0\. Name the ones to adapt"):
        linear_roles(made)
    bare = from_module(nn.Linear(4, 3), None, 3, name="s", modality="array")
    with pytest.raises(ModelError, match="Pass sample="):
        linear_roles(bare)


def test_the_search_leaves_no_trace(tiny: Tiny) -> None:
    made: Backbone = from_transformers(tiny("vit"))
    made.train()
    before = [module.training for module in made.modules()]
    linear_roles(made)
    assert [module.training for module in made.modules()] == before
    assert not any(module._forward_hooks for module in made.modules())
