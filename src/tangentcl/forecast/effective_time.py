"""How long a schedule trains, as the time of a gradient flow."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tangentcl.errors import ConfigError
from tangentcl.forecast.dynamics import Dynamics, check_range, learning_rates


@runtime_checkable
class Plan(Protocol):
    """What is asked of a training plan, `tangentcl.training.TrainingPlan`."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def head_lr(self) -> float | None: ...
    @property
    def momentum(self) -> float: ...
    @property
    def nesterov(self) -> bool: ...

    def factor(self, step: int, n_steps: int) -> float:
        """Rate of a step as a multiple of the peak."""


Schedule = Sequence[float] | Tensor | LRScheduler | Dynamics | Plan


def effective_time(
    schedule: Schedule,
    momentum: float | None = None,
    *,
    steps: int | None = None,
    nesterov: bool | None = None,
    from_rest: bool = False,
) -> float:
    r"""The time for which gradient flow does to first order what SGD does at these rates.

    .. math:: \tau = \sum_{k=1}^{K} \frac{\eta_k}{1 - \mu}, \qquad
        \tau_{rest} = \sum_{k=1}^{K} \eta_k \frac{1 - \mu^k}{1 - \mu}.

    Under a gradient g that stays, torch.optim.SGD moves a parameter by exactly :math:`-\tau_{rest}\,g`: in step k its
    velocity has built up to :math:`g (1 - \mu^k)/(1 - \mu)`, or :math:`g (1 - \mu^{k+1})/(1 - \mu)` with Nesterov
    momentum. Where the rate, and not the step, is inside the velocity, the factor is :math:`1 - \mu^{K-k}` of the steps
    left instead; at a constant rate the sums are equal. :math:`\tau` leaves out the build-up. With exponential decay,
    :math:`\eta_k = \eta_0\gamma^{k-1}`, :math:`\tau = \eta_0 (1 - \gamma^K) / ((1 - \gamma)(1 - \mu))`.

    **When the flow is close.** On squared error and all samples in each step, without momentum, the residual along a
    direction of curvature h shrinks by :math:`\prod_k (1 - \eta_k h)` where the flow has :math:`e^{-h\tau}`; with
    :math:`-x - x^2 \le \ln(1 - x) \le -x` on [0, 1/2] and :math:`u e^{-u} \le 1/e`,

    .. math:: 0 \le e^{-h\tau} - \prod_k (1 - \eta_k h) \le \max_k \eta_k h / e, \qquad \max_k \eta_k h \le 1/2 :

    outputs on the new samples are off by at most 0.37 times rate times largest curvature of the initial residual,
    whatever the number of steps and the schedule. With momentum the slow root gives
    :math:`\eta h (1 + \mu) / (e (1 - \mu)^2)` to first order, for :math:`\tau_{rest}` and
    :math:`\eta h \le (1 - \sqrt\mu)^2`, above which outputs oscillate as no flow does. Mini-batches add their noise,
    of which the flow knows nothing; weight decay goes into the flow (`GradientFlow`). Cross-entropy is another flow:
    only its first step is this one.

    Args:
        schedule: rates step by step; a scheduler of torch with its optimiser, read from where it is and left there; a
            training plan; or a recipe with steps (`SGD`, `GradientDescent`), e.g. ``tangentcl.recipe(plan, n, task)``.
            Of plans and recipes with two rates that of the head counts.
        momentum: mu; None takes that of the optimiser, plan or recipe, 0 for plain rates.
        steps: K; needed by schedulers and plans (``plan.steps(n)``).
        nesterov: as ``momentum``; counts for ``from_rest`` alone.
        from_rest: count the velocity's build-up from zero, as a fresh optimiser has it.

    Raises:
        ConfigError: no number of steps, a rate or momentum out of range, an optimiser whose steps are not
            proportional to gradients (Adam), or one with dampening or rates that depend on a metric.

    >>> round(effective_time([0.1] * 20), 6), round(effective_time([0.1] * 20, momentum=0.9), 6)
    (2.0, 20.0)
    >>> round(effective_time([0.1] * 20, momentum=0.9, from_rest=True), 3)
    12.094
    """
    rates, own_momentum, own_nesterov = _read(schedule, steps)
    mu = own_momentum if momentum is None else momentum
    check_range("momentum", mu, 0, 1)
    ahead = int(own_nesterov if nesterov is None else nesterov)
    if not from_rest:
        return sum(rates) / (1 - mu)
    return sum(rate * (1 - mu ** (k + ahead)) for k, rate in enumerate(rates, 1)) / (1 - mu)


