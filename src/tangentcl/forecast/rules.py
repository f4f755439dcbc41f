"""Optimisers on one tensor of coordinates: the steps of torch.optim, without autograd and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """One optimiser with its memory."""

    def __call__(self, state: Tensor, gradient: Tensor, rate: float) -> None:
        """Move ``state`` in place."""


class SGDRule:
    r"""torch.optim.SGD with weight decay, heavy ball or Nesterov momentum.

    .. math:: g \leftarrow g + \lambda w, \quad m \leftarrow \mu m + g, \quad w \leftarrow w - \eta d

    with :math:`d = m`, or :math:`d = g + \mu m` (Nesterov).
    """

    def __init__(self, momentum: float, nesterov: bool, weight_decay: float) -> None:
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.velocity: Tensor | None = None

    def __call__(self, state: Tensor, gradient: Tensor, rate: float) -> None:
        if self.weight_decay:
            gradient = gradient.add(state, alpha=self.weight_decay)
        direction = gradient
        if self.momentum:
            self.velocity = (
                gradient.clone() if self.velocity is None else self.velocity.mul_(self.momentum).add_(gradient)
            )
            direction = gradient.add(self.velocity, alpha=self.momentum) if self.nesterov else self.velocity
        state.add_(direction, alpha=-rate)


class AdamWRule:
    r"""torch.optim.AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2), with bias correction and decoupled decay.

    .. math:: w \leftarrow (1 - \eta\lambda) w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}
    """

    def __init__(self, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.t = 0

    def __call__(self, state: Tensor, gradient: Tensor, rate: float) -> None:
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(state), torch.zeros_like(state)
        self.t += 1
        b1, b2 = self.betas
        state.mul_(1 - rate * self.weight_decay)
        self.first.lerp_(gradient, 1 - b1)
        self.second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        root = self.second.sqrt().div_((1 - b2**self.t) ** 0.5).add_(self.eps)
        state.addcdiv_(self.first, root, value=-rate / (1 - b1**self.t))


def idle_change(rule: Rule, rates: Sequence[float]) -> float:
    """What the rule does to a weight of 1 whose gradient is always zero, minus 1."""
    weight, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for rate in rates:
        rule(weight, zero, rate)
    return float(weight) - 1.0
