"""Recursive least squares: the inverse itself is kept, and each task corrects it at its own rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from tangentcl.errors import DataError, ModelError
from tangentcl.heads.head import AnalyticHead, in_full_precision
from tangentcl.heads.lift import Lift
from tangentcl.heads.strength import checked_rule

BLOCK = 1024  # samples in one correction


class RecursiveRidge(AnalyticHead):
    r"""Ridge with a fixed strength by :math:`P = (G + \lambda I)^{-1}`, for tasks much smaller than M.

    .. math:: P \leftarrow P - P H^\top (I + H P H^\top)^{-1} H P, \qquad W \leftarrow W + P H^\top (Y - H W),

    at 2 n M^2 for n samples, without a factorisation of size M. Equal to `RidgeHead` with the same strength; P is the
    posterior covariance, so kernels of it come free. Float64, [M, M].

    Args:
        lift: of the features. strength: lambda itself, added to the diagonal of G.

    Raises:
        ConfigError: a strength that is not a positive number.

    >>> from tangentcl.heads import NoLift
    >>> head = RecursiveRidge(NoLift(2), strength=1.0)
    >>> head.fit_task(torch.eye(2), torch.tensor([0, 1])).weights
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """

    covariance: Tensor
    weights: Tensor

    def __init__(self, lift: Lift, *, strength: float = 1.0) -> None:
        super().__init__(lift.width_in)
        checked_rule(strength)
        self.lift, self.ridge = lift, float(strength)
        self.register_buffer("covariance", torch.eye(lift.width, dtype=torch.float64) / self.ridge)
        self.register_buffer("weights", torch.zeros(lift.width, 0, dtype=torch.float64))

    def settings(self) -> dict[str, Any]:
        return {"lift": f"{type(self.lift).__name__}({self.lift.extra_repr()})", "strength": self.ridge}

    def _append(self, n_new: int) -> None:
        self.weights = torch.cat([self.weights, self.weights.new_zeros(len(self.weights), n_new)], dim=1)

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self.lift.fit(features)
        for block, own in zip(features.split(BLOCK), labels.split(BLOCK)):
            rows = self.lift(block).double()  # [n, M]
            gain = self.covariance @ rows.T  # [M, n]
            inner = rows @ gain
            inner.diagonal().add_(sign)  # sign (I + sign H P H^T)
            factor, failed = torch.linalg.cholesky_ex(inner if sign > 0 else -inner)
            if bool(failed):
                raise DataError(
                    "these samples cannot be forgotten: they were not learned, or the strength is too small."
                )
            gain_inner = torch.cholesky_solve(gain.T, factor).T  # [M, n]
            residual = F.one_hot(own, self.n_outputs).double() - rows @ self.weights
            self.weights = self.weights + sign * (gain_inner @ residual)
            covariance = self.covariance - sign * gain_inner @ gain.T
            self.covariance = (covariance + covariance.T) / 2

    def _take_in(self, other: Self) -> None:
        ours, theirs = self.lift.state_dict(), other.lift.state_dict()
        if any(not torch.equal(ours[k], v.to(ours[k])) for k, v in theirs.items()):
            raise ModelError("heads with different lifts cannot be merged: give both the same seed and landmarks.")
        precisions = [torch.linalg.inv(head.covariance.to(self.covariance)) for head in (self, other)]
        right = precisions[0] @ self.weights + precisions[1] @ other.weights.to(self.weights)
        total = precisions[0] + precisions[1]
        total.diagonal().sub_(self.ridge)
        self.covariance = torch.linalg.inv(total)
        self.weights = self.covariance @ right

    def _scores(self, features: Tensor) -> Tensor:
        return self.lift(features) @ self.weights.to(features)

    @in_full_precision
    def posterior_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """See `RidgeHead.posterior_kernel`."""
        return self.lift(x).double() @ self.covariance @ self.lift(y).double().T
