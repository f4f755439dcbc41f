"""O-LoRA: every task learns in a LoRA subspace that is kept orthogonal to those of earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.methods.lora_per_task import LoRAPerTask
from tangentcl.methods.method import Batch
from tangentcl.nn import Backbone
from tangentcl.nn.heads import at_least_float32
from tangentcl.nn.lora_stack import LoRAStack

PENALTIES = ("squared", "absolute")


class OLoRA(LoRAPerTask[LoRAStack]):
    r"""Cross-entropy, and a penalty on the overlap of the new LoRA directions with the old.

    In each adapted layer the weight is :math:`W + \sum_{i \le t} B_i A_i` with :math:`A_i \in R^{r \times d}`; only
    :math:`A_t, B_t` train. Rows of A are the input directions a task uses, and

    .. math:: L = L_{CE} + \lambda \sum_{layers} \sum_{i < t} \sum_{j, k} (A_i A_t^\top)_{jk}^2.

    Source: Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023.

    Args:
        backbone: a frozen feature extractor; it is adapted in place.
        rank, targets: of the LoRA pair of each task, see `tangentcl.nn.add_lora`.
        strength: :math:`\lambda`, at least 0.
        penalty: ``"squared"`` as the paper writes it, ``"absolute"`` with :math:`|\cdot|` in place of the square as
            the released code has it. At random A the second is about fifty times as large at a width of 384.
        logits: see `Finetune`.

    Departures: a classifier head with a row per class in place of generated labels. No scale and no dropout on the
    pairs, where the release has alpha / rank = 4 and 0.1: one recipe for all methods here. The release can also add a
    norm of the new factors (its second weight is 0 by default); that is left to the plan's weight decay.

    Raises:
        ConfigError: a negative strength, an unknown penalty or logits, a rank below 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int = 8,
        targets: Sequence[str] = ("query", "value"),
        strength: float = 0.5,
        penalty: Literal["squared", "absolute"] = "squared",
        logits: Literal["all", "current"] = "current",
    ) -> None:
        if strength < 0:
            raise ConfigError(f"strength weighs the overlap of LoRA directions and must be at least 0, got {strength}")
        if penalty not in PENALTIES:
            known = ", ".join(PENALTIES)
            raise ConfigError(f"penalty must be one of {known}, got {penalty!r}.{nearest(penalty, PENALTIES)}")

        super().__init__(
            backbone,
            lambda layer: LoRAStack(layer, keep_directions=True),
            rank=rank,
            targets=targets,
            logits=logits,
        )
        self.strength = strength
        self.penalty = penalty

    def begin_task(self, task: Task) -> None:
        """Merge the last pair, keep its directions, start a new one."""
        super().begin_task(task)
        self._has_old = any(len(stack.old_A) for stack in self.stacks.values())

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``cross_entropy``, from the second task on also ``orthogonality``."""
        terms = super().training_loss(x, y)
        if self._has_old:
            terms["orthogonality"] = self.strength * self.overlap()
        return terms

    def overlap(self) -> Tensor:
        """The penalty without its strength, a scalar in float32."""
        layers = [direction_overlap(s.old_A, s.pair[0].weight, self.penalty) for s in self.stacks.values()]
        return torch.stack(layers).sum()


def direction_overlap(old: Tensor, new: Tensor, penalty: str = "squared") -> Tensor:
    r"""Sum over the entries of :math:`A_{old} A_{new}^\top`, squared or absolute; float32 under autocast too.

    Args:
        old: ``[R, d]``. new: ``[r, d]``.

    >>> direction_overlap(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0]])).item()
    13.0
    """
    with torch.autocast(new.device.type, enabled=False):
        entries = at_least_float32(old) @ at_least_float32(new).T  # [R, r]
        return entries.square().sum() if penalty == "squared" else entries.abs().sum()
