"""The trunks against the same computation without any short cut, written anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tangentcl.nn.backbone import Backbone, PooledTokens, from_module
from tangentcl.nn.blocks import Transformer, TransformerBlock, with_prompts
from tangentcl.nn.branches import TwoBranches
from tangentcl.nn.channel_adapter import ChannelAdapter
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.layouts import transformer
from tangentcl.nn.patch_prompts import make_prompts
from tangentcl.nn.trunks import stacked, stem, trunk
from tangentcl.nn.vit import SmallViT

PROMPTS = 3


def image_backbone(pooling: str, patch: int = 8) -> Backbone:
    model = SmallViT(width=24, depth=3, heads=3, patch=patch)
    return from_module(model, PooledTokens(pooling), 24, name="v", modality="image", sample=torch.randn(3, 3, 32, 32))


def naive_attention(block: TransformerBlock, x: Tensor, mask: Tensor) -> Tensor:
    """After the attention sub-layer, head by head, every token."""
    source = block.norm1(x) if block.pre_norm else x
    q = block.projections.query(source)
    k, v = block.projections.key_value(source)
    e = q.shape[-1] // block.heads
    heads = []
    for h in range(block.heads):
        part = slice(h * e, (h + 1) * e)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / e**0.5
        counted = (scores - scores.amax(-1, keepdim=True)).exp() * mask[:, None]
        heads.append(counted / counted.sum(-1, keepdim=True) @ v[..., part])
    out = block.output(torch.cat(heads, dim=-1))
    return x + out if block.pre_norm else block.norm1(x + out)


def naive_mlp(block: TransformerBlock, x: Tensor) -> Tensor:
    h = block.norm2(x) if block.pre_norm else x
    for layer in block.mlp:
        h = layer(h)
    return h


def naive_channel(model: Transformer, x: object, adapters: nn.ModuleList) -> Tensor:
    tokens = model.embed(x)  # type: ignore[arg-type]
    h = tokens.values
    mask = torch.ones(h.shape[:2]) if tokens.mask is None else tokens.mask
    for block, adapter in zip(model.blocks, adapters, strict=True):
        h = naive_attention(block, h, mask)
        total = h + naive_mlp(block, h) + adapter(h)
        h = total if block.pre_norm else block.norm2(total)
    return model.read(h, tokens)


def naive_patch(
    model: Transformer,
    x: object,
    prompts: nn.ModuleList,
    adapters: nn.ModuleList | None = None,
    share: float | None = None,
) -> Tensor:
    """Prompts right behind the first token, as in the paper's layout; adapters act on the input's tokens."""
    tokens = model.embed(x)  # type: ignore[arg-type]
    h = tokens.values
    mask = torch.ones(h.shape[:2]) if tokens.mask is None else tokens.mask
    for i, block in enumerate(model.blocks):
        h = naive_attention(block, h, mask)
        if i == 0:
            rest, old = h, torch.zeros(len(h), PROMPTS, h.shape[2])
            weight = torch.ones(len(h), 1) if share is None else share * mask.sum(1, keepdim=True) / PROMPTS
            mask = torch.cat([mask[:, :1], weight.expand(-1, PROMPTS), mask[:, 1:]], dim=1)
        else:
            rest, old = torch.cat([h[:, :1], h[:, 1 + PROMPTS :]], dim=1), h[:, 1 : 1 + PROMPTS]
        made = prompts[i](rest, tokens) + 0.1 * old if i < len(prompts) else old
        residual = torch.cat([rest[:, :1], old, rest[:, 1:]], dim=1)
        total = residual + naive_mlp(block, torch.cat([rest[:, :1], made, rest[:, 1:]], dim=1))
        if adapters is not None:
            more = adapters[i](rest)
            total = total + torch.cat([more[:, :1], torch.zeros_like(old), more[:, 1:]], dim=1)
        h = total if block.pre_norm else block.norm2(total)
    return model.read(torch.cat([h[:, :1], h[:, 1 + PROMPTS :]], dim=1), tokens)


def modules(model: Transformer, form: str, n_tokens: int, n_prefix: int | None) -> tuple[nn.ModuleList, nn.ModuleList]:
    torch.manual_seed(1)
    adapters = nn.ModuleList(ChannelAdapter(model.width, rank=4, dropout=0.0) for _ in model.blocks)
    made = (
        make_prompts(form, model.width, PROMPTS, n_tokens=n_tokens, n_prefix=n_prefix, modes=4)
        for _ in model.blocks[1:]
    )
    prompts = nn.ModuleList(made)
    for p in (*adapters.parameters(), *prompts.parameters()):
        nn.init.normal_(p, std=0.5)
    return adapters, prompts


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


@pytest.mark.parametrize("kind", ["cls", "mean", "many tokens", "bert", "bert cls", "vit"])
@pytest.mark.parametrize("form", ["linear", "dct", "attention", "static"])
def test_loss_and_gradients_equal_the_plain_computation(tiny: Callable[[str], nn.Module], kind: str, form: str) -> None:
    torch.manual_seed(0)
    if kind.startswith("bert"):
        made = from_transformers(tiny("bert"), pooling="cls" if "cls" in kind else "mean")
    elif kind == "vit":
        made = from_transformers(tiny("vit"))
    else:
        made = image_backbone("mean" if kind == "mean" else "cls", patch=4 if kind == "many tokens" else 8)
    model, x = transformer(made), made.sample_input()
    tokens = model.embed(x)
    n_prefix = None if tokens.grid is None else tokens.n_prefix
    adapters, prompts = modules(model, form, tokens.values.shape[1], n_prefix)
    target = torch.randn(len(tokens.values), model.width)
    start = stem(model, x)
    for module, ours, naive in (
        (adapters, trunk(model, start, adapters=adapters), naive_channel(model, x, adapters)),
        (prompts, trunk(model, start, prompts=prompts), naive_patch(model, x, prompts)),
    ):
        ours, naive = (ours - target).square().mean(), (naive - target).square().mean()
        torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-6)
        for mine, reference in zip(gradients(ours, module), gradients(naive, module), strict=True):
            scale = float(reference.abs().max())
            assert float((mine - reference).abs().max()) <= 1e-5 * max(scale, 1.0)


@pytest.mark.parametrize("kind", ["cls", "bert"])
def test_a_joint_pass_equals_the_plain_computation(tiny: Callable[[str], nn.Module], kind: str) -> None:
    made = from_transformers(tiny("bert"), pooling="mean") if kind == "bert" else image_backbone("cls")
    model, x = transformer(made), made.sample_input()
    tokens = model.embed(x)
    n_prefix = None if tokens.grid is None else tokens.n_prefix
    adapters, prompts = modules(model, "attention", tokens.values.shape[1], n_prefix)
    both = nn.ModuleList([*adapters, *prompts])
    target = torch.randn(len(tokens.values), model.width)
    ours = trunk(model, stem(model, x), adapters=adapters, prompts=prompts)
    naive = naive_patch(model, x, prompts, adapters)
    torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-5)
    ours, naive = (ours - target).square().mean(), (naive - target).square().mean()
    for mine, reference in zip(gradients(ours, both), gradients(naive, both), strict=True):
        assert float((mine - reference).abs().max()) <= 1e-5 * max(float(reference.abs().max()), 1.0)


@pytest.mark.parametrize("kind", ["cls", "mean", "many tokens", "bert"])
def test_prompts_with_a_share_equal_the_plain_computation(tiny: Callable[[str], nn.Module], kind: str) -> None:
    if kind == "bert":
        made = from_transformers(tiny("bert"), pooling="mean")
    else:
        made = image_backbone("mean" if kind == "mean" else "cls", patch=4 if kind == "many tokens" else 8)
    model, x = transformer(made), made.sample_input()
    tokens = model.embed(x)
    prompts = modules(model, "attention", tokens.values.shape[1], None)[1]
    plain = trunk(model, stem(model, x), prompts=prompts)
    for share in (0.05, 2.0):
        ours = trunk(model, stem(model, x), prompts=prompts, prompt_share=share)
        naive = naive_patch(model, x, prompts, share=share)
        torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, plain, atol=1e-3)
        mine, reference = gradients(ours.square().mean(), prompts), gradients(naive.square().mean(), prompts)
        for a, b in zip(mine, reference, strict=True):
            assert float((a - b).abs().max()) <= 1e-5 * max(float(b.abs().max()), 1.0)
    if tokens.mask is None:  # as many tokens as prompts count what prompts counted without a share
        as_many = trunk(model, stem(model, x), prompts=prompts, prompt_share=PROMPTS / tokens.values.shape[1])
        torch.testing.assert_close(as_many, plain, rtol=1e-5, atol=1e-6)
    exact = with_prompts(torch.ones(1, 3), torch.zeros(1, 7, 2), torch.zeros(1, 3, 2, dtype=torch.float64), 0.1)
    assert exact is not None
    assert exact[0, -1] == 0.1 / 7 * 3  # in the tokens' precision
    hardly = trunk(model, stem(model, x), prompts=prompts, prompt_share=1e-9)
    torch.testing.assert_close(hardly, trunk(model, stem(model, x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [1, 2])
def test_blocks_before_the_first_adapted_one_stay_as_they_were(first: int) -> None:
    made = image_backbone("cls")
    model, x = transformer(made), made.sample_input()
    adapters, prompts = modules(model, "linear", 17, 1)
    start = stem(model, x, first)

    class Nothing(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros_like(tokens)

    late = nn.ModuleList([*(Nothing() for _ in range(first)), *adapters[first:]])
    torch.testing.assert_close(
        trunk(model, start, adapters=adapters[first:]), naive_channel(model, x, late), rtol=1e-5, atol=1e-5
    )
    if first < len(model.blocks) - 1:  # later blocks are a network of their own, fed with the tokens before them
        values = model.embed(x).values
        for block in model.blocks[:first]:
            values = block.forward(values)
        rest = replace(model, embed=lambda tokens: replace(model.embed(x), values=tokens), blocks=model.blocks[first:])
        expected = naive_patch(rest, values, prompts[first:])
        torch.testing.assert_close(trunk(model, start, prompts=prompts[first:]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "bert"])
@pytest.mark.parametrize(
    "options", [{"ptm_section": True}, {"joint": True, "ptm_section": True}, {"ema": "off"}, {"prompt_share": 0.1}]
)
def test_branches_as_one_batch_equal_branches_one_after_another(
    tiny: Callable[[str], nn.Module], kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = from_transformers(tiny("bert"), pooling="mean") if kind == "bert" else image_backbone("cls")
    model, x = transformer(made), made.sample_input()
    if isinstance(x, dict):
        x = {**x, "attention_mask": x["attention_mask"].clone()}
        x["attention_mask"][0, -1] = 0
    tokens = model.embed(x)
    n_prefix = None if tokens.grid is None else tokens.n_prefix
    adapters, prompts = modules(model, "attention", tokens.values.shape[1], n_prefix)
    network = TwoBranches(made, model, channel=adapters, patch=prompts, **options)
    if network.bank is not None:
        for value in network.bank.copy.buffers():
            value.add_(0.2 * torch.randn_like(value))
    with torch.no_grad():
        monkeypatch.setattr("tangentcl.nn.branches.STACK_TOKENS", 0)
        apart = network.views(x)
        monkeypatch.setattr("tangentcl.nn.branches.STACK_TOKENS", 10**6)
        together = network.views(x)
    for name, view in apart.named().items():
        torch.testing.assert_close(together.named()[name], view, rtol=1e-5, atol=1e-5)


def test_stacked_modules_see_their_own_part() -> None:
    one = stacked([[nn.Identity()], None])[0]
    torch.testing.assert_close(one(torch.ones(4, 1, 2)).sum((1, 2)), torch.tensor([2.0, 2.0, 0.0, 0.0]))


def test_known_frozen_features_change_neither_loss_nor_gradients() -> None:
    made = image_backbone("cls")
    model, x = transformer(made), made.sample_input()
    adapters, prompts = modules(model, "linear", 17, 1)
    network = TwoBranches(made, model, channel=adapters, patch=prompts, ptm_section=True)
    target = torch.randn(3, network.width)
    losses = [(network.views(x, known).fused - target).square().mean() for known in (None, network.frozen(x))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    for mine, reference in zip(gradients(losses[1], network.current), gradients(losses[0], network.current)):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-7)


def test_the_fusion_leaves_the_pretrained_section_alone() -> None:
    made = image_backbone("cls")
    model, x = transformer(made), made.sample_input()
    for fuse in (False, True):
        adapters, prompts = modules(model, "linear", 17, 1)
        network = TwoBranches(made, model, channel=adapters, patch=prompts, ptm_section=True, fuse_ptm=fuse)
        assert network.fusion is not None
        nn.init.normal_(network.fusion.value.weight)
        same = torch.allclose(network.views(x).fused[:, :24], made(x), rtol=1e-5, atol=1e-6)
        assert same is not fuse


def test_without_adapters_the_features_are_the_backbones() -> None:
    made = image_backbone("cls")
    model, x = transformer(made), made.sample_input()
    torch.testing.assert_close(trunk(model, stem(model, x)), made(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["dct", "attention", "static", "linear"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_no_feature(tiny: Callable[[str], nn.Module], form: str, pooling: str) -> None:
    made = from_transformers(tiny("bert"), pooling=pooling)
    model = transformer(made)
    ids = torch.tensor([[3, 4, 5, 6]])
    short = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    longer = {key: nn.functional.pad(value, (0, 3)) for key, value in short.items()}
    n_tokens = 4
    adapters, prompts = modules(model, "attention" if form == "linear" else form, n_tokens, None)
    both: dict[str, Any] = {"adapters": adapters, "prompts": prompts}
    for chosen in ({"adapters": adapters}, {"prompts": prompts}, both, {**both, "prompt_share": 0.3}):
        a, b = (trunk(model, stem(model, x), **chosen) for x in (short, longer))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_branches_without_current_modules_have_no_gradient() -> None:
    made = image_backbone("cls")
    model = transformer(made)
    adapters, prompts = modules(model, "linear", 17, 1)
    network = TwoBranches(made, model, channel=adapters, patch=prompts, ptm_section=True)
    views = network.views(made.sample_input())
    assert views.fused.shape == (3, 72)
    assert views.channel is not None
    expected = made(made.sample_input())
    torch.testing.assert_close(views.channel[:, :24], expected, rtol=1e-5, atol=1e-6)
    weighted = views.channel * torch.randn_like(views.channel)
    frozen, live = weighted[:, :48].sum(), weighted[:, 48:].sum()
    mine = list(adapters.parameters())
    assert not any(bool(g.any()) for g in torch.autograd.grad(frozen, mine, retain_graph=True))
    assert all(bool(g.any()) for g in torch.autograd.grad(live, mine))
