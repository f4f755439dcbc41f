"""How a transformers encoder is called, and its tokens pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn.pooling import pool_image, pool_text


@dataclass(frozen=True)
class ImageFeatures:
    """``features`` of a vision encoder: pixel values [B, 3, H, W] -> [B, width].

    ``final_norm`` names a norm that the encoder applies to its class token only (CLIP); it is applied to every token
    here, so that "cls" equals the encoder's own pooled output. ``interpolate`` resizes the position embedding.
    """

    pooling: str
    n_prefix: int = 0
    final_norm: str | None = None
    interpolate: bool = False

    def outputs(self, model: nn.Module, x: Tensor) -> Any:
        """Everything the encoder returns."""
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ModelError(f"an image backbone eats tensors [B, 3, H, W], not {described(x)}.")
        if self.interpolate:
            return model(pixel_values=x, interpolate_pos_encoding=True)
        return model(pixel_values=x)

    def tokens(self, model: nn.Module, x: Tensor) -> Tensor:
        """Tokens [B, N, d] after the final norm; the map of a convolutional model becomes its positions."""
        tokens = self.outputs(model, x).last_hidden_state
        if tokens.ndim == 4:
            return tokens.flatten(2).transpose(1, 2)  # [B, d, h, w] -> [B, h w, d]
        return tokens if self.final_norm is None else getattr(model, self.final_norm)(tokens)

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        if self.pooling == "pooled":
            return self.outputs(model, x).pooler_output.flatten(1)
        return pool_image(self.tokens(model, x), self.pooling, self.n_prefix)


@dataclass(frozen=True)
class TextFeatures:
    """``features`` of a text encoder: ``{"input_ids", "attention_mask"}`` [B, N] -> [B, width].

    With ``additive_mask`` the encoder gets the additive mask [B, 1, 1, N] that it would build itself: with the plain
    one, transformers looks at the mask's values, and ``torch.func.vmap`` refuses that.
    """

    pooling: str
    normalize: bool = False
    additive_mask: bool = True

    def __call__(self, model: nn.Module, x: dict[str, Tensor]) -> Tensor:
        if isinstance(x, Tensor) or "input_ids" not in x:
            raise ModelError(f"a text backbone eats {{'input_ids', 'attention_mask'}}, not {described(x)}.")
        ids = x["input_ids"]
        mask = x.get("attention_mask", torch.ones_like(ids))
        given = additive(mask, next(model.parameters()).dtype) if self.additive_mask else mask
        outputs = model(input_ids=ids, attention_mask=given)
        if self.pooling == "pooled":
            features = outputs.pooler_output
        else:
            features = pool_text(outputs.last_hidden_state, mask, self.pooling)
        return F.normalize(features, dim=-1) if self.normalize else features


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask of ones and zeros [B, N] -> what is added to attention scores [B, 1, 1, N]: 0 or the lowest number.

    >>> additive(torch.tensor([[1, 0]]), torch.float16)
    tensor([[[[     0., -65504.]]]], dtype=torch.float16)
    """
    hidden = torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)
    return hidden[:, None, None, :]


def described(x: Any) -> str:
    """What a batch is, for an error.

    >>> described(torch.zeros(2, 3)), described({"input_ids": torch.zeros(1)}), described(None)
    ('a tensor (2, 3)', "{'input_ids'}", 'NoneType')
    """
    if isinstance(x, Tensor):
        return f"a tensor {tuple(x.shape)}"
    return f"{{{', '.join(map(repr, x))}}}" if isinstance(x, dict) else type(x).__name__
