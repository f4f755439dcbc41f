"""The fusions against their formulas, written out sample by sample."""

from __future__ import annotations

import torch
from torch import nn

from tangentcl.nn.fusion import Fusion, SectionAttention


def test_the_linear_form() -> None:
    fusion, c, p = Fusion(6, from_zero=False), torch.randn(4, 6), torch.randn(4, 6)
    expected = c + 0.1 * p + 0.5 * (c @ fusion.value.weight.T + fusion.value.bias)
    torch.testing.assert_close(fusion(c, p), expected)


def test_head_dropout_drops_whole_groups_of_the_map_in_training_alone() -> None:
    fusion = Fusion(16, from_zero=False, head_dropout=0.5)
    c, p = torch.randn(200, 16), torch.zeros(200, 16)
    fusion.eval()
    whole = fusion(c, p) - c
    fusion.train()
    part = (fusion(c, p) - c) / whole
    groups = part.unflatten(1, (8, 2))
    torch.testing.assert_close(groups[..., 0], groups[..., 1], rtol=1e-3, atol=1e-3)
    kept = groups[..., 0] > 1
    torch.testing.assert_close(groups[..., 0], 2.0 * kept, rtol=1e-3, atol=1e-3)
    assert 0.4 < float(kept.float().mean()) < 0.6


def test_sections_attend_to_the_sections_of_both_views() -> None:
    d, heads = 6, 2
    fusion = SectionAttention(d, heads=heads)
    nn.init.normal_(fusion.value.weight)
    c, p = torch.randn(3, 2 * d), torch.randn(3, 2 * d)
    found = fusion(c, p)
    for b in range(3):
        tokens = torch.cat([c[b].reshape(2, d), p[b].reshape(2, d)])
        for s in range(2):
            mixed = []
            for h in range(heads):
                part = slice(h * d // heads, (h + 1) * d // heads)
                q = fusion.query(c[b].reshape(2, d)[s])[part]
                scores = torch.stack([q @ fusion.key(t)[part] for t in tokens]) / (d / heads) ** 0.5
                mixed.append(scores.softmax(0) @ torch.stack([fusion.value(t)[part] for t in tokens]))
            own = slice(s * d, (s + 1) * d)
            expected = c[b, own] + 0.1 * p[b, own] + 0.5 * torch.cat(mixed)
            torch.testing.assert_close(found[b, own], expected, rtol=1e-4, atol=1e-5)
