"""A training step and a prediction of NTK-CL as the released code computes them, written from its description.

No short cut: four passes over all tokens of all blocks (two with gradient), queries, keys and values of separate
matrices, attention as whole matrices, prompts in the last block too, queries and keys of a fusion that attends to one
token, a full singular value decomposition of old prototypes in every forward pass, residuals of all three views, and a
look at each auxiliary loss from the host. What `benchmarks.ntk_cl` compares with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEPT = 40  # singular vectors
TEMPERATURE = 0.1
NOISE, DISTANCE, ANCHOR = 0.2, 1e-4, 1e-3  # weights of the three auxiliary losses
GAMMA, ALPHA = 0.3, 0.1  # of the running mean and of the current section


class Adapter(nn.Module):
    """S2: 0.1 (up(dropout(relu(down x))))."""

    def __init__(self, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up, self.drop = nn.Linear(width, rank), nn.Linear(rank, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * self.up(self.drop(F.relu(self.down(x))))


class TokenMap(nn.Module):
    """S1: prompts as mixtures of tokens, normalised."""

    def __init__(self, width: int, n_prompts: int, n_tokens: int) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(n_tokens, n_prompts), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.map(x.transpose(1, 2)).transpose(1, 2))


class CrossAttention(nn.Module):
    """The fusion: eight heads over a sequence of one token."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, channel: Tensor, patch: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(1, (8, -1))[:, :, None] for f, x in self._inputs(channel, patch))
        scores = self.drop((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1))
        return channel + 0.1 * patch + 0.5 * (scores @ v)[:, :, 0].flatten(1)

    def _inputs(self, channel: Tensor, patch: Tensor) -> list[tuple[nn.Module, Tensor]]:
        return [(self.query, patch), (self.key, channel), (self.value, channel)]


