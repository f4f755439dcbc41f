"""The error on samples kept aside as a function of the strength, from sums alone, and the weights on all samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.heads.sums import RidgeSums, cholesky, power_iteration, singular

ENOUGH = 1e-4  # relative residual of weights that only tell strengths apart; derivatives are not refined at all


@dataclass(frozen=True)
class Curve:
    r"""The error at one strength.

    Attributes:
        error: E. slope: :math:`dE/d\ln\lambda`. bend: :math:`d^2E/d(\ln\lambda)^2`.
    """

    error: float
    slope: float
    bend: float


class HeldOut:
    r"""Ridge regression on some samples, judged on others, and then on both.

    .. math:: E(\lambda) = \sum w\,\|y - W_\lambda^\top h\|^2 \text{ over those held out}, \quad
        W_\lambda = (G_f + \lambda I)^{-1} Q_f^\top, \quad
        \frac{dW}{d\ln\lambda} = -\lambda\,(G_f + \lambda I)^{-1} W.

    Derivatives cost one solve each with the factor that is there. While both have rows, the kernel of all of them,
    those held out last, is factored as :math:`LL^\top`: its leading block is the factor for the fitted ones, the
    residuals of those held out are :math:`L_{hh} (L^{-1} Y)_h`, and one factor gives the error and the weights on all.

    Args:
        fitted, held: sums over either.
    """

    def __init__(self, fitted: RidgeSums, held: RidgeSums) -> None:
        self.fitted, self.held = fitted, held
        self.dual = not fitted.is_dense and not held.is_dense
        self.together = None if self.dual else fitted.joined(held)
        self._last: tuple[float, Tensor, Tensor] | None = None  # strength, L, L^-1 Y

    @property
    def trace(self) -> float:
        """Of G over both."""
        return self.fitted.trace + self.held.trace

    def largest(self, steps: int) -> float:
        """Largest eigenvalue of G over both, from below, by power iteration."""
        if self.together is not None:
            return self.together.largest(steps)
        f, h = self.fitted, self.held
        across = f.kernel_with(h)

        def product(x: Tensor) -> Tensor:
            a, b = x[: len(f.rows)], x[len(f.rows) :]
            return torch.cat([f.kernel @ a + across.T @ b, across @ a + h.kernel @ b])

        return power_iteration(product, torch.cat([f.targets.sum(1), h.targets.sum(1)]), steps)

    def curve(self, strength: float) -> Curve:
        """The error at a strength and how it changes. Raises DataError for a singular system."""
        if self.dual:
            return self._dual_curve(strength)
        solve = self.fitted.system(strength)
        weights = solve(self.fitted.cross.T, ENOUGH)
        first = solve(weights, None)
        second = solve(first, None)
        first, second = -strength * first, strength * (2 * strength * second - first)
        return Curve(*self.held.errors_along(weights, first, second))

    def _factor(self, strength: float) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] != strength:
            f, h = self.fitted, self.held
            n, m = len(f.rows), len(h.rows)
            matrix = f.cross.new_empty(n + m, n + m)
            matrix[:n, :n], matrix[:n, n:], matrix[n:, n:] = f.kernel, f.kernel_with(h).T, h.kernel
            factor = cholesky(matrix, strength)
            if factor is None:
                raise singular(n + m, strength)
            targets = torch.cat([f.targets, h.targets])
            self._last = strength, factor, torch.linalg.solve_triangular(factor, targets, upper=False)
        return self._last[1:]

    def _dual_curve(self, strength: float) -> Curve:
        factor, halfway = self._factor(strength)
        n = len(self.fitted.rows)
        leading = factor[:n, :n]
        residual = -factor[n:, n:] @ halfway[n:]  # H W - Y
        dual = torch.linalg.solve_triangular(leading.T, halfway[:n], upper=True)
        first = torch.cholesky_solve(dual, leading)
        second = torch.cholesky_solve(first, leading)
        across = self.fitted.kernel_with(self.held)
        along = -strength * (across @ first)
        bend = strength * (across @ (2 * strength * second - first))
        error, slope = residual.square().sum(), 2 * (residual * along).sum()
        return Curve(float(error), float(slope), 2 * float(along.square().sum() + (residual * bend).sum()))

    def weights(self, strength: float) -> Tensor:
        """W over both, float64 [M, C]. Raises DataError for a singular system."""
        if self.together is not None:
            return self.together.weights(strength)
        factor, halfway = self._factor(strength)
        n = len(self.fitted.rows)
        dual = torch.linalg.solve_triangular(factor.T, halfway, upper=True)
        return self.fitted.across(dual[:n]) + self.held.across(dual[n:])
