"""From tokens to one feature vector per sample."""

from __future__ import annotations

from torch import Tensor

from tangentcl.errors import ModelError, nearest

POOLINGS = ("cls", "mean", "last", "pooled")


def check_pooling(pooling: str, *, n_prefix: int | None = None) -> str:
    """The name itself, or an error that lists the known ones.

    Args:
        pooling: one of ``"cls" | "mean" | "last" | "pooled"``.
        n_prefix: number of tokens before the patches, for image models; ``None`` for text.

    Raises:
        ModelError: an unknown name, or ``"cls"`` for a model without a class token.

    >>> check_pooling("mean")
    'mean'
    """
    if pooling not in POOLINGS:
        raise ModelError(f"pooling '{pooling}' is unknown.{nearest(pooling, POOLINGS)}")
    if pooling == "cls" and n_prefix == 0:
        raise ModelError("pooling 'cls' needs a class token and this model has none. Try 'mean' or 'pooled'.")
    return pooling


def pool_text(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per text: first token, mean over real tokens, or last real token.

    Args:
        tokens: last hidden states [B, N, d].
        mask: 1 for real tokens, 0 for padding [B, N].
        pooling: ``"cls" | "mean" | "last"``.

    Returns:
        features [B, d].

    >>> import torch
    >>> tokens = torch.arange(6.).reshape(1, 3, 2)
    >>> pool_text(tokens, torch.tensor([[1, 1, 0]]), "mean")
    tensor([[1., 2.]])
    >>> pool_text(tokens, torch.tensor([[1, 1, 0]]), "last")
    tensor([[2., 3.]])
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "mean":
        weight = mask.to(tokens.dtype)[..., None]  # [B, N, 1]
        return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
    position = mask.long().cumsum(1).argmax(1)  # first place where the count of real tokens is complete [B]
    return tokens.gather(1, position[:, None, None].expand(-1, 1, tokens.shape[-1]))[:, 0]


def pool_image(tokens: Tensor, pooling: str, n_prefix: int) -> Tensor:
    """One vector per image: class token, mean over the patch tokens, or last token.

    Args:
        tokens: [B, n_prefix + patches, d]; the class token comes first, then registers, then patches.
        pooling: ``"cls" | "mean" | "last"``.
        n_prefix: tokens that are not patches; the mean leaves them out.

    Returns:
        features [B, d].

    >>> import torch
    >>> pool_image(torch.tensor([[[9.], [1.], [3.]]]), "mean", n_prefix=1)
    tensor([[2.]])
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "mean":
        return tokens[:, n_prefix:].mean(1)
    return tokens[:, -1]
