"""Capacity radii and the Rademacher terms that they make (Q5, Q6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tangentcl.errors import DataError


def capacity_radius(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    r"""Q5: how far a task moved the parameters, :math:`B_\tau = \|p_\tau - p_{\tau-1}\|`.

    The theory predicts :math:`\sqrt{\alpha_\tau^\top K_\tau \alpha_\tau}`, see `tangentcl.theory.RidgeStep.radius`.

    Args:
        before, after: parameters by name.

    Raises:
        DataError: other names or shapes.

    >>> import torch
    >>> capacity_radius({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])})
    5.0
    """
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        raise DataError("parameters before and after a task differ in names or shapes; begin_task comes before both")
    return math.sqrt(sum(float((after[name].double() - p.double()).square().sum()) for name, p in before.items()))


def rademacher_term(radius: float, trace: float, n: int) -> float:
    r"""Q6: :math:`(B_\tau / n_k)\sqrt{\mathrm{tr}\,K_\tau(X_k, X_k)}`, what task :math:`\tau` adds to the bound for k.

    The empirical Rademacher complexity of :math:`\{x \mapsto J(x)\delta : \|\delta\| \le B\}` on the samples of task k
    is at most this (Bartlett and Mendelson, "Rademacher and
    Gaussian Complexities", JMLR 2002). Summed over
    tasks it is :math:`R_k` of the generalisation bound :math:`L_{D_k} \le L_{S_k} + 2\sqrt2\,\rho R_k +
    3c\sqrt{\ln(2/\delta) / 2 n_k}`, for a loss with Lipschitz constant :math:`\rho` and bound c.

    Args:
        radius: B. trace: of the kernel on the samples of task k. n: how many they are.

    >>> rademacher_term(2.0, 9.0, 3)
    2.0
    """
    if n < 1:
        raise DataError(f"a Rademacher term needs at least one sample, got {n}")
    return radius / n * math.sqrt(max(trace, 0.0))
