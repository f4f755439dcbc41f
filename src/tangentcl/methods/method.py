"""The interface every continual learner implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError
from tangentcl.nn import Backbone

Batch = Any  # what the transform's ``collate`` returns: a tensor, or a dict of tensors


class Method(nn.Module, ABC):
    """A continual learner: a module that names its losses and predicts over the classes seen so far.

    A method never sees an optimiser, a file or a clock. The trainer calls, for each task of a stream,

    ``begin_task -> training_samples -> (training_loss ...) -> end_task -> predict ...``

    Shapes change in ``begin_task`` only, so a checkpoint is restored by replaying ``begin_task(0..t)`` and loading
    the state dict. What a method remembers beyond tensors goes through ``get_extra_state``.

    Attributes:
        keeps_samples: whether the method stores training samples of past tasks. Declared, shown in the record, and
            checked by the contract test.
    """

    keeps_samples: bool = False

    @abstractmethod
    def begin_task(self, task: Task) -> None:
        """Prepare for ``task``: grow the classifier, add adapters. Called once, before any batch of the task."""

    def training_samples(self, task: Task) -> Samples | None:
        """What the gradient phase trains on: the task's samples unless a method says otherwise.

        ``None`` means that nothing is learned at this task and the stage is not evaluated (joint training waits for
        the last task, for example).
        """
        return task.train

    @abstractmethod
    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """Named scalar terms whose sum is minimised.

        Args:
            x: a batch as the training transform collates it.
            y: stream labels, ``[B]`` int64.

        Returns:
            At least one term while something is trained; ``{}`` where nothing is (the trainer then skips this phase).
        """

    @abstractmethod
    def end_task(self, task: Task) -> None:
        """Consolidate after the gradient phase. A closed-form method, without trainable parameters, learns here."""

    @abstractmethod
    def predict(self, x: Batch) -> Tensor:
        """Scores over the classes seen so far, ``[B, n_seen]``; the predicted class is the arg max."""

    def forward(self, x: Batch) -> Tensor:
        """Same as `predict`, so that a method is an ordinary module for tools that expect one."""
        return self.predict(x)

    @property
    def reads_features(self) -> bool:
        """Whether samples are seen through a backbone alone that nothing changes.

        Then features that were computed once may stand for them, see `tangentcl.nn.FeatureStore`.
        """
        return False

    @property
    def stored_samples(self) -> int:
        """Number of training samples of past tasks held at the moment."""
        return 0

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters and buffers beside the frozen weights of the backbone: what each new task hands on.

        Frozen adapters of earlier tasks count: they did not come with the backbone. Samples are counted apart, see
        `stored_samples`.
        """
        inside = [m for m in self.modules() if isinstance(m, Backbone)]
        added = {
            id(tensor)
            for m in inside
            for name, tensor in m.model.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and not m.holds_pretrained(name)
        }
        frozen = {id(p) for m in inside for p in m.parameters() if not p.requires_grad}
        frozen |= {id(b) for m in inside for b in m.buffers()}
        own = {id(t): t for t in (*self.parameters(), *self.buffers())}
        return sum(t.nbytes for key, t in own.items() if key not in frozen or key in added)

    def train(self, mode: bool = True) -> Method:
        """Training mode for the parts that train; children without trainable parameters stay in evaluation mode.

        A frozen backbone in training mode would run dropout and update batch statistics.
        """
        super().train(mode)
        if mode:
            for child in self.children():
                if not any(p.requires_grad for p in child.parameters()):
                    child.eval()
        return self


def require_backbone(value: object) -> Backbone:
    """``value`` if it is a backbone.

    Raises:
        ConfigError: it is something else, e.g. a name or a bare module.
    """
    if not isinstance(value, Backbone):
        raise ConfigError(
            f"a method needs a tangentcl.nn.Backbone, got {type(value).__name__}. "
            f"Make one with tangentcl.nn.backbone(name) or tangentcl.nn.from_module(module, ...)."
        )
    return value
