"""How far class means are from where they were stored (Q11)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tangentcl.errors import ConfigError, DataError, nearest
from tangentcl.forecast.feature_change import feature_change

Movement = Literal["ridge", "mean", "near"]


def staleness(stored: Tensor, now: Tensor) -> Tensor:
    r"""Q11: :math:`\cos(\mu_c^{stored}, \mu_c^{now})` of every class, float64 [K]; 1 is fresh.

    >>> staleness(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.6000], dtype=torch.float64)
    """
    if stored.shape != now.shape:
        raise DataError(f"expected class means of one shape, got {list(stored.shape)} and {list(now.shape)}")
    return F.cosine_similarity(stored.to(torch.float64), now.to(torch.float64), dim=1)


def moved_prototypes(
    prototypes: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    movement: Movement = "ridge",
    bandwidth: float = 1.0,
    sections: int = 1,
) -> Tensor:
    r"""Q11 without old data: where class means would be now, from how the current samples' features moved, [K, d].

    To first order features move by :math:`\delta(x) = J_h(x)\,\Delta p = K(x, X)\,\alpha`, the forgetting vector of
    the features themselves; it is known on the current samples and wanted at the class means. In its place stands

    - ``"ridge"``: a ridge regression of the movement on the features, :math:`\hat\mu_c = \mu_c + A^\top \mu_c + b`
      (`tangentcl.forecast.feature_change`). Such a map commutes with means, so a class mean moves as its samples do.
      A linear map of the drift is also what Rao et al. fit, "SLDC", AAAI 2026, arXiv 2511.09926;
    - ``"mean"``: the mean movement, :math:`\hat\mu_c = \mu_c + \frac1n \sum_i \delta_i`;
    - ``"near"``: its mean with weights :math:`w_{ic} = \exp(-\|h_i - \mu_c\|^2 / 2\sigma^2)`, so that near samples
      say more. Source: Yu et al., "Semantic Drift Compensation for Class-Incremental Learning", CVPR 2020.

    Args:
        prototypes: [K, d]. before, after: features of the same current samples, [n, d].
        movement: which of the three. bandwidth: sigma of ``"near"``.
        sections: parts of a feature, of equal width, that move by maps of their own.

    Raises:
        ConfigError: an unknown movement. DataError: shapes that do not fit, or no sample.

    >>> moved_prototypes(torch.zeros(1, 2), torch.zeros(3, 2), torch.ones(3, 2))
    tensor([[1., 1.]], dtype=torch.float64)
    """
    if movement not in get_args(Movement):
        known = get_args(Movement)
        raise ConfigError(f"movement must be one of {', '.join(known)}, got {movement!r}.{nearest(movement, known)}")
    if before.shape != after.shape or prototypes.shape[1:] != before.shape[1:] or not len(before):
        raise DataError(
            f"expected class means [K, d] and features [n, d] twice, got {list(prototypes.shape)}, "
            f"{list(before.shape)} and {list(after.shape)}"
        )
    if prototypes.shape[1] % sections:
        raise DataError(f"class means of {prototypes.shape[1]} numbers have no {sections} sections of one width")
    means, start, end = (x.detach().to("cpu", torch.float64) for x in (prototypes, before, after))
    if movement == "mean":
        return means + (end - start).mean(dim=0)
    parts = [x.unflatten(1, (sections, -1)).unbind(1) for x in (means, start, end)]
    if movement == "ridge":
        maps = [feature_change(h, g) for h, g in zip(parts[1], parts[2])]
        return torch.cat([mu + mu @ a[:-1] + a[-1] for mu, a in zip(parts[0], maps)], dim=1)
    moved = []
    for mu, h, g in zip(*parts):
        exponent = -torch.cdist(mu, h).square() / (2 * bandwidth**2)  # [K, n]
        moved.append(mu + exponent.softmax(dim=1) @ (g - h))
    return torch.cat(moved, dim=1)
