"""The bundled backbone: a small Vision Transformer for 32x32 images and its weights inside the package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from tangentcl.documents import Malformed, parse_json
from tangentcl.errors import ModelError

BUNDLED = Path(__file__).parent / "bundled"


class Attention(nn.Module):
    """Multi-head self-attention with separate projections (Vaswani et al. 2017, equation 1).

    Written out rather than through ``F.scaled_dot_product_attention``: at these few tokens it trains faster on a CPU
    than the fused kernel (the whole network by half), and forward-mode differentiation works on every device.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, d] -> tokens [B, N, d]: softmax(q k' / sqrt(d_head)) v for every head, then o."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # [B, heads, N, N]
        mixed = weights @ v  # [B, heads, N, d / heads]
        return self.o(mixed.transpose(1, 2).flatten(2))  # [B, N, d]


class Block(nn.Module):
    """Pre-norm Transformer block: attention, then a two-layer network, each added to its input."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, expansion * width)
        self.fc2 = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, d] -> tokens [B, N, d]."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """A Vision Transformer with a convolutional stem, without dropout, deterministic.

    The stem is three 3x3 convolutions, as many of them with stride 2 as make one token of a
    ``patch`` x ``patch`` square (Xiao et al. 2021, Early Convolutions Help Transformers See Better).

    Args:
        image_size: height and width of the input in pixels.
        patch: pixels per token along one axis: 2, 4 or 8.
        width: token width d.
        depth: number of blocks.
        heads: attention heads per block; has to divide ``width``.
        expansion: hidden width of a block's two-layer network, in units of ``width``.
        stem: channels of the first two convolutions.
        seed: the initial weights are drawn from this seed, not from the global generator.

    Raises:
        ModelError: sizes that do not fit together, here or in ``forward``.

    >>> model = SmallViT(width=24, depth=1, heads=3)
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 17, 24])
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch: int = 8,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        expansion: int = 4,
        stem: Sequence[int] = (48, 96),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if patch not in (2, 4, 8) or image_size % patch:
            raise ModelError(f"patch has to be 2, 4 or 8 and divide image_size={image_size}; got patch={patch}.")
        if width % heads:
            raise ModelError(f"heads has to divide width={width}; got heads={heads}.")
        self.image_size, self.width = image_size, width
        self.architecture: dict[str, Any] = {
            "image_size": image_size, "patch": patch, "width": width, "depth": depth, "heads": heads,
            "expansion": expansion, "stem": list(stem),
        }  # fmt: skip
        strides = {2: (1, 1, 2), 4: (1, 2, 2), 8: (2, 2, 2)}[patch]
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem[0], 3, strides[0], 1),
            nn.GELU(),
            nn.Conv2d(stem[0], stem[1], 3, strides[1], 1),
            nn.GELU(),
            nn.Conv2d(stem[1], width, 3, strides[2], 1),
        )
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.constant_(p, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif p.ndim == 4:
                nn.init.normal_(p, std=(2.0 / p[0].numel()) ** 0.5, generator=generator)
            else:
                # a token has to know its place from the first step on, so positions start as large as the content
                nn.init.trunc_normal_(p, std=0.3 if name == "position" else 0.05, generator=generator)

    def embed(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens with position [B, 1 + N, d], CLS first."""
        if x.ndim != 4 or x.shape[1:] != (3, self.image_size, self.image_size):
            expected = f"[B, 3, {self.image_size}, {self.image_size}]"
            raise ModelError(f"Expected images {expected}, got {list(x.shape)}. Try resizing them in the transform.")
        patches = self.stem(x).flatten(2).transpose(1, 2)  # [B, N, d]
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), patches], dim=1) + self.position

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens from ``embed`` [B, n, d], or a subset of them -> tokens after the final norm [B, n, d]."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens after the final norm [B, 1 + N, d], CLS first."""
        return self.encode(self.embed(x))


def bundled_card(folder: Path = BUNDLED) -> dict[str, Any]:
    """The card of the bundled weights: architecture, mean, std, pooling, sha256, recipe, accuracies.

    Args:
        folder: a folder with ``card.json``.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = folder / "card.json"
    try:
        card = parse_json(path.read_bytes())
    except (OSError, Malformed) as error:
        raise ModelError(f"{path} cannot be used: {error}. Try reinstalling tangentcl.") from error
    if not isinstance(card, dict) or not {"sha256", "architecture"} <= card.keys():
        raise ModelError(f"{path} must hold an object with 'sha256' and 'architecture'. Try reinstalling tangentcl.")
    return card


def load_bundled(folder: Path = BUNDLED) -> SmallViT:
    """The bundled backbone in float32, evaluation mode.

    Args:
        folder: a folder with ``bundled.safetensors`` (fp16) and ``card.json``.

    Raises:
        ModelError: the weight file is missing or is not the one the card describes.

    >>> load_bundled()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 17, 192])
    """
    path = folder / "bundled.safetensors"
    if not path.is_file():
        raise ModelError(f"Expected the bundled weights at {path}, found none. Try reinstalling tangentcl.")
    card, content = bundled_card(folder), path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != card["sha256"]:
        raise ModelError(
            f"The bundled weights should have sha256 {card['sha256']}, but {path} has {found}: "
            "the file is damaged or was replaced. Try reinstalling tangentcl."
        )
    model = SmallViT(**card["architecture"])
    model.load_state_dict({name: w.float() for name, w in load_safetensors(content).items()})
    return model.eval()