def decay_of(schedule: Schedule) -> float:
    """Weight decay of a scheduler's optimiser, a plan or a recipe; 0 for plain rates."""
    if isinstance(schedule, LRScheduler):
        return float(schedule.optimizer.param_groups[0].get("weight_decay", 0.0))
    return float(getattr(schedule, "weight_decay", 0.0))


def _read(schedule: Schedule, steps: int | None) -> tuple[tuple[float, ...], float, bool]:
    """Rates, momentum, and whether it is Nesterov's."""
    if isinstance(schedule, LRScheduler):
        return _of_scheduler(schedule, steps)
    if isinstance(schedule, Dynamics):
        if not schedule.has_steps or not hasattr(schedule, "momentum"):
            raise ConfigError(
                f"{type(schedule).__name__} has no steps in proportion to gradients, and so no effective time. "
                "Pass SGD or GradientDescent."
            )
        rates = schedule.stepwise(sys.maxsize, torch.device("cpu")).head_rates
        return _cut(rates, steps), float(schedule.momentum), bool(getattr(schedule, "nesterov", False))
    if isinstance(schedule, Plan):
        if schedule.optimizer != "sgd":
            raise ConfigError(f"steps of {schedule.optimizer} are not in proportion to gradients: no effective time")
        count = _needed(steps, "a plan", "plan.steps(n)")
        peak = schedule.lr if schedule.head_lr is None else schedule.head_lr
        rates = learning_rates([peak * schedule.factor(k, count) for k in range(count)], count)
        return rates, schedule.momentum, schedule.nesterov
    values = schedule.tolist() if isinstance(schedule, Tensor) else schedule
    return learning_rates(values, steps), 0.0, False


def _cut(rates: tuple[float, ...], steps: int | None) -> tuple[float, ...]:
    if steps is not None and not 0 <= steps <= len(rates):
        raise ConfigError(f"the recipe has {len(rates)} steps, so there are no {steps}")
    return rates[:steps]


def _needed(steps: int | None, what: str, where: str) -> int:
    if steps is None or steps < 0:
        raise ConfigError(f"{what} does not say how many steps are taken, got steps={steps}. Pass steps={where}.")
    return steps


def _of_scheduler(scheduler: LRScheduler, steps: int | None) -> tuple[tuple[float, ...], float, bool]:
    """The next rates of a scheduler's first group, from a copy without parameters."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError("the rates of ReduceLROnPlateau depend on a metric. Pass the rates themselves.")
    optimizer = scheduler.optimizer
    group: dict[str, Any] = optimizer.param_groups[0]
    if "momentum" not in group:
        raise ConfigError(f"steps of {type(optimizer).__name__} are not in proportion to gradients: no effective time")
    if group.get("dampening"):
        raise ConfigError(f"dampening {group['dampening']:g} is not part of the formula; expected 0")
    count = _needed(steps, "a scheduler", "how many")
    empty = {id(p): torch.nn.Parameter(torch.zeros(1)) for g in optimizer.param_groups for p in g["params"]}
    memo: dict[int, Any] = {**empty, id(optimizer.state): defaultdict(dict)}
    alone = copy.deepcopy(scheduler, memo)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the optimiser takes no steps between
        for _ in range(count):
            rates.append(float(alone.optimizer.param_groups[0]["lr"]))
            alone.step()
    return learning_rates(rates, count), float(group["momentum"]), bool(group["nesterov"])
