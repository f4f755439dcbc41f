"""A closed-form head over a backbone that is frozen, or adapted on the first task and frozen then."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Samples, Task
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
        joint: no continual learner but its reference: keep every sample and learn all tasks at once at the last one.
            Earlier rows of the accuracy matrix stay empty. Reports take the regret of a run from it.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: AnalyticHead,
        *,
        first_session: FirstSession = "off",
        rank: int = 16,
        joint: bool = False,
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
        self.joint = self.keeps_samples = joint
        self._seen: list[Task] = []
        adapted = [name for name, p in self.backbone.named_parameters() if p.requires_grad]
        self._adapted = frozenset(f"backbone.{name}" for name in adapted)

    def begin_task(self, task: Task) -> None:
        """Room for the new classes; after the first task the backbone is frozen."""
        if self.joint:
            if self._seen and task.index <= self._seen[-1].index:
                raise ConfigError(f"task {task.index} was seen already; make a new {type(self).__name__} for a stream")
            self._seen.append(task)
            if task.index < task.n_tasks - 1:
                return
        self.head.grow(task.n_seen)
        self.session = None
        if self.first_session != "off" and (task.index == 0 or self.joint):
            classifier = GrowingLinear(self.backbone.width)
            classifier.grow(task.n_seen)
            self.session = classifier
        elif task.index:
            self.backbone.requires_grad_(False)

    def training_samples(self, task: Task) -> Samples | None:
        """The task's, or with ``joint`` those of all tasks at the last one."""
        if not self.joint:
            return super().training_samples(task)
        return Samples.concat([seen.train for seen in self._seen]) if task.index == task.n_tasks - 1 else None

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` in a first session, nothing after it."""
        if self.session is None:
            return {}
        return {"cross_entropy": F.cross_entropy(self.session(self.backbone(x)).float(), y)}

    def end_task(self, task: Task) -> None:
        """The head learns the task's features under the evaluation transform."""
        seen = Samples.concat([seen.train_eval for seen in self._seen]) if self.joint else task.train_eval
        features, labels = extract_features(self.backbone, seen)
        self.head.fit_task(features.to(self.backbone.device), labels)

    @property
    def reads_features(self) -> bool:
        """Without a first session."""
        return self.first_session == "off"

    def predict(self, x: Batch) -> Tensor:
        """Scores of the head, ``[B, n_seen]``."""
        return self.head(self.backbone(x))

    @property
    def stored_samples(self) -> int:
        """Everything seen so far with ``joint``, none without."""
        return sum(len(task.train) for task in self._seen)

    @property
    def state_bytes(self) -> int:
        """Of the head, and of what the first session adapted."""
        adapted = (v for name, v in self.state_dict().items() if name in self._adapted)
        return self.head.state_bytes + sum(v.nbytes for v in adapted)


def drawn_seed() -> int:
    """A seed from the global generator, so that a lift follows the seed of the run."""
    return int(torch.randint(2**31, ()))
