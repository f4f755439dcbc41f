"""L2-SP: fine-tuning that is drawn back to where it started from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.protect.named_tensors import NamedTensors, trained_parameters
from tangentcl.protect.quadratic import quadratic_distance

REFERENCE = ("last", "pretrained")


class L2SP(OnFinetune):
    r"""`Finetune` with a penalty on the squared distance from a reference, all parameters alike.

    .. math:: L = L_{CE} + \frac{\lambda}{2} \|\theta - \theta^{ref}\|^2

    (Li, Grandvalet, Davoine, "Explicit inductive bias for transfer learning with convolutional networks", ICML 2018.)
    The reference of a task is what the last task left (``"last"``; the first task is free), or what the backbone
    started from (``"pretrained"``, the paper's), for which the parameters of all tasks stay in one ball. θ is what
    trains: of LoRA the factors A and B, not their product.

    The rows of the head for new classes are not penalised: they start at random, so that drawing them back there
    would protect nothing and only slow the new classes down. (The paper draws a new head to zero, by a weight decay of
    its own; the plan's ``weight_decay`` can do that.) Old rows have no pre-trained value: their reference is the last
    task's end in both cases.

    Memory: one copy of what trains.

    Args:
        strength: λ. The paper takes 0.1, for fine-tuning a whole network; of the few and fast parameters of LoRA and a
            head a stream of tasks takes no notice of that (hence 10).
        reference: ``"last"`` or ``"pretrained"``.

    The other arguments are those of `Finetune`.

    Raises:
        ConfigError: a negative strength, or an unknown reference.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        strength: float = 10.0,
        reference: Literal["last", "pretrained"] = "last",
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        logits: Literal["all", "current"] = "all",
    ) -> None:
        super().__init__()
        if strength < 0:
            raise ConfigError(f"strength multiplies a penalty and must be at least 0, got {strength}")
        if reference not in REFERENCE:
            known = ", ".join(REFERENCE)
            raise ConfigError(f"reference must be one of {known}, got {reference!r}.{nearest(reference, REFERENCE)}")
        self.learner = Finetune(
            backbone, tune=tune, rank=rank, alpha=alpha, targets=targets, dropout=dropout, logits=logits
        )
        self.strength, self.anchor = strength, reference
        self.reference = NamedTensors()
        self._free, self._n_old = True, 0

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head; the first task fixes what the backbone started from."""
        self.learner.begin_task(task)
        trained = trained_parameters(self.learner)
        self.reference.fit(trained)
        if task.index == 0:
            self.reference.assign(trained)
        self._free = task.index == 0 and self.anchor == "last"
        self._n_old = task.n_seen - len(task.new_classes)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ..., "l2sp": ...}``; the second where something has a reference."""
        terms = self.learner.training_loss(x, y)
        now = self._with_reference()
        if now:
            before = {
                name: self.reference[name][: len(p)] if p.ndim else self.reference[name] for name, p in now.items()
            }
            terms["l2sp"] = self.strength * quadratic_distance(now, before)
        return terms

    def _with_reference(self) -> dict[str, Tensor]:
        """What is drawn back: everything that trains but the rows of new classes."""
        if self._free:
            return {}
        values: dict[str, Tensor] = {f"backbone.{name}": p for name, p in self.learner.trainable_backbone().items()}
        if self._n_old:
            values |= {f"head.{name}": p[: self._n_old] for name, p in self.learner.head.named_parameters()}
        return values

    def end_task(self, task: Task) -> None:
        """Move the reference here; with ``"pretrained"`` that of the head alone."""
        trained = trained_parameters(self.learner)
        moves = {name: p for name, p in trained.items() if self.anchor == "last" or name.startswith("head.")}
        self.reference.assign(moves)
