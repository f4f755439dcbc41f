"""The interface of a training recipe: what it does to a linear head, without a network being run."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.problem import LinearProblem
from tangentcl.forecast.rules import Rule
from tangentcl.forecast.spaces import Rows

Penalty = Callable[[Mapping[str, Tensor]], Tensor]  # values of parameters by name -> a scalar


@dataclass(frozen=True)
class Displacement:
    """How training moves a head.

    Attributes:
        weight: after minus before, float64 [d, C]; the last row is the bias where there is one.
        residual: relative residual of the linear solve behind it; 0 where nothing was solved.
    """

    weight: Tensor
    residual: float = 0.0


@dataclass(frozen=True)
class Steps:
    """A recipe step by step.

    Attributes:
        rule: makes a fresh optimiser for one tensor.
        rates: learning rate of every step; head_rates: those of the linear head.
        rows: the new samples of every step.
        penalty: added to the loss, of the values of what trains by name; None where nothing is.
    """

    rule: Callable[[], Rule]
    rates: tuple[float, ...]
    head_rates: tuple[float, ...]
    rows: Sequence[Rows]
    penalty: Penalty | None = None


class Dynamics(ABC):
    """A training recipe for a linear head on fixed features.

    All recipes minimise the mean over samples of the loss; squared error is *half* the sum over outputs of
    ``(f - y)^2``. (``torch.nn.functional.mse_loss`` on C outputs is 2 / C times that: multiply the learning rate by
    ``2 / C``, and the weight decay of SGD by ``C / 2``.) The bias is decayed like every other weight, as a torch
    optimiser does with one parameter group.

    Attributes:
        loss: ``"cross_entropy"`` or ``"squared_error"``.
    """

    loss: str

    def displacement(self, problem: LinearProblem) -> Displacement:
        """The change of the whole head, [d, C].

        Outputs that are not in the loss have a gradient of exactly zero and move by weight decay alone.
        """
        moved, residual = self.learn(problem)
        change = problem.weight * self.idle_change()
        change[:, problem.columns] = moved
        if not bool(change.isfinite().all()):
            raise ConfigError(
                f"training with {type(self).__name__} diverges: weights become infinite. Try a smaller lr."
            )
        return Displacement(change, residual)

    @abstractmethod
    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        """Change of the weights of the outputs in the loss, [d, C_active], and the residual of a solve."""

    @abstractmethod
    def idle_change(self) -> float:
        """Factor on weights without gradient, minus 1."""

    @property
    def in_span(self) -> bool:
        """Whether every update lies in the span of the new features; not so with weight decay."""
        return not getattr(self, "weight_decay", 0.0)

    @property
    def has_steps(self) -> bool:
        """Whether the recipe can be followed step by step (`stepwise`)."""
        return type(self).stepwise is not Dynamics.stepwise

    def stepwise(self, n: int, device: torch.device) -> Steps:
        """Every optimiser step on n new samples.

        Raises:
            ConfigError: a recipe that is not made of steps.
        """
        raise ConfigError(
            f"{type(self).__name__} has no steps to follow through a network that is adapted. "
            "Use SGD, AdamW or GradientDescent, or form='ntk' with squared error."
        )


def learning_rates(lr: float | Sequence[float], steps: int | None) -> tuple[float, ...]:
    """One learning rate per step.

    Raises:
        ConfigError: a number without ``steps``, a sequence of another length, or a rate that is not positive or zero.

    >>> learning_rates(0.1, 3), learning_rates([0.1, 0.2], None)
    ((0.1, 0.1, 0.1), (0.1, 0.2))
    """
    if isinstance(lr, (int, float)):
        if steps is None or steps < 0:
            raise ConfigError(f"a constant lr needs the number of steps, got steps={steps}")
        rates: tuple[float, ...] = (float(lr),) * steps
    else:
        rates = tuple(float(rate) for rate in lr)
        if steps is not None and len(rates) != steps:
            raise ConfigError(f"the schedule has {len(rates)} learning rates for {steps} steps")
    if any(not 0 <= rate < float("inf") for rate in rates):
        raise ConfigError(f"learning rates must be zero or positive, got {min(rates)} to {max(rates)}")
    return rates


def head_rates(head_lr: float | Sequence[float] | None, rates: tuple[float, ...]) -> tuple[float, ...]:
    """Rates of the linear head: those of the rest for None.

    >>> head_rates(None, (0.1, 0.2)), head_rates(0.5, (0.1, 0.2))
    ((0.1, 0.2), (0.5, 0.5))
    """
    return rates if head_lr is None else learning_rates(head_lr, len(rates))


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ConfigError unless ``low <= value < high``."""
    if not low <= value < high:
        raise ConfigError(f"{name} must be at least {low:g} and below {high:g}, got {value!r}")


def runs(rates: Sequence[float]) -> list[tuple[float, int]]:
    """Consecutive equal learning rates as (rate, how many).

    >>> runs([0.1, 0.1, 0.2])
    [(0.1, 2), (0.2, 1)]
    """
    return [(rate, len(list(group))) for rate, group in itertools.groupby(rates)]


def batch_order(
    permutation: Callable[[int], Tensor],
    window: Callable[[Tensor, int], list[list[int]]],
    *,
    epochs: int,
    steps_per_epoch: int,
) -> list[list[int]]:
    """The samples of every optimiser step, in the order in which training will see them.

    Args:
        permutation: epoch -> order of the samples, `tangentcl.training.order.BatchOrder.permutation`.
        window: (that order, step of the epoch) -> batches of one optimiser step, `BatchOrder.window`. Accumulated
            batches count as one batch, of which a step takes the mean.
        epochs, steps_per_epoch: of the plan and of the order.

    >>> import torch
    >>> batch_order(lambda e: torch.arange(4).roll(e), lambda p, s: [p[2 * s : 2 * s + 2].tolist()],
    ...             epochs=2, steps_per_epoch=2)
    [[0, 1], [2, 3], [3, 0], [1, 2]]
    """
    batches = []
    for epoch in range(epochs):
        order = permutation(epoch)
        batches += [list(itertools.chain.from_iterable(window(order, step))) for step in range(steps_per_epoch)]
    return batches
