"""A closed-form head over a backbone that is frozen, or adapted on the first task and frozen then."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.heads import AnalyticHead
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.nn import Backbone, GrowingLinear, add_lora, extract_features

FirstSession = Literal["off", "lora", "full"]


class Analytic(Method):
    r"""One pass over each task's features, and a head that is as good as if it had seen all tasks at once.

    With ``first_session`` the backbone is adapted to the first task by cross-entropy under the plan, with a linear
    classifier that is thrown away, and frozen then ("first-session adaptation", Panos et al., ICCV 2023): what a
    head promises of order and joint training holds from there.

    Args:
        backbone: frozen, or adapted in place.
        head: over its features.
        first_session: ``"off"``, ``"lora"`` (on query and value) or ``"full"``.
        rank: of the adapters.
    """

    def __init__(
        self, backbone: Backbone, head: AnalyticHead, *, first_session: FirstSession = "off", rank: int = 16
    ) -> None:
        super().__init__()
        if first_session not in get_args(FirstSession):
            known = get_args(FirstSession)
            hint = nearest(str(first_session), known)
            raise ConfigError(f"first_session must be one of {', '.join(known)}, got {first_session!r}.{hint}")
        self.backbone = require_backbone(backbone)
        if first_session == "lora":
            add_lora(backbone, rank)
        elif first_session == "full":
            backbone.requires_grad_(True)
        self.first_session = first_session
        self.head = head
        self.session: nn.Module | None = None

    def begin_task(self, task: Task) -> None:
        """Room for the new classes; after the first task the backbone is frozen."""
        self.head.grow(task.n_seen)
        self.session = None
        if self.first_session != "off" and task.index == 0:
            classifier = GrowingLinear(self.backbone.width)
            classifier.grow(task.n_seen)
            self.session = classifier
        elif task.index:
            self.backbone.requires_grad_(False)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` in a first session, nothing after it."""
        if self.session is None:
            return {}
        return {"cross_entropy": F.cross_entropy(self.session(self.backbone(x)).float(), y)}

    def end_task(self, task: Task) -> None:
        """The head learns the task's features under the evaluation transform."""
        features, labels = extract_features(self.backbone, task.train_eval)
        self.head.fit_task(features.to(self.backbone.device), labels)

    def predict(self, x: Batch) -> Tensor:
        """Scores of the head, ``[B, n_seen]``."""
        return self.head(self.backbone(x))


def drawn_seed() -> int:
    """A seed from the global generator, so that a lift follows the seed of the run."""
    return int(torch.randint(2**31, ()))
