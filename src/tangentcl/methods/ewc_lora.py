"""EWC on the weights that LoRA changes, in place of EWC on its factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tangentcl.data import Task
from tangentcl.methods.ewc import check_consolidation
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.protect.fisher import Labels, check_fisher, diagonal_fisher
from tangentcl.protect.lora_update import lora_updates
from tangentcl.protect.named_tensors import NamedTensors, trained_parameters
from tangentcl.protect.quadratic import quadratic_distance


class EWCLoRA(OnFinetune):
    r"""LoRA with EWC's penalty on the change of the full weights, whatever factors make it (EWC-LoRA, ICLR 2026).

    .. math:: L = L_{CE} + \frac{\lambda}{2} \sum_l \sum_{ij} F^l_{ij} (\Delta W^l - \Delta W^l_{ref})_{ij}^2
        + \frac{\lambda}{2} \sum_i F^h_i (h_i - h^{ref}_i)^2, \qquad \Delta W = s B A,

    over the adapted layers l and the parameters h of the head, with the last task's end as reference and
    :math:`F \leftarrow \gamma F + F_t` as in `EWC`. :math:`F^l` is the diagonal of the Fisher information with respect
    to the weight :math:`W_l + \Delta W_l`, from gradients :math:`\sum_t g_t a_t^\top` over the tokens of one sample. A
    penalty on A and B themselves (`EWC` with ``tune="lora"``) depends on how the product is split into factors, is
    blind at the start, where B = 0 gives A no importance, and takes A and B as independent although they multiply.

    Memory: the Fisher information is dense, ``d_out x d_in`` for each adapted layer (as much as these layers'
    frozen weights: 7 MB for query and value of MiniLM-L6, 57 MB for those of ViT-B), beside the reference, which is
    kept as factors. A step forms ΔW of every adapted layer, a product of rank 2r.

    Departure from the paper, where a task's update is merged into the frozen weights and the next begins with an empty
    one: here one adapter goes on, against a reference. Its weights stay those of the file, and what is handed on stays
    an adapter of rank r; the sum of all updates has rank r, the paper's grows with the tasks.

    Args:
        strength: λ; decay: γ; fisher, fisher_samples, seed: as in `EWC`.

    The other arguments are those of `Finetune` with ``tune="lora"``.

    Raises:
        ConfigError: as `EWC`.
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
            backbone, tune="lora", rank=rank, alpha=alpha, targets=targets, dropout=dropout, logits=logits
        )
        self.strength, self.decay = strength, decay
        self.labels, self.fisher_samples, self.seed = fisher, fisher_samples, seed
        self.updates = lora_updates(self.learner)
        self.reference, self.fisher = NamedTensors(), NamedTensors()
        self._first = True

    def _protected(self) -> dict[str, Tensor]:
        """What the Fisher information is measured of, by name: adapted weights, and the head."""
        head = {f"head.{name}": p for name, p in self.learner.head.named_parameters()}
        return {**{update.weight: self.learner.get_parameter(update.weight) for update in self.updates}, **head}

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head, with no importance."""
        self.learner.begin_task(task)
        self.reference.fit(trained_parameters(self.learner))
        self.fisher.fit(self._protected())
        self._first = task.index == 0

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ..., "ewc": ..., "ewc_head": ...}``; the last two from the second task on."""
        terms = self.learner.training_loss(x, y)
        if not self._first:
            trained = trained_parameters(self.learner)
            moved = [
                (self.fisher[update.weight] * update.change(trained, self.reference).square()).sum()
                for update in self.updates
            ]
            head = {name: p for name, p in trained.items() if name.startswith("head.")}
            terms["ewc"] = 0.5 * self.strength * torch.stack(moved).sum()
            terms["ewc_head"] = self.strength * quadratic_distance(head, self.reference, self.fisher)
        return terms

    def end_task(self, task: Task) -> None:
        """Measure the Fisher information of the task, add it to what is left of the old, and move the reference."""
        found = diagonal_fisher(
            self.learner,
            self._protected(),
            task.train_eval,
            labels=self.labels,
            columns=self.learner.loss_classes,
            n=self.fisher_samples,
            seed=self.seed * 100_003 + task.index,
        )
        self.fisher.assign({name: self.decay * self.fisher[name] + f for name, f in found.items()})
        self.reference.assign(trained_parameters(self.learner))
