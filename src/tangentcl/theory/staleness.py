"""How far class means are from where they were stored (Q11)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tangentcl.errors import DataError


def staleness(stored: Tensor, now: Tensor) -> Tensor:
    r"""Q11: :math:`\cos(\mu_c^{stored}, \mu_c^{now})` of every class, float64 [K]; 1 is fresh.

    >>> staleness(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.6000], dtype=torch.float64)
    """
    if stored.shape != now.shape:
        raise DataError(f"expected class means of one shape, got {list(stored.shape)} and {list(now.shape)}")
    return F.cosine_similarity(stored.to(torch.float64), now.to(torch.float64), dim=1)


def moved_prototypes(prototypes: Tensor, before: Tensor, after: Tensor, *, bandwidth: float | None = None) -> Tensor:
    r"""Q11 without old data: where class means would be now, from how the current samples' features moved, [K, d].

    .. math:: \hat\mu_c = \mu_c + \frac{\sum_i w_{ic}\,(h^{after}_i - h^{before}_i)}{\sum_i w_{ic}}

    with equal weights, or :math:`w_{ic} = \exp(-\|h^{before}_i - \mu_c\|^2 / 2\sigma^2)` so that near samples say
    more. To first order the movement is :math:`J_h(x)\,\Delta p`, whose mean may be given instead. Source: Yu et al.,
    "Semantic Drift Compensation for Class-Incremental Learning", CVPR 2020.

    Args:
        prototypes: [K, d]. before, after: features of the same current samples, [n, d].
        bandwidth: sigma; None weighs all the same.

    >>> moved_prototypes(torch.zeros(1, 2), torch.zeros(3, 2), torch.ones(3, 2))
    tensor([[1., 1.]], dtype=torch.float64)
    """
    if before.shape != after.shape or prototypes.shape[1:] != before.shape[1:] or not len(before):
        raise DataError(
            f"expected class means [K, d] and features [n, d] twice, got {list(prototypes.shape)}, "
            f"{list(before.shape)} and {list(after.shape)}"
        )
    means, drift = prototypes.to(torch.float64), after.to(torch.float64) - before.to(torch.float64)
    if bandwidth is None:
        return means + drift.mean(dim=0)
    exponent = -torch.cdist(means, before.to(torch.float64)).square() / (2 * bandwidth**2)  # [K, n]
    return means + exponent.softmax(dim=1) @ drift
