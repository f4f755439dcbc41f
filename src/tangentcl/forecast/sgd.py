"""Mini-batch recipes with the batch order that training will use: SGD and AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.dynamics import Dynamics, Steps, check_range, head_rates, learning_rates
from tangentcl.forecast.gradient_descent import check_momentum
from tangentcl.forecast.problem import LinearProblem, check_loss
from tangentcl.forecast.recursion import batch_rows, recurse
from tangentcl.forecast.rules import AdamWRule, SGDRule, idle_change
from tangentcl.forecast.spaces import FeatureSpace, cheaper_space

Batches = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class SGD(Dynamics):
    """Mini-batch SGD as torch.optim.SGD does it, step by step in sample or feature space, whichever is smaller.

    Args:
        lr: learning rate, or one per step.
        batches: positions of the new samples in every optimiser step; see `batch_order` for the library's own order.
            A step minimises the mean over its batch.
        momentum, nesterov, weight_decay: of torch.optim.SGD.
        head_lr: of the linear head, where it has a rate of its own; None = lr.
        loss: ``"cross_entropy"`` or ``"squared_error"``.

    >>> SGD(lr=0.1, batches=[[0, 1], [2, 3]], momentum=0.9).momentum
    0.9
    """

    lr: float | Sequence[float]
    batches: Batches = field(repr=False)
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
        rows = batch_rows(self.batches, len(problem.features), problem.features.device)
        return recurse(problem, cheaper_space(problem), self._rule(), self.loss, self._head_rates(), rows), 0.0

    def idle_change(self) -> float:
        return idle_change(self._rule(), self._head_rates())

    def stepwise(self, n: int, device: torch.device) -> Steps:
        rates = learning_rates(self.lr, len(self.batches))
        return Steps(self._rule, rates, self._head_rates(), batch_rows(self.batches, n, device))

    def _head_rates(self) -> tuple[float, ...]:
        return head_rates(self.head_lr, learning_rates(self.lr, len(self.batches)))

    def _rule(self) -> SGDRule:
        return SGDRule(self.momentum, self.nesterov, self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class AdamW(Dynamics):
    """AdamW as torch.optim.AdamW does it, step by step on the weights [d, C].

    Not a function of the kernel: rotating the features changes the result, and updates leave their span.

    Args:
        lr: learning rate, or one per step.
        batches: as in `SGD`; None = all samples in every step.
        steps: number of steps; needed with a constant lr and no batches.
        betas, eps, weight_decay: of torch.optim.AdamW.
        head_lr: of the linear head, where it has a rate of its own; None = lr.
        loss: ``"cross_entropy"`` or ``"squared_error"``.
    """

    lr: float | Sequence[float]
    batches: Batches | None = field(default=None, repr=False)
    steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    head_lr: float | Sequence[float] | None = None
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        check_loss(self.loss)
        for beta in self.betas:
            check_range("betas", beta, 0, 1)
        check_range("eps", self.eps, 0)
        check_range("weight_decay", self.weight_decay, 0)
        if self.batches is not None and self.steps not in (None, len(self.batches)):
            raise ConfigError(f"steps={self.steps}, but there are {len(self.batches)} batches. Leave steps out.")
        self._head_rates()

    @property
    def in_span(self) -> bool:
        return False

    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        found = self.stepwise(len(problem.features), problem.features.device)
        return recurse(problem, FeatureSpace(problem), self._rule(), self.loss, found.head_rates, found.rows), 0.0

    def idle_change(self) -> float:
        return idle_change(self._rule(), self._head_rates())

    def stepwise(self, n: int, device: torch.device) -> Steps:
        rates = self._rates()
        rows = [slice(None)] * len(rates) if self.batches is None else batch_rows(self.batches, n, device)
        return Steps(self._rule, rates, self._head_rates(), rows)

    def _head_rates(self) -> tuple[float, ...]:
        return head_rates(self.head_lr, self._rates())

    def _rates(self) -> tuple[float, ...]:
        return learning_rates(self.lr, self.steps if self.batches is None else len(self.batches))

    def _rule(self) -> AdamWRule:
        return AdamWRule(self.betas, self.eps, self.weight_decay)
