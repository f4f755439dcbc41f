"""Batched random views of the pool's drawings: geometry, resolution, ink and paper, colour. All in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32


def _uniform(low: float, high: float, *shape: int, g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


def _normal(std: float, *shape: int, g: torch.Generator) -> Tensor:
    return std * torch.randn(*shape, generator=g)


def _some(share: float, n: int, g: torch.Generator) -> Tensor:
    """Indices of about this share of n samples."""
    return (torch.rand(n, generator=g) < share).nonzero()[:, 0]


def _warp(
    x: Tensor, zoom: Tensor, turn: Tensor, shear: Tensor, shift: Tensor, elastic: float, g: torch.Generator
) -> Tensor:
    """Affine and smooth elastic deformation of [B, c, h, w] -> [B, c, SIZE, SIZE]; zoom [B, 2] > 1 enlarges."""
    n, c, s = len(x), turn.cos(), turn.sin()
    window = SIZE / x.shape[-1]
    rotation = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)  # [B, 2, 2]
    skew = torch.eye(2).repeat(n, 1, 1)
    skew[:, 0, 1] = shear
    linear = rotation @ skew * (window / zoom)[:, None, :]
    grid = F.affine_grid(torch.cat([linear, shift[:, :, None]], 2), [n, 1, SIZE, SIZE], align_corners=False)
    if elastic:
        bend = _normal(elastic, n, 2, 5, 5, g=g) * _uniform(0, 1, n, 1, 1, 1, g=g)
        grid = grid + F.interpolate(bend, SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _coarsen(x: Tensor, sizes: tuple[int, ...], share: float, g: torch.Generator) -> Tensor:
    """Down to a random small size and up again, for a share of the samples."""
    for size in sizes:
        chosen = _some(share / len(sizes), len(x), g)
        if len(chosen):
            small = F.interpolate(x[chosen], size, mode="area")
            x[chosen] = F.interpolate(small, SIZE, mode="bilinear", align_corners=False).clamp(0, 1)
    return x


def view_ink(ink: Tensor, papers: Tensor, g: torch.Generator) -> Tensor:
    """Random views of ink drawings.

    Args:
        ink: uint8 [B, 40, 40].
        papers: float [P, 3, SIZE, SIZE] in [0, 1], pictures to write some of the drawings on.
        g: source of all randomness.

    Returns:
        float [B, 3, SIZE, SIZE] in [0, 1].
    """
    n = len(ink)
    zoom = _uniform(0.72, 1.22, n, 1, g=g) * torch.exp(_normal(0.09, n, 2, g=g))
    turn, shear = _normal(0.16, n, g=g), _normal(0.15, n, g=g)
    mask = ink[:, None].float() / 255
    mask = _warp(mask, zoom, turn, shear, _uniform(-0.14, 0.14, n, 2, g=g), 0.05, g)
    thick = _some(0.12, n, g)
    mask[thick] = F.max_pool2d(mask[thick], 3, 1, 1)
    blurred = _some(0.2, n, g)
    mask[blurred] = F.avg_pool2d(mask[blurred], 3, 1, 1, count_include_pad=False)
    mask = _coarsen(mask, (8, 8, 10, 14), 0.24, g)
    mask = mask / mask.amax((1, 2, 3), keepdim=True).clamp_min(0.3)
    mask = mask ** torch.exp(_normal(0.25, n, 1, 1, 1, g=g))
    grey = (torch.rand(n, 1, 1, 1, generator=g) < 0.6).float()
    dark, light = _uniform(0, 0.35, n, 3, 1, 1, g=g), _uniform(0.6, 1, n, 3, 1, 1, g=g)
    pure = (torch.rand(n, 1, 1, 1, generator=g) < 0.7).float() * grey
    dark = (grey * dark[:, :1] + (1 - grey) * dark) * (1 - pure)
    light = (grey * light[:, :1] + (1 - grey) * light) * (1 - pure) + pure
    paper = dark.expand(-1, -1, SIZE, SIZE).clone()
    written = _some(0.2, n, g)
    if len(papers) and len(written):
        which = torch.randint(len(papers), (len(written),), generator=g)
        paper[written] = paper[written] * 0.5 + 0.45 * papers[which] * _uniform(0.4, 1, len(written), 1, 1, 1, g=g)
    x = paper + (light - paper) * mask
    x = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, 1 - x, x)
    return (x + _normal(0.06, *x.shape, g=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.25)).clamp(0, 1)


def view_colour(pictures: Tensor, g: torch.Generator) -> Tensor:
    """Random views of coloured pictures: uint8 [B, 40, 40, 3] -> float [B, 3, SIZE, SIZE] in [0, 1]."""
    n = len(pictures)
    x = pictures.permute(0, 3, 1, 2).float() / 255
    zoom = _uniform(0.85, 1.5, n, 1, g=g) * torch.exp(_normal(0.08, n, 2, g=g))
    zoom[:, 0] = zoom[:, 0] * torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0)
    x = _warp(x, zoom, _normal(0.12, n, g=g), _normal(0.08, n, g=g), _uniform(-0.15, 0.15, n, 2, g=g), 0.02, g)
    luma = x.mean(1, keepdim=True)
    x = luma + (x - luma) * _uniform(0.15, 1.15, n, 1, 1, 1, g=g)
    mixed = _some(0.3, n, g)
    mixing = torch.eye(3) + _normal(0.35, len(mixed), 3, 3, g=g)
    x[mixed] = torch.einsum("bij,bjhw->bihw", mixing / mixing.sum(2, keepdim=True).clamp_min(0.3), x[mixed])
    centre = x.mean((1, 2, 3), keepdim=True)
    x = centre + (x - centre) * _uniform(0.6, 1.3, n, 1, 1, 1, g=g) + _normal(0.08, n, 1, 1, 1, g=g)
    x = _coarsen(x, (12, 16, 20), 0.2, g)
    x = x + _normal(0.05, *x.shape, g=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.2)
    for i in _some(0.2, n, g).tolist():
        top, left, h, w = (int(v) for v in torch.randint(4, 18, (4,), generator=g))
        x[i, :, top : top + h, left : left + w] = torch.rand(3, 1, 1, generator=g)
    return x.clamp(0, 1)
