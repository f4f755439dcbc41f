"""Orthogonal Gradient Descent: parameters do not move along gradients of old outputs (Farajtabar et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.nn.backbone import to_device
from tangentcl.protect.gradients import output_gradients
from tangentcl.protect.projection import ProtectedSpace

OUTPUTS = ("label", "all")
BATCH = 64


class OGD(OnFinetune):
    r"""`Finetune` that moves orthogonally to gradients of outputs on samples of past tasks.

    Source: Farajtabar, Azizan, Mott and Li, "Orthogonal Gradient Descent for Continual Learning", AISTATS 2020. With
    V [P, k] an orthonormal basis of gradients :math:`\nabla_\theta f_c(x_i)` of old samples, taken at the end of their
    task, and :math:`\theta_0` the parameters when the task began,

    .. math:: \theta \leftarrow \theta_0 + (I - V V^\top)(\theta - \theta_0).

    To first order no stored output moves. ``outputs="label"`` stores the logit of the true class (OGD-GTL, the paper's
    choice), ``"all"`` every logit (OGD-ALL). Gradients are kept, not samples: 4 k P bytes.

    Departures, each with its reason:

    - The displacement since the start of the task is projected, not the gradient: it then holds for momentum, Adam and
      weight decay, which the paper leaves out. For plain gradient descent both are the same.
    - Directions are made orthonormal block by block in float64, of gradients scaled to length one: Gram-Schmidt loses
      orthogonality over thousands of vectors.
    - A head that grows: stored gradients are zero for the rows of later classes, so those are free. The paper has one
      head per task, or the same classes in every task. With one head over all classes new logits would rise on old
      samples; a low ``new_bias`` keeps them below: digits in five tasks, linear head, last accuracy 94 % with -2 and
      64 % with 0 (finetune: 20 %).

    Args:
        backbone: adapted in place.
        directions: gradients stored per task (200 in the paper); for ``outputs="all"`` as many samples as make so many.
        max_directions: at most so many over all tasks; a task that finds no room stays unprotected. None = no limit.
        outputs: ``"label"`` or ``"all"``.
        seed: of the draw of samples.

    The other arguments are those of `Finetune`. With ``tune="full"`` a gradient is as large as the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        directions: int = 200,
        max_directions: int | None = None,
        outputs: Literal["label", "all"] = "label",
        seed: int = 0,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        logits: Literal["all", "current"] = "all",
        new_bias: float = -2.0,
    ) -> None:
        super().__init__()
        for name, value in (("directions", directions), ("max_directions", max_directions)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is a number of gradients to keep and must be at least 1, got {value}")
        if outputs not in OUTPUTS:
            known = ", ".join(OUTPUTS)
            raise ConfigError(f"outputs must be one of {known}, got {outputs!r}.{nearest(outputs, OUTPUTS)}")
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
        self.directions = directions
        self.max_directions = max_directions
        self.outputs = outputs
        self.seed = seed
        self.protected = ProtectedSpace(len(self._vector()))

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head; the stored gradients are zero there."""
        self.learner.begin_task(task)
        parameters = self._vector()
        self.protected.lengthen(len(parameters))
        self.protected.hold(parameters[None])

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """That of `Finetune`, after the last step was projected."""
        self._project()
        return self.learner.training_loss(x, y)

    def end_task(self, task: Task) -> None:
        """Project the last step, then store gradients of this task's outputs."""
        self._project()
        room = self.directions
        if self.max_directions is not None:
            room = min(room, self.max_directions - self.protected.k)
        if room > 0:
            self.protected.grow(self._gradients(task)[:room].T)

    def _gradients(self, task: Task) -> Tensor:
        """Of drawn samples, one row each in the order of `_vector`, ``[n, P]``."""
        head = self.learner.head
        per_sample = 1 if self.outputs == "label" else head.n_outputs
        n = min(-(-self.directions // per_sample), len(task.train_eval))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + task.index)
        drawn = torch.randperm(len(task.train_eval), generator=generator)[:n]
        names = [f"backbone.{name}" for name in self.learner.trainable_backbone()]
        rows = []
        for x, y in task.train_eval.subset(drawn.numpy()).batches(BATCH):
            x, y = to_device(x, head.weight.device), y.to(head.weight.device)
            labels = y if self.outputs == "label" else None
            found = output_gradients(self.learner, [*names, "head.weight", "head.bias"], x, labels)
            rows.append(_head_by_row(found, head.n_outputs, head.width))
        return torch.cat(rows)

    @torch.no_grad()
    def _vector(self) -> Tensor:
        """Everything that trains as one vector [P]: the backbone's, then weights and bias of the head's rows.

        Row after row, so that later classes come last.
        """
        backbone = [p.detach().flatten().float() for p in self.learner.trainable_backbone().values()]
        head = self.learner.head
        rows = torch.cat([head.weight, self._bias()[:, None]], dim=1)
        return torch.cat([*backbone, rows.flatten().float()])

    def _bias(self) -> nn.Parameter:
        bias: Any = self.learner.head.bias
        return bias

    @torch.no_grad()
    def _project(self) -> None:
        if not self.protected.k:
            return
        projected = self.protected.project(self._vector()[None])[0]
        position = 0
        for parameter in self.learner.trainable_backbone().values():
            part = projected[position : position + parameter.numel()]
            parameter.copy_(part.view_as(parameter))
            position += parameter.numel()
        head = self.learner.head
        rows = projected[position:].view(head.n_outputs, head.width + 1)
        head.weight.copy_(rows[:, :-1])
        self._bias().copy_(rows[:, -1])


def _head_by_row(gradients: Tensor, n_outputs: int, width: int) -> Tensor:
    """Gradients ``[n, ... weight, bias]`` with the head's part row by row, each weight row followed by its bias."""
    split = gradients.shape[1] - n_outputs * (width + 1)
    weight = gradients[:, split : split + n_outputs * width].unflatten(1, (n_outputs, width))
    bias = gradients[:, split + n_outputs * width :, None]
    return torch.cat([gradients[:, :split], torch.cat([weight, bias], dim=2).flatten(1)], dim=1)
