"""SD-LoRA: directions of earlier tasks are frozen, how far to go along each is learned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.methods.lora_per_task import LoRAPerTask
from tangentcl.nn import Backbone
from tangentcl.nn.lora_stack import DecoupledStack


class SDLoRA(LoRAPerTask[DecoupledStack]):
    r"""LoRA decoupled into direction and magnitude; cross-entropy alone.

    In each adapted layer at task t, with frozen :math:`A_k, B_k` for :math:`k < t` and all else training,

    .. math::
        W + \sum_{k < t} \alpha_k \frac{B_k A_k}{\|B_k\|_F \|A_k\|_F} + \alpha_t B_t A_t.

    Source: Wu et al., "SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning", ICLR 2025.

    Args:
        backbone: a frozen feature extractor; it is adapted in place.
        rank, targets: of the LoRA pair of each task, see `tangentcl.nn.add_lora`.
        reduction: pairs (task, rank), tasks from 0 and ascending: the rank from that task on. ``((4, 8), (8, 6))`` with
            rank 10 is the variant SD-LoRA-RR (later tasks need fewer new directions) as in the released code.
        logits: see `Finetune`.

    Departures: the released code shares one magnitude per task between all layers, and sets all of them back to 0.8
    when a task begins, so that the network jumps. Here each layer has its own, and a past pair goes on from
    :math:`\alpha_k \|B_k\| \|A_k\|`, which leaves the network as it was. As in that code the current pair is not
    scaled to length one, which a zero B would forbid. The variant with distilled directions (SD-LoRA-KD) is left out.

    Raises:
        ConfigError: a rank below 1, a reduction that does not ascend or raises the rank, or unknown logits.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int = 10,
        targets: Sequence[str] = ("query", "value"),
        reduction: Sequence[Sequence[int]] = (),
        logits: Literal["all", "current"] = "current",
    ) -> None:
        steps = [(0, rank)]
        for step in reduction:
            ascends = len(step) == 2 and step[0] > steps[-1][0] and 1 <= step[1] <= steps[-1][1]
            if not ascends:
                raise ConfigError(
                    f"reduction needs pairs (task, rank) with ascending tasks from 1 on and ranks from {rank} down to "
                    f"at least 1, got {list(reduction)!r}. Try [[4, {max(rank - 2, 1)}]]."
                )
            steps.append((step[0], step[1]))
        super().__init__(backbone, DecoupledStack, rank=rank, targets=targets, logits=logits)
        self._ranks = steps

    def rank_of(self, task: Task) -> int:
        """The last rank of ``reduction`` that has come into force, ``rank`` before."""
        return [rank for first, rank in self._ranks if task.index >= first][-1]
