"""What is left of an anchor when weights decay as well (Q13)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.theory.capacity import capacity_radius


def anchor_efficiency(kappa: float, weight_decay: float) -> float:
    r"""Q13: :math:`2\kappa / (2\kappa + \omega)`, the share of its old values to which parameters are pulled.

    The term :math:`\kappa\|p - p_{prev}\|^2` of the loss together with a decay that adds :math:`\omega p` to the
    gradient (SGD) is least at :math:`p = \frac{2\kappa}{2\kappa + \omega}\,p_{prev}`. The theory wants 1: no decay of
    anchored parameters. Decoupled decay (AdamW) is no part of the gradient, and the share says less of it.

    Raises:
        ConfigError: a negative number, or no anchor and no decay.

    >>> round(anchor_efficiency(1e-3, 5e-3), 3), anchor_efficiency(1e-3, 0.0)
    (0.286, 1.0)
    """
    if kappa < 0 or weight_decay < 0 or kappa + weight_decay == 0:
        raise ConfigError(f"an anchor and a decay must not be negative nor both 0, got {kappa} and {weight_decay}")
    return 2 * kappa / (2 * kappa + weight_decay)


def relative_move(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    r"""Q13: :math:`\|p - p_{prev}\| / \|p_{prev}\|`; infinite for parameters that come from zero.

    >>> import torch
    >>> relative_move({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 3.0])})
    0.2
    """
    length = math.sqrt(sum(float(p.double().square().sum()) for p in before.values()))
    moved = capacity_radius(before, after)
    return moved / length if length > 0 else 0.0 if moved == 0 else math.inf
