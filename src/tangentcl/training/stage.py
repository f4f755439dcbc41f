"""One task as it is about to be learned, and who may look on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from tangentcl.data import Samples, Task
from tangentcl.methods import Method
from tangentcl.training.order import derived_seed
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.runtime import Runtime


@dataclass(frozen=True)
class Stage:
    """A task between ``begin_task`` and evaluation.

    Attributes:
        method: the learner.
        task: what it learns.
        samples: what it trains on; the task's own unless the method adds to them or replaces them.
        plan: the recipe. runtime: device and processes.
    """

    method: Method
    task: Task
    samples: Samples
    plan: TrainingPlan
    runtime: Runtime


def begin(method: Method, task: Task, seed: int) -> None:
    """``begin_task`` with random numbers of its own, so that new parameters are the same in every process.

    Args:
        seed: of the plan.
    """
    torch.manual_seed(derived_seed(seed, "begin", task.index))
    method.begin_task(task)


class StageWatcher(Protocol):
    """Looks at every task of a stream without taking part: method and random generators stay as they are.

    With several processes each of them calls it, at the same points.
    """

    def before(self, stage: Stage) -> None:
        """After ``begin_task``, before anything is learned of the task."""

    def after(self, stage: Stage) -> None:
        """After ``end_task``, before the evaluation."""


@runtime_checkable
class RemembersTasks(Protocol):
    """A `StageWatcher` that needs something of earlier tasks when a run goes on after a stop."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs, after a task: tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any], tasks: Sequence[Task]) -> None:
        """Go on from `state_dict`; ``tasks`` are all of the stream."""
