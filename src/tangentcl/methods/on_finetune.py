"""What methods share that fine-tune, and do something more around it."""

from __future__ import annotations

from torch import Tensor

from tangentcl.data import Task
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch, Method


class OnFinetune(Method):
    """A method that trains and predicts as the `Finetune` inside it, unless it says otherwise.

    Attributes:
        learner: backbone and head.
    """

    learner: Finetune

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head."""
        self.learner.begin_task(task)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """That of the learner inside."""
        return self.learner.training_loss(x, y)

    def end_task(self, task: Task) -> None:
        """Nothing is consolidated."""

    @property
    def reads_features(self) -> bool:
        """As the learner inside."""
        return self.learner.reads_features

    def predict(self, x: Batch) -> Tensor:
        """Logits over all classes seen so far, ``[B, n_seen]``."""
        return self.learner.predict(x)