class NaiveNTKCL(nn.Module):
    """The released method around a Vision Transformer of transformers, at a task with ``n_old`` old classes."""

    def __init__(self, vit: Any, *, n_old: int, n_new: int, rank: int = 16, n_prompts: int = 10, dropout: float = 0.1):
        super().__init__()
        self.vit = vit.requires_grad_(False).eval()
        d, layers = vit.config.hidden_size, vit.config.num_hidden_layers
        n_tokens = 1 + (vit.config.image_size // vit.config.patch_size) ** 2
        self.n_prompts, self.n_old = n_prompts, n_old
        for name in ("now", "mean"):
            self.add_module(f"adapters_{name}", nn.ModuleList(Adapter(d, rank, dropout) for _ in range(layers)))
            self.add_module(f"maps_{name}", nn.ModuleList(TokenMap(d, n_prompts, n_tokens) for _ in range(layers)))
        for module in (self.adapters_mean, self.maps_mean):
            module.requires_grad_(False)
        self.fusion = CrossAttention(2 * d, dropout)
        self.proxies, self.scale = nn.Parameter(torch.randn(n_new, 2 * d)), nn.Parameter(torch.ones(()))
        self.register_buffer("prototypes", torch.zeros(n_old + n_new, 2 * d))
        self.anchor: dict[str, Tensor] = {}

    def held(self) -> dict[str, Tensor]:
        """What the anchor holds: weights of adapters, maps and fusion, without biases and norms."""
        held = (("adapters_now", self.adapters_now), ("maps_now", self.maps_now), ("fusion", self.fusion))
        named = {f"{part}.{name}": p for part, module in held for name, p in module.named_parameters()}
        return {name: p for name, p in named.items() if "weight" in name}

    def attend(self, block: Any, x: Tensor) -> Tensor:
        """After the attention, with whole matrices."""
        h, a = block.layernorm_before(x), block.attention
        heads = self.vit.config.num_attention_heads
        q, k, v = (f(h).unflatten(2, (heads, -1)).transpose(1, 2) for f in (a.q_proj, a.k_proj, a.v_proj))
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        return x + a.o_proj((weights @ v).transpose(1, 2).flatten(2))

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.mlp.fc2(F.gelu(block.mlp.fc1(block.layernorm_after(x))))

    def channel(self, x: Tensor, adapters: nn.ModuleList) -> Tensor:
        """The class token with adapters in every block."""
        for block, adapter in zip(self.vit.layers, adapters):
            x = self.attend(block, x)
            x = x + self.mlp(block, x) + adapter(x)
        return self.vit.layernorm(x)[:, 0]

    def patch(self, x: Tensor, maps: nn.ModuleList) -> Tensor:
        """The class token with prompts behind it from the first block on."""
        n = self.n_prompts
        for i, (block, token_map) in enumerate(zip(self.vit.layers, maps)):
            x = self.attend(block, x)
            if i == 0:
                p = token_map(x)
                new = self.mlp(block, torch.cat([x[:, :1], p, x[:, 1:]], dim=1))
                x = torch.cat([x[:, :1] + new[:, :1], new[:, 1 : 1 + n], x[:, 1:] + new[:, 1 + n :]], dim=1)
            else:
                r = x[:, 1 : 1 + n]
                p = token_map(torch.cat([x[:, :1], x[:, 1 + n :]], dim=1)) + 0.1 * r
                x = x + self.mlp(block, torch.cat([x[:, :1], p, x[:, 1 + n :]], dim=1))
        return self.vit.layernorm(x)[:, 0]

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The three views [B, 2 d] and the residuals of the unit views outside the old space."""
        x = self.vit.embeddings(images)
        ch = torch.cat([self.channel(x, self.adapters_mean), self.channel(x, self.adapters_now)], dim=1)
        pa = torch.cat([self.patch(x, self.maps_mean), self.patch(x, self.maps_now)], dim=1)
        mix = self.fusion(ch, pa)
        columns = F.normalize(self.prototypes, dim=1).T * (torch.arange(len(self.prototypes)) < self.n_old)
        basis = torch.linalg.svd(columns, full_matrices=True)[0][:, :KEPT]
        units = [F.normalize(view, dim=1) for view in (ch, pa, mix)]
        return [ch, pa, mix], [z - z @ basis @ basis.T for z in units]

    def losses(self, images: Tensor, y: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """The six terms; ``drawn`` are the old prototypes that stand in the dissimilarity, y counts from 0."""
        views, residuals = self(images)
        w = F.normalize(self.proxies, dim=1)
        terms = {
            f"cross_entropy_{name}": F.cross_entropy(self.scale * F.normalize(view, dim=1) @ w.T, y)
            for name, view in zip(("channel", "patch", "fused"), views)
        }
        terms["dissimilarity"] = NOISE * _finite(self._dissimilarity(views[2], y, drawn))
        terms["orthogonality"] = DISTANCE * _finite(residuals[0].sum() + residuals[1].sum())
        moved = sum(((p - self.anchor[name]) ** 2).sum() for name, p in self.held().items())
        terms["anchor"] = ANCHOR * _finite(torch.as_tensor(moved))
        return terms

    def _dissimilarity(self, mix: Tensor, y: Tensor, drawn: Tensor) -> Tensor:
        rows = F.normalize(torch.cat([mix, self.prototypes[drawn]]), dim=1)
        labels = torch.cat([y + self.n_old, drawn])
        scores = (rows @ rows.T / TEMPERATURE).exp()
        itself = torch.eye(len(rows), dtype=torch.bool)
        same = (labels[:, None] == labels[None]) & ~itself
        return (scores * same).sum().log() - (scores * ~itself).sum(1).log().mean()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Scores over all classes [B, C], section by section."""
        views, _ = self(images)
        _ = [F.normalize(view, dim=1) @ F.normalize(self.proxies, dim=1).T for view in views]  # heads that nobody reads
        sections: Sequence[tuple[float, slice]] = [
            (GAMMA, slice(None, views[2].shape[1] // 2)),
            (ALPHA, slice(views[2].shape[1] // 2, None)),
        ]
        scores = [
            m * F.normalize(views[2][:, s], dim=1) @ F.normalize(self.prototypes[:, s], dim=1).T for m, s in sections
        ]
        return scores[0] + scores[1]


def _finite(loss: Tensor) -> Tensor:
    """The loss, or zero in place of NaN and infinity: a look from the host."""
    return torch.zeros_like(loss) if bool(loss.isnan() | loss.isinf()) else loss
