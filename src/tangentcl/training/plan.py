"""How to train: the settings of the loop, and the optimiser and schedule made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tangentcl.errors import ConfigError, nearest

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The recipe used on every task of a stream.

    Args:
        epochs: passes over a task's training samples.
        batch_size: samples of one forward and backward pass, over all processes together.
        accumulate: batches whose gradients make one optimiser step; the step equals that of a batch
            ``accumulate`` times as large.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: peak learning rate.
        momentum, nesterov: of SGD. betas: of AdamW.
        weight_decay: decoupled for AdamW, in the gradient for SGD.
        schedule: ``"constant"``, ``"cosine"`` (to zero at the task's end) or ``"step"`` (times ``gamma`` at every
            milestone, given as a share of the task's steps). It starts again at each task.
        warmup: linear from zero; a number of steps, or below 1 a share of the task's steps.
        clip_norm: largest Euclidean norm of the whole gradient; ``None`` does not clip.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` autocast (fp16 needs CUDA; its loss is scaled).
        device: ``"auto"`` takes CUDA, then MPS, then the CPU.
        eval_batch_size: samples per batch of evaluation, per process.
        workers: processes that prepare batches; 0 prepares them in the training process.
        log_every: steps over which loss terms are averaged before they are reported.
        seed: of batch order, augmentation, dropout, and weights that ``begin_task`` adds. Weights that a method's
            constructor draws come from the global torch generator: call ``torch.manual_seed`` before it.

    >>> TrainingPlan(epochs=2, lr=0.1, optimizer="sgd").batch_size
    32
    """

    epochs: int = 5
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0
    clip_norm: float | None = None
    precision: str = "fp32"
    device: str = "auto"
    eval_batch_size: int = 256
    workers: int = 0
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("device", DEVICES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"plan.{name} is {value!r}.{nearest(str(value), known)}")
        for name, lowest in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("eval_batch_size", 1),
            ("workers", 0),
            ("log_every", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ConfigError(f"plan.{name} must be a whole number of at least {lowest}, got {value!r}")
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("gamma", 0.0, 1.0),
            ("warmup", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                limits = f"of at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise ConfigError(f"plan.{name} must be a finite number {limits}, got {value!r}")
        if self.clip_norm is not None and not (_is_number(self.clip_norm) and self.clip_norm > 0):
            raise ConfigError(f"plan.clip_norm must be a positive number, or left out, got {self.clip_norm!r}")
        if not isinstance(self.nesterov, bool):
            raise ConfigError(f"plan.nesterov must be true or false, got {self.nesterov!r}")
        for name in ("milestones", "betas"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(_is_number(value) for value in values):
                raise ConfigError(f"plan.{name} must be a list of numbers, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if any(not 0 < m < 1 for m in self.milestones):
            raise ConfigError(
                f"plan.milestones are shares of a task's steps, between 0 and 1, got {list(self.milestones)}"
            )
        if len(self.betas) != 2 or any(not 0 <= b < 1 for b in self.betas):
            raise ConfigError(f"plan.betas must be two numbers in [0, 1), got {list(self.betas)}")

    def steps(self, n_samples: int) -> int:
        """Optimiser steps on a task of ``n_samples``: the last window of an epoch may be short, and counts.

        >>> TrainingPlan(epochs=3, batch_size=32).steps(100)
        12
        """
        return self.epochs * math.ceil(n_samples / (self.batch_size * self.accumulate))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser over ``parameters``."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov and self.momentum > 0,
                weight_decay=self.weight_decay,
            )
        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def factor(self, step: int, n_steps: int) -> float:
        """Learning rate at ``step`` (from 0) of ``n_steps``, as a multiple of ``lr``.

        >>> plan = TrainingPlan(schedule="cosine", warmup=2)
        >>> [round(plan.factor(s, 6), 3) for s in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
        """
        warmup = self.warmup if self.warmup >= 1 else self.warmup * n_steps
        if step + 1 < warmup:
            return (step + 1) / warmup
        if self.schedule == "cosine":
            done = max(0.0, step - warmup) / max(1.0, n_steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.gamma ** sum(step >= m * n_steps for m in self.milestones)
        return 1.0

    def make_schedule(self, optimizer: torch.optim.Optimizer, n_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """The schedule over ``n_steps`` optimiser steps."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, _Factor(self, n_steps))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class _Factor:
    """A callable object rather than a closure, so that the scheduler's state dict stays small and picklable."""

    def __init__(self, plan: TrainingPlan, n_steps: int) -> None:
        self.plan, self.n_steps = plan, n_steps

    def __call__(self, step: int) -> float:
        return self.plan.factor(min(step, self.n_steps - 1), self.n_steps)

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "n_steps": self.n_steps}
