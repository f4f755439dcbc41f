"""Elastic weight consolidation, online, with a diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.protect.fisher import Labels, check_fisher, diagonal_fisher
from tangentcl.protect.named_tensors import NamedTensors, trained_parameters
from tangentcl.protect.quadratic import quadratic_distance


class EWC(OnFinetune):
    r"""`Finetune` with a quadratic penalty, each parameter weighted by how much past likelihoods depend on it.

    .. math:: L = L_{CE} + \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^{ref}_i)^2,
        \qquad F \leftarrow \gamma F + F_t,

    with the reference at the last task's end and :math:`F_t` the diagonal of the Fisher information of the task there,
    see `tangentcl.protect.fisher.diagonal_fisher`. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural
    networks", PNAS 2017. One merged penalty centred at the latest parameters, in place of one for each task at its own
    end: Huszár, "Note on the quadratic penalties in elastic weight consolidation", PNAS 2018 (a sum counts early tasks
    again and again), and the online form with γ of Schwarz et al., "Progress & Compress", ICML 2018. So memory does
    not grow: two copies of what trains.

    The softmax of the Fisher information is over the classes that the loss is over (``logits``). Rows of the head for
    new classes have F = 0, and move freely. With LoRA θ are the factors A and B; for their product see `EWCLoRA`.

    Args:
        strength: λ. With F as a mean over samples λ = 1 weighs a task like the present one (the Laplace
            approximation); the Fisher information of a task that was learned well is small, and in practice much larger
            values are taken (the paper: 400 for Atari games).
        decay: γ in (0, 1]; below 1 old tasks fade.
        fisher: labels for the Fisher information: ``"sampled"`` from the model, ``"exact"`` sum over all classes, or
            ``"empirical"``, the given ones.
        fisher_samples: most samples it is measured on, one forward and backward pass each.
        seed: of the draw of samples and labels.

    The other arguments are those of `Finetune`.

    Raises:
        ConfigError: a negative strength, a decay outside (0, 1], an unknown ``fisher``, or no sample for it.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        strength: float = 10_000.0,
        decay: float = 1.0,
        fisher: Labels = "sampled",
        fisher_samples: int = 200,
        seed: int = 0,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
        logits: Literal["all", "current"] = "all",
    ) -> None:
        super().__init__()
        check_consolidation(strength, decay)
        check_fisher(fisher, fisher_samples)
        self.learner = Finetune(
            backbone, tune=tune, rank=rank, alpha=alpha, targets=targets, dropout=dropout, logits=logits
        )
        self.strength, self.decay = strength, decay
        self.labels, self.fisher_samples, self.seed = fisher, fisher_samples, seed
        self.reference, self.fisher = NamedTensors(), NamedTensors()
        self._first = True

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head, with no importance."""
        self.learner.begin_task(task)
        trained = trained_parameters(self.learner)
        self.reference.fit(trained)
        self.fisher.fit(trained)
        self._first = task.index == 0

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ..., "ewc": ...}``; the second from the second task on."""
        terms = self.learner.training_loss(x, y)
        if not self._first:
            distance = quadratic_distance(trained_parameters(self.learner), self.reference, self.fisher)
            terms["ewc"] = self.strength * distance
        return terms

    def end_task(self, task: Task) -> None:
        """Measure the Fisher information of the task, add it to what is left of the old, and move the reference."""
        trained = trained_parameters(self.learner)
        found = diagonal_fisher(
            self.learner,
            trained,
            task.train_eval,
            labels=self.labels,
            columns=self.learner.loss_classes,
            n=self.fisher_samples,
            seed=self.seed * 100_003 + task.index,
        )
        self.fisher.assign({name: self.decay * self.fisher[name] + f for name, f in found.items()})
        self.reference.assign(trained)


def check_consolidation(strength: float, decay: float) -> None:
    """Refuse a negative strength, or a decay outside (0, 1]. Raises ConfigError."""
    if strength < 0:
        raise ConfigError(f"strength multiplies a penalty and must be at least 0, got {strength}")
    if not 0 < decay <= 1:
        raise ConfigError(f"decay is the share of old importance that a task leaves, in (0, 1], got {decay}")
