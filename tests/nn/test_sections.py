from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tangentcl.errors import ModelError
from tangentcl.nn.fusion import Fusion
from tangentcl.nn.sections import SectionPrototypes, section_unit


def test_scores_are_weighted_cosines_of_sections_with_class_means() -> None:
    torch.manual_seed(0)
    weights, x, y = (1.0, 0.3, 0.1), torch.randn(12, 15), torch.arange(12) % 3
    head = SectionPrototypes(15, weights)
    head.means.grow(4)
    head.means.update(x, y)
    z = torch.randn(5, 15)
    scores = head(z)
    for c in range(3):
        mean = x[y == c].mean(0)
        cosines = [F.cosine_similarity(z[:, 5 * s : 5 * s + 5], mean[None, 5 * s : 5 * s + 5]) for s in range(3)]
        expected = torch.stack([m * cosine for m, cosine in zip(weights, cosines)]).sum(0)
        torch.testing.assert_close(scores[:, c], expected, rtol=1e-5, atol=1e-6)
    assert bool(torch.isneginf(scores[:, 3]).all())
    with pytest.raises(ModelError, match="sections"):
        SectionPrototypes(16, weights)


def test_unit_rows() -> None:
    u = section_unit(torch.randn(4, 6), (0.3, 0.1))
    torch.testing.assert_close(u.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(u[:, :3].square().sum(1), torch.full((4,), 0.75))


def test_fusion_is_its_formula_and_drops_whole_heads() -> None:
    torch.manual_seed(0)
    fusion = Fusion(16, from_zero=False, head_dropout=0.5)
    c, p = torch.randn(64, 16), torch.randn(64, 16)
    value = c @ fusion.value.weight.T + fusion.value.bias
    torch.testing.assert_close(fusion.eval()(c, p), c + 0.1 * p + 0.5 * value)
    ratio = (fusion.train()(c, p) - c - 0.1 * p) / (0.5 * value)
    heads = ratio.unflatten(1, (8, 2))
    torch.testing.assert_close(heads[..., 0], heads[..., 1], rtol=1e-3, atol=1e-3)
    assert 0.35 < float((heads[..., 0] > 1).float().mean()) < 0.65
