"""A frozen transformer that is asked first without prompts, for a query, and then with those that the query chose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.nn.backbone import Backbone, Batch
from tangentcl.nn.blocks import Tokens
from tangentcl.nn.heads import at_least_float32
from tangentcl.nn.layouts import transformer
from tangentcl.nn.prefix import Prefixes, prefixed
from tangentcl.nn.prompt_tokens import prompted


class PromptedTrunk(nn.Module):
    """Query and prompted features of a frozen backbone; the embedding, which both passes share, is computed once.

    Each pass counts in ``backbone.passes``.

    Args:
        backbone: what `tangentcl.nn.layouts.transformer` understands; frozen here.

    >>> from tangentcl.nn import backbone
    >>> trunk = PromptedTrunk(backbone("bundled"))
    >>> before, tokens = trunk.backbone.passes, trunk.embed(torch.zeros(2, 3, 32, 32))
    >>> trunk.query(tokens).shape, trunk.prefixed(tokens, {}).shape, trunk.backbone.passes - before
    (torch.Size([2, 192]), torch.Size([2, 192]), 4)
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.model = transformer(backbone)

    @property
    def width(self) -> int:
        """d."""
        return self.model.width

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    @torch.no_grad()
    def embed(self, x: Batch) -> Tokens:
        """The input of the first block."""
        return self.model.embed(x)

    @torch.no_grad()
    def query(self, tokens: Tokens) -> Tensor:
        """The backbone's own features, ``[B, d]``, without gradient."""
        self._count(tokens)
        return prefixed(self.model, tokens, {})

    def prefixed(self, tokens: Tokens, prefixes: Prefixes) -> Tensor:
        """See `tangentcl.nn.prefix.prefixed`."""
        self._count(tokens)
        return prefixed(self.model, tokens, prefixes)

    def prompted(self, tokens: Tokens, prompts: Tensor, read: str) -> Tensor:
        """See `tangentcl.nn.prompt_tokens.prompted`."""
        self._count(tokens)
        return prompted(self.model, tokens, prompts, read)

    def _count(self, tokens: Tokens) -> None:
        if not torch.compiler.is_compiling():  # as in `Backbone.forward`
            self.backbone.passes += len(tokens.values)


def cosines(query: Tensor, keys: Tensor) -> Tensor:
    """Of each query ``[B, d]`` with each key ``[M, d]``, ``[B, M]``, in float32 at least, under autocast too.

    >>> cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.]])
    """
    with torch.autocast(query.device.type, enabled=False):
        query, keys = at_least_float32(query), at_least_float32(keys)
        return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).to(query).T
