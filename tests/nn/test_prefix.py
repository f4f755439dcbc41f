"""Prefixes against attention written out over all keys; prompt tokens against a longer input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.nn.backbone import Backbone, PooledTokens, from_module
from tangentcl.nn.blocks import Tokens, Transformer, TransformerBlock
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.layouts import transformer
from tangentcl.nn.prefix import Prefixes, PrefixPool, check_blocks, first_blocks, prefixed
from tangentcl.nn.prompt_tokens import prompted
from tangentcl.nn.prompted_trunk import PromptedTrunk, cosines
from tangentcl.nn.vit import SmallViT

Tiny = Callable[[str], nn.Module]
KINDS = ("vit-cls", "vit-mean", "hf-vit", "bert", "bert-cls")


def made(kind: str, tiny: Tiny) -> tuple[Backbone, Transformer, Tensor | dict[str, Tensor]]:
    """Pre-norm images, and post-norm texts of which one is padded."""
    torch.manual_seed(0)
    if kind.startswith("vit"):
        model = SmallViT(width=24, depth=3, heads=3)
        x: Tensor | dict[str, Tensor] = torch.randn(3, 3, 32, 32)
        found = from_module(model, PooledTokens(kind[4:]), 24, name="v", modality="image", sample=x)
    elif kind == "hf-vit":
        found, x = from_transformers(tiny("vit")), torch.randn(3, 3, 32, 32)
    else:
        found = from_transformers(tiny("bert"), pooling="cls" if kind == "bert-cls" else "mean")
        ids, mask = torch.randint(5, 16, (3, 7)), torch.ones(3, 7, dtype=torch.long)
        mask[1, 4:] = 0
        x = {"input_ids": ids, "attention_mask": mask}
    return found, transformer(found), x


def drawn(model: Transformer, n: int, length: int, blocks: tuple[int, ...] = (0, 1)) -> Prefixes:
    return {i: (torch.randn(n, length, model.width), torch.randn(n, length, model.width)) for i in blocks}


def dense_block(block: TransformerBlock, x: Tensor, mask: Tensor, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """One sample, one query and one head at a time, padding taken out and not masked: ``[B, N, d] -> [B, N, d]``."""
    outputs = []
    for i, tokens in enumerate(x):
        source = block.norm1(tokens) if block.pre_norm else tokens
        q = block.projections.query(source[None])[0]
        k, v = (t[0][mask[i].bool()] for t in block.projections.key_value(source[None]))
        if prefix is not None:
            k, v = torch.cat([prefix[0][i], k]), torch.cat([prefix[1][i], v])  # before the tokens: order is no matter
        e = q.shape[-1] // block.heads
        heads = []
        for h in range(block.heads):
            part = slice(h * e, (h + 1) * e)
            weights = torch.softmax(q[:, part] @ k[:, part].T / e**0.5, dim=1)
            heads.append(weights @ v[:, part])
        out = block.output(torch.cat(heads, dim=1))
        outputs.append(tokens + out if block.pre_norm else block.norm1(tokens + out))
    attended = torch.stack(outputs)
    h = block.norm2(attended) if block.pre_norm else attended
    for layer in block.mlp:
        h = layer(h)
    return attended + h if block.pre_norm else block.norm2(attended + h)


def dense(model: Transformer, tokens: Tokens, prefixes: Prefixes) -> Tensor:
    h = tokens.values
    mask = torch.ones(h.shape[:2]) if tokens.mask is None else tokens.mask
    for i, block in enumerate(model.blocks):
        h = dense_block(block, h, mask, prefixes.get(i))
    return model.read(h, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_are_further_keys_and_values_of_each_sample(kind: str, tiny: Tiny) -> None:
    _, model, x = made(kind, tiny)
    tokens = model.embed(x)
    for blocks in ((0, 1), (len(model.blocks) - 1,)):  # the last block computes what is read alone
        prefixes = drawn(model, 3, 4, blocks)
        found = prefixed(model, tokens, prefixes)
        torch.testing.assert_close(found, dense(model, tokens, prefixes), rtol=1e-4, atol=1e-5)
        assert (found - prefixed(model, tokens, {})).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_without_keys_a_prefix_is_no_prefix(kind: str, tiny: Tiny) -> None:
    backbone, model, x = made(kind, tiny)
    tokens = model.embed(x)
    plain = prefixed(model, tokens, {})
    torch.testing.assert_close(plain, backbone(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prefixed(model, tokens, drawn(model, 3, 0)), plain, rtol=0, atol=1e-6)
    no_prompts = prompted(model, tokens, torch.zeros(3, 0, model.width), "backbone")
    torch.testing.assert_close(no_prompts, plain, rtol=0, atol=1e-6)


def test_many_tokens_take_the_fused_kernel_to_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = SmallViT(width=24, depth=2, heads=3, patch=4)
    sample = torch.randn(2, 3, 32, 32)
    view = transformer(from_module(model, PooledTokens("mean"), 24, name="v", modality="image", sample=sample))
    tokens, prefixes = view.embed(sample), drawn(view, 2, 3)
    torch.testing.assert_close(prefixed(view, tokens, prefixes), dense(view, tokens, prefixes), rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_prefix_alone(tiny: Tiny) -> None:
    backbone, model, x = made("bert", tiny)
    prefixes = {0: (torch.randn(3, 2, 32, requires_grad=True), torch.randn(3, 2, 32, requires_grad=True))}
    prefixed(model, model.embed(x), prefixes).square().sum().backward()
    assert all(t.grad is not None and bool(t.grad.any()) for t in prefixes[0])
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_tokens_are_further_tokens(kind: str, tiny: Tiny) -> None:
    _, model, x = made(kind, tiny)
    tokens, prompts = model.embed(x), torch.randn(3, 2, model.width)
    mask = torch.ones(tokens.values.shape[:2]) if tokens.mask is None else tokens.mask
    mask = torch.cat([torch.ones(3, 2), mask], dim=1)
    h = torch.cat([prompts, tokens.values], dim=1)
    for block in model.blocks:
        h = dense_block(block, h, mask, None)
    torch.testing.assert_close(prompted(model, tokens, prompts), model.norm(h[:, :2]).mean(1), rtol=1e-4, atol=1e-5)
    expected = model.read(h[:, 2:], tokens)
    torch.testing.assert_close(prompted(model, tokens, prompts, "backbone"), expected, rtol=1e-4, atol=1e-5)


def test_a_pool_hands_out_what_was_put_in() -> None:
    pool = PrefixPool(8, blocks=(0, 3), length=2)
    pool.append(pool.drawn(2))
    pool.append(pool.drawn(1))
    assert len(pool) == 3
    assert [p.requires_grad for p in pool.groups] == [False, True]
    everything = pool.all
    assert everything.abs().max() <= 1
    chosen = pool.chosen(torch.tensor([2, 0]))
    assert torch.equal(chosen[3][1], everything[[2, 0], 1, 1])
    assert torch.equal(pool.same(-1, 5)[0][0], everything[[2] * 5, 0, 0])
    weights = torch.randn(4, 3, 2)
    expected = sum(weights[:, m, 1, None, None] * everything[m, 1, 0] for m in range(3))
    torch.testing.assert_close(pool.mixed(weights)[3][0], expected)


def test_shapes_and_blocks_that_do_not_fit_are_refused(tiny: Tiny) -> None:
    _, model, x = made("vit-cls", tiny)
    tokens = model.embed(x)
    with pytest.raises(ModelError, match="block 7 of a transformer with blocks 0 to 2"):
        prefixed(model, tokens, drawn(model, 3, 2, (7,)))
    with pytest.raises(ModelError, match=r"expected keys and values \[3, P, 24\]"):
        prefixed(model, tokens, drawn(model, 2, 2))
    with pytest.raises(ModelError, match=r"expected prompts \[3, P, 24\]"):
        prompted(model, tokens, torch.zeros(3, 2, 8))
    with pytest.raises(ModelError, match="no prompt to read"):
        prompted(model, tokens, torch.zeros(3, 0, 24))
    with pytest.raises(ModelError, match=r"expected prefixes \[m, 1, 2, 2, 8\]"):
        PrefixPool(8, (0,), 2).append(torch.zeros(1, 1, 2, 3, 8))
    with pytest.raises(ConfigError, match="at least 1"):
        PrefixPool(8, (0,), 0)
    for wrong in ([], [0, 0], [3], [-1]):
        with pytest.raises(ConfigError, match="blocks must be different block indices from 0 to 2"):
            check_blocks("blocks", wrong, 3)


def test_the_first_blocks_of_shallow_networks_are_the_same_share() -> None:
    assert [first_blocks(depth, 2) for depth in (1, 2, 6, 7, 12, 24)] == [1, 1, 1, 2, 2, 2]


def test_every_pass_of_a_trunk_is_counted_and_the_query_is_the_feature(tiny: Tiny) -> None:
    backbone, _, x = made("bert", tiny)
    trunk = PromptedTrunk(backbone)
    expected, before = backbone(x), backbone.passes
    tokens = trunk.embed(x)
    query = trunk.query(tokens)
    trunk.prefixed(tokens, {})
    trunk.prompted(tokens, torch.zeros(3, 1, 32), "prompts")
    assert backbone.passes - before == 9
    torch.testing.assert_close(query, expected, rtol=1e-5, atol=1e-6)
    assert not query.requires_grad


def test_cosines_keep_their_digits_in_half_precision() -> None:
    query, keys = torch.randn(4, 64).bfloat16(), torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosines(query, keys)
    expected = torch.cosine_similarity(query.double()[:, None], keys.double()[None], dim=2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
