"""Full-batch gradient descent: an eigen-filter for squared error, a recursion for cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.closed_form import filtered
from tangentcl.forecast.dynamics import Dynamics, Steps, check_range, head_rates, learning_rates, runs
from tangentcl.forecast.problem import LinearProblem, check_loss
from tangentcl.forecast.recursion import recurse
from tangentcl.forecast.rules import SGDRule, idle_change
from tangentcl.forecast.spaces import cheaper_space

GROWTH = 10.0  # of an error along an eigenvector; a stable recipe never exceeds about 1


@dataclass(frozen=True, kw_only=True)
class GradientDescent(Dynamics):
    r"""T steps on all new samples with torch.optim.SGD.

    Squared error, on a parabola of curvature h with unit initial gradient (position x, velocity m, both from 0):

    .. math:: m \leftarrow h x + 1 + \mu m, \quad x \leftarrow x - \eta m, \quad \beta_T(h) = -x_T

    (Nesterov: :math:`x \leftarrow x - \eta (h x + 1 + \mu m)`). Without momentum and at a constant rate
    :math:`\beta_T(h) = (1 - (1 - \eta h)^T)/h`. Steps at an equal rate are one power of a 3 x 3 matrix per eigenvalue.
    Cross-entropy is followed step by step in sample or feature space, whichever is smaller.

    Args:
        lr: learning rate, or one per step (a schedule).
        steps: T; may be left out with a schedule.
        momentum, nesterov, weight_decay: of torch.optim.SGD.
        head_lr: of the linear head, where it has a rate of its own; None = lr.
        loss: ``"cross_entropy"`` or ``"squared_error"``.

    Raises:
        ConfigError: a setting out of range; while learning, squared error at a learning rate that diverges.
    """

    lr: float | Sequence[float]
    steps: int | None = None
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    head_lr: float | Sequence[float] | None = None
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_momentum(self.momentum, self.nesterov)
        check_range("weight_decay", self.weight_decay, 0)
        self._head_rates()

    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        if self.loss == "squared_error":
            return filtered(problem, self._beta, self.weight_decay), 0.0
        rates = self._head_rates()
        whole = [slice(None)] * len(rates)
        return recurse(problem, cheaper_space(problem), self._rule(), self.loss, rates, whole), 0.0

    def idle_change(self) -> float:
        return idle_change(self._rule(), self._head_rates())

    def stepwise(self, n: int, device: torch.device) -> Steps:
        rates = learning_rates(self.lr, self.steps)
        return Steps(self._rule, rates, self._head_rates(), [slice(None)] * len(rates))

    def _head_rates(self) -> tuple[float, ...]:
        return head_rates(self.head_lr, learning_rates(self.lr, self.steps))

    def _rule(self) -> SGDRule:
        return SGDRule(self.momentum, self.nesterov, self.weight_decay)

    def _beta(self, h: Tensor) -> Tensor:
        mu = self.momentum
        moves = torch.eye(3, dtype=h.dtype, device=h.device).repeat(len(h), 1, 1)  # (x, m, 1) at step 0 -> now
        for rate, count in runs(self._head_rates()):
            step = torch.zeros_like(moves)
            step[:, 1, 0], step[:, 1, 1], step[:, 1, 2], step[:, 2, 2] = h, mu, 1.0, 1.0
            direction = mu * step[:, 1] if self.nesterov else step[:, 1].clone()
            if self.nesterov:
                direction[:, 0] += h
                direction[:, 2] += 1.0
            step[:, 0] = -rate * direction
            step[:, 0, 0] += 1.0
            moves = torch.linalg.matrix_power(step, count) @ moves
        growth = float(moves[:, 0, 0].abs().max())
        if not growth <= GROWTH:
            largest = float(h.max())
            limit = stable_rate(mu, self.nesterov, largest)
            raise ConfigError(
                f"gradient descent at lr {max(self._head_rates()):g} diverges: an error along the "
                f"steepest direction (curvature {largest:.4g}) grows {growth:.3g} times. "
                f"Stable is a constant lr below {limit:.4g}."
            )
        return -moves[:, 0, 2]


def stable_rate(momentum: float, nesterov: bool, curvature: float) -> float:
    r"""The learning rate above which descent on a parabola diverges.

    :math:`2(1 + \mu)/h` for heavy ball, :math:`2(1 + \mu)/(h(1 + 2\mu))` for Nesterov momentum as in
    torch.optim.SGD (where a root of the characteristic polynomial passes -1).

    >>> stable_rate(0.0, False, 4.0), round(stable_rate(0.9, True, 1.0), 4)
    (0.5, 1.3571)
    """
    return 2 * (1 + momentum) / (curvature * (1 + 2 * momentum if nesterov else 1))


def check_momentum(momentum: float, nesterov: bool) -> None:
    """Raise ConfigError for a momentum outside [0, 1), or Nesterov without momentum."""
    check_range("momentum", momentum, 0, 1)
    if nesterov and not momentum:
        raise ConfigError("nesterov needs a momentum above 0, as in torch.optim.SGD")
