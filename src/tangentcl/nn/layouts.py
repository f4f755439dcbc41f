"""Which modules of a backbone are its embedding, blocks and read-out: one function per naming convention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone
from tangentcl.nn.blocks import JoinedProjection, SeparateProjections, Tokens, Transformer, TransformerBlock
from tangentcl.nn.vit import Block

AGREES = 1e-4  # largest deviation from the backbone's own features, relative to their largest entry


def transformer(backbone: Backbone) -> Transformer:
    """A backbone taken apart into blocks, whose features are checked against the backbone's own on its sample.

    Understood are the library's `SmallViT` (and any model with its ``embed``, ``blocks`` of `Block` and ``norm``),
    Vision Transformers of timm, ViT of transformers, and text encoders laid out like BERT (BERT, MiniLM, RoBERTa).

    Raises:
        ModelError: another architecture, a read-out other than "cls", "mean" or "last", or features that differ.

    >>> from tangentcl.nn.backbone import backbone
    >>> view = transformer(backbone("bundled"))
    >>> len(view.blocks), view.width
    (6, 192)
    """
    name = backbone.card.name
    take_apart = next((parts for fits, parts in LAYOUTS if fits(backbone.model)), None)
    if take_apart is None:
        raise ModelError(
            f"{name} ({type(backbone.model).__name__}) cannot be taken apart into transformer blocks. Try the bundled "
            "backbone, a Vision Transformer of timm or transformers, or a text encoder laid out like BERT."
        )
    pooling = getattr(backbone.features, "pooling", None)
    if pooling not in ("cls", "mean", "last"):
        raise ModelError(f"{name}: modules between blocks need pooling 'cls', 'mean' or 'last', not {pooling!r}.")
    view = take_apart(backbone, pooling)
    sample = backbone.sample_input()
    with torch.no_grad():
        expected, found = backbone(sample), view.forward(sample)
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not error < AGREES:
        raise ModelError(
            f"{name}: taken apart into blocks, the model gives other features (by {error:.1e} of the largest); its "
            "blocks hold something that is not known here. Try another architecture."
        )
    return view


def _has(module: Any, *paths: str) -> bool:
    return all(_find(module, path) is not None for path in paths)


def _find(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


@dataclass(frozen=True)
class _OwnEmbedding:
    model: Any
    n_prefix: int

    def __call__(self, x: Any) -> Tokens:
        values = self.model.embed(x)
        return Tokens(values, grid=_square(values.shape[1] - self.n_prefix), n_prefix=self.n_prefix)


def _square(n: int) -> tuple[int, int] | None:
    side = round(n**0.5)
    return (side, side) if side * side == n else None


def _is_own(model: Any) -> bool:
    blocks = getattr(model, "blocks", None)
    return (
        _has(model, "embed", "norm")
        and isinstance(blocks, nn.ModuleList)
        and all(isinstance(block, Block) for block in blocks)
    )


def _own(backbone: Backbone, pooling: str) -> Transformer:
    model: Any = backbone.model
    blocks = tuple(
        TransformerBlock(
            SeparateProjections(block.attention.q, block.attention.k, block.attention.v),
            block.attention.o,
            block.attention.heads,
            block.norm1,
            block.norm2,
            (block.fc1, nn.GELU(), block.fc2),
        )
        for block in model.blocks
    )
    embed = _OwnEmbedding(model, getattr(backbone.features, "n_prefix", 0))
    return Transformer(embed, blocks, model.norm, backbone.width, pooling)


@dataclass(frozen=True)
class _TimmEmbedding:
    model: Any
    n_prefix: int

    def __call__(self, x: Any) -> Tokens:
        values = self.model._pos_embed(self.model.patch_embed(x))
        for name in ("patch_drop", "norm_pre"):
            layer = getattr(self.model, name, None)
            values = values if layer is None else layer(values)
        return Tokens(values, grid=_grid(x, self.model.patch_embed.patch_size), n_prefix=self.n_prefix)


def _grid(x: Tensor, patch: Any) -> tuple[int, int]:
    rows, columns = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    return x.shape[-2] // int(rows), x.shape[-1] // int(columns)


def _is_timm(model: Any) -> bool:
    return _has(model, "patch_embed.patch_size", "_pos_embed", "blocks", "norm") and all(
        _has(block, "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for block in model.blocks
    )


def _timm(backbone: Backbone, pooling: str) -> Transformer:
    model: Any = backbone.model

    def optional(block: Any, path: str) -> nn.Module:
        found = _find(block, path)
        return nn.Identity() if found is None else found

    blocks = tuple(
        TransformerBlock(
            JoinedProjection(block.attn.qkv),
            block.attn.proj,
            block.attn.num_heads,
            block.norm1,
            block.norm2,
            (block.mlp,),
            scale1=optional(block, "ls1"),
            scale2=optional(block, "ls2"),
            q_norm=optional(block, "attn.q_norm"),
            k_norm=optional(block, "attn.k_norm"),
        )
        for block in model.blocks
    )
    embed = _TimmEmbedding(model, getattr(backbone.features, "n_prefix", 1))
    return Transformer(embed, blocks, model.norm, backbone.width, pooling)


@dataclass(frozen=True)
class _HFImageEmbedding:
    model: Any
    n_prefix: int
    interpolate: bool

    def __call__(self, x: Any) -> Tokens:
        values = self.model.embeddings(x, interpolate_pos_encoding=self.interpolate)
        return Tokens(values, grid=_grid(x, self.model.config.patch_size), n_prefix=self.n_prefix)


def _vit_layers(model: Any) -> Any:
    found = _find(model, "encoder.layer")  # transformers 4
    return getattr(model, "layers", None) if found is None else found


def _is_hf_vit(model: Any) -> bool:
    layers = _vit_layers(model)
    return (
        layers is not None
        and _has(model, "embeddings.patch_embeddings", "layernorm")
        and all(
            _has(layer, "layernorm_before", "layernorm_after")
            and (_has(layer, "attention.q_proj", "mlp.fc1") or _has(layer, "attention.attention.query"))
            for layer in layers
        )
    )


def _hf_vit(backbone: Backbone, pooling: str) -> Transformer:
    model: Any = backbone.model
    blocks = tuple(_hf_vit_block(layer, model.config.num_attention_heads) for layer in _vit_layers(model))
    n_prefix, interpolate = getattr(backbone.features, "n_prefix", 1), getattr(backbone.features, "interpolate", False)
    embed = _HFImageEmbedding(model, n_prefix, interpolate)
    return Transformer(embed, blocks, model.layernorm, backbone.width, pooling)


def _hf_vit_block(layer: Any, heads: int) -> TransformerBlock:
    if _has(layer, "attention.q_proj"):
        attend = layer.attention
        projections = SeparateProjections(attend.q_proj, attend.k_proj, attend.v_proj)
        output, mlp = attend.o_proj, (layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2)
    else:  # transformers 4
        attend = layer.attention.attention
        projections = SeparateProjections(attend.query, attend.key, attend.value)
        output = layer.attention.output.dense
        mlp = (layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense)
    return TransformerBlock(projections, output, heads, layer.layernorm_before, layer.layernorm_after, mlp)


@dataclass(frozen=True)
class _TextEmbedding:
    model: Any

    def __call__(self, x: Any) -> Tokens:
        if isinstance(x, Tensor) or "input_ids" not in x:
            raise ModelError("a text backbone eats {'input_ids', 'attention_mask'}, not something else.")
        ids = x["input_ids"]
        return Tokens(self.model.embeddings(input_ids=ids), mask=x.get("attention_mask", torch.ones_like(ids)))


def _is_bert(model: Any) -> bool:
    return _has(model, "embeddings.word_embeddings", "encoder.layer") and all(
        _has(layer, "attention.self.query", "attention.output.LayerNorm", "intermediate.dense", "output.LayerNorm")
        for layer in model.encoder.layer
    )


def _bert(backbone: Backbone, pooling: str) -> Transformer:
    model: Any = backbone.model
    blocks = tuple(
        TransformerBlock(
            SeparateProjections(layer.attention.self.query, layer.attention.self.key, layer.attention.self.value),
            layer.attention.output.dense,
            layer.attention.self.num_attention_heads,
            layer.attention.output.LayerNorm,
            layer.output.LayerNorm,
            (layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
            pre_norm=False,
        )
        for layer in model.encoder.layer
    )
    normalize = getattr(backbone.features, "normalize", False)
    return Transformer(_TextEmbedding(model), blocks, nn.Identity(), backbone.width, pooling, normalize)


Fits = Callable[[Any], bool]
LAYOUTS: tuple[tuple[Fits, Callable[[Backbone, str], Transformer]], ...] = (
    (_is_own, _own),
    (_is_timm, _timm),
    (_is_hf_vit, _hf_vit),
    (_is_bert, _bert),
)
