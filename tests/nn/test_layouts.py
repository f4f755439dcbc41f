from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone, BackboneCard, PooledTokens, backbone, from_module
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.layouts import transformer
from tangentcl.nn.timm import TimmFeatures
from tangentcl.nn.vit import SmallViT

Tiny = Callable[[str], nn.Module]


class FakeAttention(nn.Module):
    """Attention under timm's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class FakeMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class FakeBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width), FakeAttention(width, heads), Scale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width), FakeMlp(width), Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class FakePatches(nn.Module):
    patch_size = (8, 8)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class FakeTimm(nn.Module):
    """A Vision Transformer with the module names of timm, written anew."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patch_embed = FakePatches(width)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(*(FakeBlock(width, heads) for _ in range(3)))
        self.norm = nn.LayerNorm(width)

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.norm_pre(self._pos_embed(self.patch_embed(x)))))


def fake_timm(pooling: str = "cls") -> Backbone:
    model = FakeTimm()
    card = BackboneCard.of(model, name="timm:fake", source="timm", pooling=pooling, modality="image")
    sample = torch.randn(2, 3, 32, 32)
    return Backbone(model, TimmFeatures(pooling, 1), 16, card, sample=sample)


def every_backbone(tiny: Tiny) -> list[Backbone]:
    torch.manual_seed(0)
    small = SmallViT(width=24, depth=3, heads=3)
    return [
        from_module(small, PooledTokens("mean"), 24, name="s", modality="image", sample=torch.randn(2, 3, 32, 32)),
        fake_timm(),
        fake_timm("mean"),
        from_transformers(tiny("vit")),
        from_transformers(tiny("vit"), pooling="mean"),
        from_transformers(tiny("bert")),
        from_transformers(tiny("bert"), normalize=True),
        from_transformers(tiny("bert"), pooling="cls"),
        from_transformers(tiny("roberta"), pooling="last"),
    ]


def test_blocks_give_the_features_of_the_backbone(tiny: Tiny) -> None:
    for made in every_backbone(tiny):
        view, x = transformer(made), made.sample_input()
        torch.testing.assert_close(view.forward(x), made(x), rtol=1e-5, atol=1e-6)


def test_a_larger_image_of_a_resizable_encoder(tiny: Tiny) -> None:
    made = from_transformers(tiny("vit"), image_size=48)
    view, x = transformer(made), torch.randn(2, 3, 48, 48)
    assert view.embed(x).grid == (6, 6)
    torch.testing.assert_close(view.forward(x), made(x), rtol=1e-5, atol=1e-6)


def test_the_bundled_backbone() -> None:
    made = backbone("bundled")
    x = made.sample_input()
    torch.testing.assert_close(transformer(made).forward(x), made(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["deberta", "mpnet", "siglip"])
def test_an_unknown_architecture_is_refused(tiny: Tiny, kind: str) -> None:
    with pytest.raises(ModelError):
        transformer(from_transformers(tiny(kind)))


def test_blocks_that_hold_something_else_are_refused() -> None:
    made = fake_timm()
    block = made.model.get_submodule("blocks.1")
    block.register_forward_hook(lambda module, inputs, output: output.roll(1, -1))
    with pytest.raises(ModelError, match="gives other features"):
        transformer(made)


def test_a_pooling_without_tokens_is_refused() -> None:
    made = fake_timm()
    made.features = replace(made.features, pooling="pooled")  # type: ignore[type-var]
    with pytest.raises(ModelError, match="pooling 'cls', 'mean' or 'last'"):
        transformer(made)
