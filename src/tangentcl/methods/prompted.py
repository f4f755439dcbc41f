"""What prompt-based methods share: a query of a frozen transformer chooses prompts for a second pass through it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from torch import Tensor

from tangentcl.data import Task
from tangentcl.losses import task_cross_entropy
from tangentcl.methods.finetune import check_logits
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.nn import Backbone, GrowingLinear
from tangentcl.nn.prompted_trunk import PromptedTrunk


class Prompted(Method):
    r"""Cross-entropy of a linear head on prompted features, and the method's own terms.

    With :math:`q(x)` the backbone's own feature, :math:`P(q)` the prompts of a query and :math:`h(x; P)` the feature
    with them, scores are :math:`W h(x; P(q(x))) + b`. Every sample is two passes through the trunk, in training, too;
    both count as passes. A sample's prompts follow from its own query: nothing depends on the rest of the batch.

    Args:
        backbone: a transformer that `tangentcl.nn.layouts.transformer` understands; it stays frozen. Its pooling makes
            query and feature, where the papers take the class token.
        logits: ``"current"``, cross-entropy over the task's classes, as the papers do, or ``"all"`` over those seen.
    """

    def __init__(self, backbone: Backbone, *, logits: Literal["all", "current"] = "current") -> None:
        super().__init__()
        check_logits(logits)
        self.logits = logits
        self.trunk = PromptedTrunk(require_backbone(backbone))
        self.head = GrowingLinear(self.trunk.width)
        self._current: tuple[int, ...] = ()

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head."""
        self.head.grow(task.n_seen)
        self._current = task.classes

    @abstractmethod
    def prompted(self, x: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Features ``[B, d]`` as the current task is trained, and the method's own terms, weighted."""

    @abstractmethod
    def features(self, x: Batch) -> Tensor:
        """Features ``[B, d]`` of samples of any task."""

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` and what the method adds."""
        features, terms = self.prompted(x)
        classes = None if self.logits == "all" else self._current
        return {"cross_entropy": task_cross_entropy(self.head(features), y, classes), **terms}

    def end_task(self, task: Task) -> None:
        """Nothing is consolidated."""

    def predict(self, x: Batch) -> Tensor:
        """Logits over all classes seen so far, ``[B, n_seen]``."""
        return self.head(self.features(x))
