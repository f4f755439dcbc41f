"""A linear head held by its outputs on k old samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tangentcl.data import Task
from tangentcl.methods import Method, Replay
from tangentcl.nn import Backbone, extract_features
from tangentcl.protect.anchor_penalty import AnchorPenalty


class Anchored(Method):
    r"""Cross-entropy and :math:`\frac{\lambda t}{2 k} \sum_i \|f(x_i) - f_0(x_i)\|^2` on k anchors after t tasks.

    Anchors are chosen as the samples of `Replay` are, so that the two differ only in what a sample is kept for. All of
    them are looked at in every step.

    Args:
        k: anchors. strength: lambda. new_bias: of the rows of new classes. seed: of the choice.
    """

    keeps_samples = True

    def __init__(self, backbone: Backbone, *, k: int, strength: float, new_bias: float, seed: int) -> None:
        super().__init__()
        self.memory = Replay(backbone, budget=k, tune="head", seed=seed)
        self.memory.learner.new_bias = new_bias
        self.strength, self.n_old, self.k = strength, 0, k
        self.guard: AnchorPenalty | None = None

    def begin_task(self, task: Task) -> None:
        self.memory.begin_task(task)
        if self.n_old:
            stored = self.memory.training_samples(task)
            old = stored.subset(range(len(task.train), len(stored)))
            anchors = extract_features(self.memory.learner.backbone, old)[0]
            self.guard = AnchorPenalty(self.memory.learner.head, anchors, _outputs, per_step=self.k)

    def training_loss(self, x: Any, y: Tensor) -> dict[str, Tensor]:
        terms = self.memory.training_loss(x, y)
        if self.guard is None:
            return terms
        energy = self.guard.energy(self.memory.learner.head)
        return {**terms, "drift": 0.5 * self.strength * self.n_old * energy}

    def end_task(self, task: Task) -> None:
        self.memory.end_task(task)
        self.n_old += 1

    @property
    def stored_samples(self) -> int:
        return self.memory.stored_samples

    def predict(self, x: Any) -> Tensor:
        return self.memory.predict(x)


def _outputs(model: torch.nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out
