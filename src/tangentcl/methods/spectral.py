"""Fine-tuning held by the spectral regulariser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tangentcl.data import Samples, Task
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.nn.backbone import to_device
from tangentcl.protect.spectral import SpectralRegularizer, checked_strength

BATCH = 64  # samples per pass at the end of a task


class Spectral(OnFinetune):
    r"""`Finetune` on the current task with a penalty on the drift of old outputs, :math:`L + \lambda\,\Omega(\theta)`.

    At the end of every task its second moments are merged into those of the tasks before, k directions of each trained
    layer and the diagonal of the rest (`tangentcl.SpectralRegularizer`); no sample is kept, and the memory does not
    grow with tasks. New rows of the head are held as well: what they put out on old samples is intrusion.

    Args:
        strength: :math:`\lambda`. On CLINC150 heads are best from 0.003 to 0.03, LoRA from 0.03 to 3 (docs/protect.md);
            ``tangentcl plan --strength`` chooses one by forecasts.
        k: directions kept of each second moment.
        form: of the penalty below the head, ``"layers"`` or ``"jacobian"``; with ``tune="head"`` there is nothing
            below and both are the same.
        body: factor on everything but the head.
        weights: of layers below the head, ``"gradients"`` or ``"equal"``, see `tangentcl.protect.layer_penalty`. The
            regulariser's own default is the first, which makes it an energy of outputs; on three domains of CLINC150
            it kept no more than equal weights, which need no backward pass at a task's end.
        new_bias: of new rows of the head after the first task. Low, new classes intrude on old samples less.

    The other arguments are those of `Finetune`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        strength: float = 0.05,
        k: int = 32,
        form: Literal["layers", "jacobian"] = "layers",
        body: float = 1.0,
        weights: Literal["gradients", "equal"] = "equal",
        new_bias: float = -2.0,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        logits: Literal["all", "current"] = "all",
    ) -> None:
        super().__init__()
        self.learner = Finetune(
            backbone,
            tune=tune,
            rank=rank,
            alpha=alpha,
            targets=targets,
            dropout=dropout,
            logits=logits,
            new_bias=new_bias,
        )
        self.guard = SpectralRegularizer(
            self.learner, head="head", k=k, form=form, body=body, weights=weights, strength=strength
        )
        self.register_buffer("n_old", torch.zeros((), dtype=torch.int64))

    n_old: Tensor  # tasks whose moments are kept

    def begin_task(self, task: Task) -> None:
        """Append one row per new class, and hold everything where it is."""
        self.learner.begin_task(task)
        self.guard.hold(self.learner)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ..., "drift": ...}``, the second from the second task on."""
        terms = self.learner.training_loss(x, y)
        return {**terms, "drift": self.penalty(dict(self.named_parameters()))}

    @property
    def strength(self) -> float:
        """Of the penalty; may be changed between tasks."""
        return self.guard.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self.guard.strength = checked_strength(value)

    def penalty(self, values: Mapping[str, Tensor], strength: float | None = None) -> Tensor:
        r""":math:`\lambda\,t\,\Omega` after t tasks, of values of what trains by name: forecasts ask for it.

        Args:
            strength: in place of :math:`\lambda`.
        """
        inner = {name.removeprefix("learner."): value for name, value in values.items()}
        strength = self.strength if strength is None else checked_strength(strength)
        return strength * self.n_old * self.guard.of(inner)

    def end_task(self, task: Task) -> None:
        """One pass over the task's samples adds their second moments."""
        self.guard.observe_batches(self.learner, _Batches(task.train_eval, self.learner.backbone.device))
        self.n_old += 1

    @property
    def reads_features(self) -> bool:
        """With ``tune = "head"``."""
        return self.learner.reads_features


class _Batches:
    """Samples in batches on a device, as often as they are asked for."""

    def __init__(self, samples: Samples, device: torch.device) -> None:
        self.samples, self.device = samples, device

    def __iter__(self) -> Iterator[Any]:
        for x, _ in self.samples.batches(BATCH):
            yield to_device(x, self.device)
