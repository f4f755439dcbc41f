"""What methods share that give every task a LoRA pair of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from torch import nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone
from tangentcl.nn.lora_stack import DecoupledStack, LoRAStack, add_stacks

Stack = TypeVar("Stack", LoRAStack, DecoupledStack)


class LoRAPerTask(OnFinetune, Generic[Stack]):
    """A linear head on a backbone whose layers gain a LoRA pair with every task; the loss is that of `Finetune`.

    Args:
        backbone: a frozen feature extractor; it is adapted in place.
        make: what goes around each adapted layer.
        rank: of each pair.
        targets: the adapted layers, see `tangentcl.nn.add_lora`.
        logits: see `Finetune`.

    Raises:
        ConfigError: a rank below 1, or unknown logits. ModelError: targets without a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        make: Callable[[nn.Linear], Stack],
        *,
        rank: int,
        targets: Sequence[str],
        logits: Literal["all", "current"],
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"rank is that of one task's LoRA pair and must be at least 1, got {rank}")
        self.learner = Finetune(backbone, tune="head", logits=logits)
        self.rank = rank
        self.stacks: dict[str, Stack] = add_stacks(backbone, targets, make)

    def rank_of(self, task: Task) -> int:
        """Rank of the pair that learns ``task``."""
        return self.rank

    def begin_task(self, task: Task) -> None:
        """Freeze the pair of the last task, start one for this task, append one row per new class to the head."""
        for stack in self.stacks.values():
            stack.begin(self.rank_of(task))
        self.learner.begin_task(task)

    @property
    def reads_features(self) -> bool:
        """Never: the backbone is adapted."""
        return False
