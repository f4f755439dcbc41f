"""One task of continual learning as the theory sees it: a ridge anchored where the last task ended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.linalg import ridge


@dataclass(frozen=True)
class RidgeStep:
    r"""What a task does to a linear head.

    Attributes:
        change: :math:`\Delta W`, float64 [d, C].
        dual: :math:`\alpha`, float64 [n, C], with :math:`\Delta W = \Phi^\top \alpha`.
        ridge: :math:`\lambda`.
    """

    change: Tensor
    dual: Tensor
    ridge: float

    @property
    def radius(self) -> float:
        r""":math:`\sqrt{\mathrm{tr}\,\alpha^\top K \alpha} = \|\Delta W\|_F`, the capacity radius of the task (Q5)."""
        return float(self.change.norm())


def anchored_ridge(features: Tensor, targets: Tensor, outputs: Tensor, strength: float) -> RidgeStep:
    r"""The minimiser of :math:`\tfrac12\|f + \Phi\,\Delta W - Y\|^2 + \tfrac\lambda2\|\Delta W\|^2`.

    With the residual labels :math:`\tilde Y = Y - f` and :math:`K = \Phi\Phi^\top` the dual is
    :math:`\alpha = (K + \lambda I)^{-1}\tilde Y`, and task after task :math:`f_T(x) = f_0(x) + \sum_\tau \Phi(x)^\top
    \Phi_\tau^\top \alpha_\tau`: the recursion of Bennani, Doan and Sugiyama, "Generalisation Guarantees for Continual
    Learning with Orthogonal Gradient Descent", 2020, for a ridge that starts from the last task.

    Args:
        features: Phi [n, d], with a constant column where the head has a bias.
        targets: Y [n, C]. outputs: f, what the head puts out before the task, [n, C].
        strength: lambda > 0.

    Raises:
        ConfigError: a strength that is not positive. DataError: shapes that do not fit, or a singular system.

    >>> step = anchored_ridge(torch.eye(2), torch.ones(2, 1), torch.zeros(2, 1), 1.0)
    >>> step.change.flatten(), step.dual.flatten(), round(step.radius, 4)
    (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64), 0.7071)
    """
    if targets.shape != outputs.shape or len(targets) != len(features):
        raise DataError(
            f"expected targets and outputs [{len(features)}, C], got {list(targets.shape)} and {list(outputs.shape)}"
        )
    rows = features.to(torch.float64)
    residual = targets.to(torch.float64) - outputs.to(torch.float64)
    change, _ = ridge(rows, residual, strength)
    return RidgeStep(change, (residual - rows @ change) / strength, strength)
