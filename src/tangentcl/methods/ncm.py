"""Nearest class mean on frozen features."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tangentcl.data import Samples, Task
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.nn import Backbone, PrototypeHead, extract_features


class NCM(Method):
    r"""The class whose mean feature is nearest; nothing is trained, so nothing learned is lost.

    Prototype :math:`\mu_c = \frac{1}{n_c} \sum_{y_i = c} h(x_i)` under the evaluation transform; the score of class c
    is :math:`\cos(h(x), \mu_c)` (``metric="cosine"``, SimpleCIL: Zhou et al., IJCV 2024) or
    :math:`-\|h(x) - \mu_c\|^2` (``metric="euclidean"``, Mensink et al., PAMI 2013).

    A class that appears in several tasks (domain-incremental streams) keeps one mean over all its samples.
    """

    def __init__(self, backbone: Backbone, *, metric: Literal["cosine", "euclidean"] = "cosine") -> None:
        super().__init__()
        self.backbone = require_backbone(backbone)
        self.head = PrototypeHead(backbone.width, metric=metric)

    def begin_task(self, task: Task) -> None:
        """Make room for the new classes."""
        self.head.grow(task.n_seen)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """Nothing to train."""
        return {}

    def end_task(self, task: Task) -> None:
        """One pass over the task's samples adds their features to the class sums."""
        samples: Samples = task.train_eval
        features, labels = extract_features(self.backbone, samples)
        device = self.head.sums.device
        self.head.update(features.to(device), labels.to(device))

    @property
    def reads_features(self) -> bool:
        """Always."""
        return True

    def predict(self, x: Batch) -> Tensor:
        """Similarity to every prototype, ``[B, n_seen]``."""
        return self.head(self.backbone(x))
