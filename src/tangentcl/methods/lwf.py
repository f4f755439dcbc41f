"""Learning without Forgetting: the model before a task teaches the one after it, on the new samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.nn.extract import evaluating
from tangentcl.protect.named_tensors import NamedTensors, trained_parameters


class LwF(OnFinetune):
    r"""`Finetune` with distillation from the model before the task, over the old classes, on the task's own samples.

    .. math:: L = L_{CE} + \lambda\, E_x\, KL\big(\mathrm{softmax}(f^{old}_O(x) / T) \,\|\,
        \mathrm{softmax}(f_O(x) / T)\big),

    O being the classes of earlier tasks. Li and Hoiem, "Learning without Forgetting", TPAMI 2018. The old model is a
    copy of what trains, put in place of it for one more forward pass (in evaluation mode, without gradients); nothing
    of the past is needed but this copy. It is kept between tasks too.

    Departures from the paper:

    - One softmax over all old classes, as their scores compete in one prediction; the paper has a head, and a softmax,
      for each task. Where classes come back in another domain, O is all of them.
    - The Kullback-Leibler divergence in place of the cross-entropy: the same gradient, and zero where nothing changed.
    - No phase in which the new rows of the head train alone.

    Args:
        strength: λ, 1 in the paper.
        temperature: T, 2 in the paper.
        logits: ``"current"``, as in the paper: new samples say nothing about old classes but through the old model.

    The other arguments are those of `Finetune`.

    Raises:
        ConfigError: a negative strength, or a temperature that is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        strength: float = 1.0,
        temperature: float = 2.0,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        logits: Literal["all", "current"] = "current",
    ) -> None:
        super().__init__()
        if strength < 0:
            raise ConfigError(f"strength multiplies the distillation and must be at least 0, got {strength}")
        if temperature <= 0:
            raise ConfigError(f"temperature divides the logits and must be above 0, got {temperature}")
        self.learner = Finetune(
            backbone, tune=tune, rank=rank, alpha=alpha, targets=targets, dropout=dropout, logits=logits
        )
        self.strength, self.temperature = strength, temperature
        self.old = NamedTensors()
        self._n_old = 0

    def _moving(self) -> dict[str, Tensor]:
        """What a task changes: parameters that train, and with ``tune="full"`` running statistics."""
        statistics = self.learner.named_buffers() if self.learner.tune == "full" else ()
        return {**trained_parameters(self.learner), **{name: b for name, b in statistics if b.is_floating_point()}}

    def begin_task(self, task: Task) -> None:
        """Copy the model as it is, then append one row per new class to the head."""
        if task.index > 0:
            self.old.fit(self._moving())
            self.old.assign(self._moving())
        self.learner.begin_task(task)
        self._n_old = 0 if task.index == 0 else task.n_seen - len(task.new_classes)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ..., "distillation": ...}``; the second from the second task on."""
        logits = self.learner.predict(x)  # [B, n_seen]
        terms = {"cross_entropy": self.learner.cross_entropy(logits, y)}
        if self._n_old:
            target = (self._old_logits(x) / self.temperature).log_softmax(dim=1)  # [B, n_old]
            now = (logits[:, : self._n_old].float() / self.temperature).log_softmax(dim=1)
            distance = F.kl_div(now, target, reduction="batchmean", log_target=True)
            terms["distillation"] = self.strength * distance
        return terms

    @torch.no_grad()
    def _old_logits(self, x: Batch) -> Tensor:
        with evaluating(self.learner):
            return torch.func.functional_call(self.learner, dict(self.old.items()), (x,)).float()

    def end_task(self, task: Task) -> None:
        """Nothing: the next task begins with a copy."""
