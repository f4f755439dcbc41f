"""The quadratic distance of parameters from where they were, each with a weight of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tangentcl.nn.heads import at_least_float32
from tangentcl.protect.named_tensors import NamedTensors


def quadratic_distance(
    values: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] | NamedTensors,
    weights: Mapping[str, Tensor] | NamedTensors | None = None,
) -> Tensor:
    r""":math:`\frac12 \sum_i w_i (\theta_i - \theta^{ref}_i)^2` over all entries of all tensors, in float32 at least.

    Args:
        values: by name, at least one; their gradient is :math:`w (\theta - \theta^{ref})`.
        reference: holds every name of ``values``, in the same shape.
        weights: likewise; None = all 1.

    >>> w = torch.tensor([1.0, 3.0])
    >>> quadratic_distance({"w": w}, {"w": torch.ones(2)}, {"w": torch.tensor([7.0, 0.5])})
    tensor(1.)
    """
    terms = []
    for name, value in values.items():
        squares = (at_least_float32(value) - reference[name]).square()
        terms.append((squares if weights is None else weights[name] * squares).sum())
    return 0.5 * torch.stack(terms).sum()
