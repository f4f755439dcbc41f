"""The bundled architecture and its weight file."""

from __future__ import annotations

import shutil

import pytest
import torch

from tangentcl.errors import ModelError
from tangentcl.nn.vit import BUNDLED, SmallViT, bundled_card, load_bundled

TINY = {"width": 24, "depth": 2, "heads": 3, "stem": (8, 8)}


@pytest.mark.parametrize(("patch", "n_tokens"), [(4, 65), (8, 17)])
def test_one_token_per_patch_and_cls(patch: int, n_tokens: int) -> None:
    assert SmallViT(patch=patch, **TINY)(torch.zeros(2, 3, 32, 32)).shape == (2, n_tokens, 24)


def test_full_size_stays_under_three_million_parameters() -> None:
    assert sum(p.numel() for p in SmallViT().parameters()) < 3_000_000


def test_initial_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    a = SmallViT(seed=5, **TINY)
    torch.manual_seed(2)
    b, c = SmallViT(seed=5, **TINY), SmallViT(seed=6, **TINY)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.cls, c.cls)
    assert not torch.equal(a.blocks[0].fc1.weight, c.blocks[0].fc1.weight)


def test_attention_equals_the_fused_kernel() -> None:
    layer = SmallViT(**TINY).blocks[0].attention.double()
    x = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = (p(x).unflatten(-1, (3, 8)).transpose(1, 2) for p in (layer.q, layer.k, layer.v))
    expected = layer.o(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected)


def test_forward_mode_agrees_with_reverse_mode() -> None:
    model = SmallViT(**TINY).double()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=g)
    tangent = {n: torch.randn(p.shape, dtype=p.dtype, generator=g) for n, p in weights.items()}

    def out(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, w, (x,))[:, 0].sum()

    _, forward = torch.func.jvp(out, (weights,), (tangent,))
    reverse = sum((g * tangent[n]).sum() for n, g in torch.func.grad(out)(weights).items())
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("size", [(2, 3, 28, 28), (2, 1, 32, 32), (3, 32, 32)])
def test_other_image_sizes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"\[B, 3, 32, 32\]"):
        SmallViT(**TINY)(torch.zeros(size))


@pytest.mark.parametrize(("bad", "word"), [({"patch": 5}, "patch"), ({"heads": 5}, "heads")])
def test_sizes_that_do_not_fit_are_refused(bad: dict[str, int], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        SmallViT(**{**TINY, **bad})


def test_bundled_file_is_small_and_is_the_one_of_the_card() -> None:
    assert (BUNDLED / "bundled.safetensors").stat().st_size < 6_000_000
    model, card = load_bundled(), bundled_card()
    assert not model.training
    assert model.width == 192
    assert sum(p.numel() for p in model.parameters()) == card["n_parameters"]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_one_flipped_byte_is_refused(tmp_path) -> None:
    for name in ("bundled.safetensors", "card.json"):
        shutil.copy(BUNDLED / name, tmp_path)
    path = tmp_path / "bundled.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="sha256"):
        load_bundled(tmp_path)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="found none"):
        load_bundled(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_card_is_named(tmp_path, content):
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"card\.json .*Try reinstalling"):
        bundled_card(tmp_path)
