"""Ridge regression that is told what the old task needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.forecast.dynamics import Dynamics, check_range
from tangentcl.forecast.problem import LinearProblem


@dataclass(frozen=True, kw_only=True)
class ProtectedRidge(Dynamics):
    r"""The closed form of squared error on new samples with a penalty on the drift of old outputs.

    .. math:: \min_W \tfrac12 \|\Phi W - Y\|^2 + \tfrac{\lambda}{2} \|\Phi_o (W - W_0)\|^2
        + \tfrac{\mu}{2} \|W - W_0\|^2, \quad
        W = W_0 + (\Phi^\top\Phi + \lambda M + \mu I)^{-1} \Phi^\top (Y - \Phi W_0)

    with :math:`M = \Phi_o^\top\Phi_o`, all that is kept of the old samples. At :math:`\lambda = 1`, and where
    :math:`W_0` is the least-squares solution on the old samples, it is the least-squares solution on both. Every
    output is in the loss, new ones too: that keeps them low on old samples.

    Args:
        moment: M, [d, d] with the constant feature last where the head has a bias; sums over old samples, not means.
        protection: lambda, relative to a sample's weight: 1 counts an old sample like a new one.
        strength: mu > 0.

    Raises:
        ConfigError: a setting out of range. DataError: a moment of another width than the features.
    """

    loss = "squared_error"
    moment: Tensor = field(repr=False)
    protection: float = 1.0
    strength: float = 1e-3

    def __post_init__(self) -> None:
        check_range("protection", self.protection, 0)
        if not 0 < self.strength < float("inf"):
            raise ConfigError(f"the strength of a ridge must be positive, got {self.strength!r}")
        if self.moment.ndim != 2 or self.moment.shape[0] != self.moment.shape[1]:
            raise DataError(f"expected a second moment [d, d], got {list(self.moment.shape)}")

    @property
    def in_span(self) -> bool:
        return False  # the penalty turns updates away from the new features

    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        features, d = problem.features, problem.features.shape[1]
        if len(self.moment) != d:
            raise DataError(f"the second moment is of width {len(self.moment)}, the features with a bias are of {d}")
        matrix = features.T @ features + self.protection * self.moment.to(features)
        matrix.diagonal().add_(self.strength)
        right = -features.T @ problem.residual  # [d, C]
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise DataError(
                f"the ridge system of size {d} is singular at strength {self.strength:g}. Try a larger one."
            )
        change = torch.cholesky_solve(right, factor)
        return change, float((matrix @ change - right).norm() / right.norm().clamp(min=1e-300))

    def idle_change(self) -> float:
        return 0.0
