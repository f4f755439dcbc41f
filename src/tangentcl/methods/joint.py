"""Joint training: the upper reference that sees every task at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone, GrowingLinear


class Joint(OnFinetune):
    """`Finetune` from its initial weights on the union of all tasks seen, for comparison.

    It is no continual learner: it keeps every sample and looks at ``task.n_tasks``. With ``every_task=False`` it
    trains once, at the last task, and earlier rows of its accuracy matrix stay empty; with ``every_task=True`` it
    starts afresh on the union after each task, which gives the reference that intransigence needs (Chaudhry et al.,
    ECCV 2018) at T times the cost.

    The other arguments are those of `Finetune`; the loss is over all classes.
    """

    keeps_samples: bool = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        every_task: bool = False,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.learner = Finetune(backbone, tune=tune, rank=rank, alpha=alpha, targets=targets, dropout=dropout)
        self.every_task = every_task
        self._initial = {name: p.detach().clone() for name, p in self.learner.trainable_backbone().items()}
        self._seen: list[Task] = []

    def _trains_at(self, task: Task) -> bool:
        return self.every_task or task.index == task.n_tasks - 1

    def begin_task(self, task: Task) -> None:
        """Back to the initial weights, with a fresh head over all classes seen so far."""
        if self._seen and task.index <= self._seen[-1].index:
            raise ConfigError(
                f"{type(self).__name__} has seen task {task.index} already; make a new one for each stream"
            )
        self._seen.append(task)
        if not self._trains_at(task):
            return
        for name, parameter in self.learner.trainable_backbone().items():
            parameter.data.copy_(self._initial[name])
        device = self.learner.head.weight.device
        self.learner.head = GrowingLinear(self.learner.backbone.width).to(device)
        everything = tuple(range(task.n_seen))
        self.learner.begin_task(dataclasses.replace(task, classes=everything, new_classes=everything))

    def training_samples(self, task: Task) -> Samples | None:
        """The union of all tasks seen, or ``None`` where this stage waits for the last task."""
        if not self._trains_at(task):
            return None
        return Samples.concat([seen.train for seen in self._seen])

    @property
    def stored_samples(self) -> int:
        """Everything seen so far."""
        return sum(len(task.train) for task in self._seen)
