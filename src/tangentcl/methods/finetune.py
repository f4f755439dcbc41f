"""Sequential fine-tuning: the same network is trained on one task after the other, with no protection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.nn import Backbone, GrowingLinear, add_lora

TUNE = ("head", "lora", "full")
LOGITS = ("all", "current")


class Finetune(Method):
    r"""Cross-entropy on the current task, from where the last task left off.

    With features :math:`h(x) \in R^d` and a linear head that gains a row per new class,

    .. math:: L = -\log \frac{\exp(w_y \cdot h(x) + b_y)}{\sum_{c \in A} \exp(w_c \cdot h(x) + b_c)},

    where A is all classes seen so far (``logits="all"``) or the classes of the current task (``logits="current"``;
    the old rows of the head then receive no gradient, and what is forgotten is forgotten through the features). The
    second is what most PEFT-CL papers use ("local cross-entropy", "mask"); the first is the textbook lower bound.

    Args:
        backbone: a frozen feature extractor; it is adapted in place.
        tune: ``"head"`` (linear probe), ``"lora"`` (LoRA and head), ``"full"`` (everything).
        rank, alpha, targets, dropout: of LoRA (Hu et al., ICLR 2022), see `tangentcl.nn.add_lora`; used for
            ``tune="lora"`` only.
        logits: ``"all"`` or ``"current"``.
        new_bias: initial bias of the head's new rows in every task but the first, whose classes start at 0 and have
            nothing to be low against. About -2 keeps new classes low on old samples, which helps what protects old
            outputs.

    Note:
        Weight decay of the plan also shrinks the rows of old classes, which receive no gradient under
        ``logits="current"``; the plan's default is no decay.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        logits: Literal["all", "current"] = "all",
        new_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if tune not in TUNE:
            raise ConfigError(f"tune must be one of {', '.join(TUNE)}, got {tune!r}.{nearest(tune, TUNE)}")
        if logits not in LOGITS:
            raise ConfigError(f"logits must be one of {', '.join(LOGITS)}, got {logits!r}.{nearest(logits, LOGITS)}")
        if not math.isfinite(new_bias):
            raise ConfigError(f"new_bias must be a finite number, got {new_bias!r}")
        self.backbone = require_backbone(backbone)
        self.tune = tune
        self.logits = logits
        self.new_bias = new_bias
        if tune == "lora":
            add_lora(backbone, rank, alpha=alpha, targets=targets, dropout=dropout)
        elif tune == "full":
            backbone.requires_grad_(True)
        self.head = GrowingLinear(backbone.width)
        self._current: list[int] = []

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head."""
        self.head.grow(task.n_seen, bias=self.new_bias if self.head.n_outputs else 0.0)
        self._current = list(task.classes)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` over all seen classes or the current task's."""
        return {"cross_entropy": self.cross_entropy(self.predict(x), y)}

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """That of `training_loss`, from logits ``[B, n_seen]`` that are there already."""
        if self.logits == "all":
            return F.cross_entropy(logits.float(), y)
        current = torch.tensor(self._current, device=y.device)
        matches = y[:, None] == current[None, :]  # [B, C_t]
        return F.cross_entropy(logits[:, current].float(), matches.long().argmax(dim=1))

    def end_task(self, task: Task) -> None:
        """Nothing is consolidated: this is what the protected methods are compared with."""

    @property
    def reads_features(self) -> bool:
        """With ``tune = "head"``."""
        return self.tune == "head"

    def predict(self, x: Batch) -> Tensor:
        """Logits over all classes seen so far, ``[B, n_seen]``."""
        return self.head(self.backbone(x))

    @property
    def loss_classes(self) -> list[int]:
        """The classes that the loss of the current task is over, the set A."""
        return list(self._current) if self.logits == "current" else list(range(self.head.n_outputs))

    def trainable_backbone(self) -> dict[str, nn.Parameter]:
        """The adapted parameters by name, without the head."""
        return {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}
