"""Features made of sections of equal width, and cosines of the sections with a weight each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn.heads import PrototypeHead, at_least_float32


def section_unit(x: Tensor, weights: Sequence[float]) -> Tensor:
    r"""Rows of length one whose inner products are weighted means of the sections' cosines.

    Section s of a row becomes :math:`\sqrt{m_s / \sum m}\; x_s / \|x_s\|`, so that
    :math:`\langle u, v \rangle = \sum_s m_s \cos(x_s, y_s) / \sum_s m_s`.

    Args:
        x: ``[n, S d]``.
        weights: :math:`m_s`, one for each of the S sections.

    >>> section_unit(torch.tensor([[3.0, 0.0, 0.0, 5.0]]), (1.0, 3.0))
    tensor([[0.5000, 0.0000, 0.0000, 0.8660]])
    """
    m = torch.tensor(weights, dtype=x.dtype, device=x.device)
    sections = F.normalize(x.unflatten(-1, (len(weights), -1)), dim=-1)  # [n, S, d]
    return (sections * (m / m.sum()).sqrt()[:, None]).flatten(-2)


class SectionPrototypes(nn.Module):
    r"""Nearest class mean, section by section: :math:`\sum_s m_s \cos(z_s, \mu_{c,s})`.

    Args:
        width: of the whole feature, S d.
        weights: :math:`m_s` of the S sections.

    Shapes: features ``[B, S d]`` -> scores ``[B, n_outputs]``; a class without samples scores minus infinity.

    Raises:
        ModelError: a width that the sections do not divide.

    >>> head = SectionPrototypes(2, (0.3, 0.1))
    >>> head.means.grow(1)
    >>> head.means.update(torch.tensor([[2.0, -5.0]]), torch.tensor([0]))
    >>> round(head(torch.ones(1, 2)).item(), 6)
    0.2
    """

    def __init__(self, width: int, weights: Sequence[float]) -> None:
        super().__init__()
        if width % len(weights):
            raise ModelError(f"a feature of {width} numbers has no {len(weights)} sections of one width.")
        self.means = PrototypeHead(width)
        self.weights = tuple(weights)

    def forward(self, features: Tensor) -> Tensor:
        features = at_least_float32(features)
        prototypes = section_unit(self.means.prototypes.to(features), self.weights)  # [C, S d]
        with torch.autocast(features.device.type, enabled=False):
            scores = F.linear(section_unit(features, self.weights), prototypes) * sum(self.weights)
        return scores.masked_fill(self.means.counts == 0, -torch.inf)
