"""Recipes whose end is known in closed form: ridge regression and gradient flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.dynamics import Dynamics, check_range
from tangentcl.forecast.effective_time import Schedule, decay_of, effective_time
from tangentcl.forecast.problem import LinearProblem
from tangentcl.linalg import minimum_norm, ridge

Filter = Callable[[Tensor], Tensor]  # curvatures h >= 0 -> beta(h)


def filtered(problem: LinearProblem, beta: Filter, decay: float) -> Tensor:
    r"""Weights after any linear recipe on squared error, from a function of the curvature.

    In the eigenbasis V of :math:`\Phi^\top\Phi` the loss plus :math:`\tfrac{\lambda}{2}\|W\|^2` is a sum of parabolas
    of curvature :math:`h = s/n + \lambda`, and a recipe that is linear in the gradient moves each by
    :math:`-\beta(h)` times its initial gradient:

    .. math:: W_T - W_0 = -V \beta(h) V^\top \left(\Phi^\top R_0 / n + \lambda W_0\right),  R_0 = \Phi W_0 - Y.

    For n < d the same in the eigenbasis U of :math:`\Phi\Phi^\top`; what of :math:`W_0` lies outside the span of the
    features has curvature :math:`\lambda`:

    .. math:: W_T - W_0 = -\lambda\beta(\lambda) W_0
        - \Phi^\top U \left[\beta(h) U^\top R_0 / n + \lambda \frac{\beta(h) - \beta(\lambda)}{s} U^\top\Phi W_0\right].

    Returns:
        the change of the weights in the loss, [d, C_active].
    """
    features, residual, weight = problem.features, problem.residual, problem.active
    n, (rows, d) = problem.n, features.shape
    if rows >= d:
        values, vectors = torch.linalg.eigh(features.T @ features)
        force = features.T @ residual / n + decay * weight  # [d, C]
        return -vectors @ (beta(values.clamp(min=0) / n + decay)[:, None] * (vectors.T @ force))
    values, vectors = torch.linalg.eigh(features @ features.T)
    values = values.clamp(min=0)
    along = beta(values / n + decay)
    inner = along[:, None] * (vectors.T @ residual) / n  # [n, C]
    if not decay:
        return -features.T @ (vectors @ inner)
    outside = beta(values.new_tensor([decay]))
    kept = values > rows * torch.finfo(values.dtype).eps * values.max()
    slope = torch.where(kept, (along - outside) / torch.where(kept, values, 1.0), 0.0)
    inner = inner + decay * slope[:, None] * (vectors.T @ (features @ weight))
    return -decay * outside * weight - features.T @ (vectors @ inner)


@dataclass(frozen=True, kw_only=True)
class Ridge(Dynamics):
    r"""Solve :math:`\min_W \tfrac12\|\Phi W - Y\|^2 + \tfrac{\lambda}{2}\|W - W_c\|^2` (sums over samples, not means).

    The bias is penalised like the rest. Outputs that are not in the loss stay as they are.

    Args:
        strength: lambda > 0.
        centre: :math:`W_c`: ``"initial"``, the head before training, or ``"zero"``.
    """

    loss = "squared_error"
    strength: float
    centre: Literal["initial", "zero"] = "initial"

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise ConfigError(f"the strength of a ridge must be positive, got {self.strength!r}")
        if self.centre not in ("initial", "zero"):
            raise ConfigError(f"centre must be 'initial' or 'zero', got {self.centre!r}")

    @property
    def in_span(self) -> bool:
        return self.centre == "initial"

    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        if self.centre == "initial":
            return ridge(problem.features, -problem.residual, self.strength)
        solution, residual = ridge(problem.features, problem.targets, self.strength)
        return solution - problem.active, residual

    def idle_change(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class GradientFlow(Dynamics):
    r""":math:`\dot W = -\nabla L(W) - \lambda W` on squared error, for a time t: :math:`\beta(h) = (1 - e^{-ht})/h`.

    One step of gradient descent at a small learning rate is that much time, see `effective_time` for schedules and
    momentum. Without end and without decay the flow
    arrives at the interpolation nearest to the start, :math:`W_0 + \Phi^+ (Y - \Phi W_0)`; with decay at the ridge
    solution centred at zero. Cross-entropy has no closed form; on separable data its flow never arrives.

    Args:
        time: t, or None for the limit.
        weight_decay: lambda.
    """

    loss = "squared_error"
    time: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_range("weight_decay", self.weight_decay, 0)
        if self.time is not None:
            check_range("time", self.time, 0)

    @classmethod
    def of_schedule(
        cls,
        schedule: Schedule,
        momentum: float | None = None,
        *,
        steps: int | None = None,
        nesterov: bool | None = None,
        weight_decay: float | None = None,
    ) -> GradientFlow:
        """The flow in place of SGD at these rates: small gradients move outputs by exactly as much.

        Args:
            schedule, momentum, steps, nesterov: see `effective_time`, which also says how close it is; the velocity
                starts at zero.
            weight_decay: lambda; None takes that of the optimiser, plan or recipe, 0 for plain rates.

        >>> round(GradientFlow.of_schedule([0.1, 0.05], momentum=0.5).time, 6)
        0.175
        """
        time = effective_time(schedule, momentum, steps=steps, nesterov=nesterov, from_rest=True)
        return cls(time=time, weight_decay=decay_of(schedule) if weight_decay is None else weight_decay)

    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        if self.time is not None:
            return filtered(problem, self._beta, self.weight_decay), 0.0
        if not self.weight_decay:
            return minimum_norm(problem.features, -problem.residual)
        strength = self.weight_decay * problem.n
        solution, residual = ridge(problem.features, problem.targets, strength)
        return solution - problem.active, residual

    def _beta(self, h: Tensor) -> Tensor:
        assert self.time is not None
        return torch.where(h > 0, -torch.expm1(-h * self.time) / torch.where(h > 0, h, 1.0), self.time)

    def idle_change(self) -> float:
        if self.time is None:
            return -1.0 if self.weight_decay else 0.0
        return float(torch.expm1(torch.tensor(-self.weight_decay * self.time, dtype=torch.float64)))
