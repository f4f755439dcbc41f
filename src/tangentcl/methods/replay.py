"""Experience replay with a budget of stored samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.method import Batch
from tangentcl.methods.on_finetune import OnFinetune
from tangentcl.nn import Backbone, extract_features

SELECTION = ("random", "herding")


class Replay(OnFinetune):
    """`Finetune` on the current task together with stored samples of past tasks.

    At most ``budget`` samples are kept, the same number for every class seen (iCaRL, Rebuffi et al., CVPR 2017), and
    for every domain of a class where classes come back. Each keeps the first ``budget // n_seen`` of its own ranking,
    so shrinking a class drops its least important samples. The ranking is random, or *herding*: greedily the sample
    that brings the mean of the kept features nearest to the class mean (same paper, algorithm 4, on L2-normalised
    features of the model at the end of the task). Stored samples are concatenated with the task's: every epoch sees
    each once.

    Args:
        budget: most samples kept over all classes.
        selection: ``"random"`` or ``"herding"``.
        seed: of the random ranking.

    The other arguments are those of `Finetune`; the loss is over all classes seen.
    """

    keeps_samples: bool = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        budget: int = 2000,
        selection: Literal["random", "herding"] = "random",
        seed: int = 0,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if budget < 1:
            raise ConfigError(f"budget is a number of samples to keep and must be at least 1, got {budget}")
        if selection not in SELECTION:
            known = ", ".join(SELECTION)
            raise ConfigError(f"selection must be one of {known}, got {selection!r}.{nearest(selection, SELECTION)}")
        self.learner = Finetune(backbone, tune=tune, rank=rank, alpha=alpha, targets=targets, dropout=dropout)
        self.budget = budget
        self.selection = selection
        self.seed = seed
        self._tasks: list[Task] = []
        self._kept = torch.zeros(0, 3, dtype=torch.int64)  # rows (class, task, position in task.train), best first

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head."""
        self._tasks.append(task)
        self.learner.begin_task(task)

    def training_samples(self, task: Task) -> Samples:
        """The task's samples and the stored ones."""
        memory = [
            earlier.train.subset(self._kept[self._kept[:, 1] == earlier.index, 2].numpy())
            for earlier in self._tasks
            if earlier.index != task.index and bool((self._kept[:, 1] == earlier.index).any())
        ]
        return Samples.concat([task.train, *memory])

    def end_task(self, task: Task) -> None:
        """Rank the new samples, then cut every class (and domain) to its share of the budget."""
        rows = torch.cat([self._kept, self._ranked(task)])
        groups = rows[:, :2].unique(dim=0)  # one per class, or per class and domain
        share, extra = divmod(self.budget, len(groups))  # the first groups take what does not divide
        kept = [rows[(rows[:, :2] == g).all(dim=1)][: share + (i < extra)] for i, g in enumerate(groups)]
        self._kept = torch.cat(kept)

    @property
    def rows(self) -> Tensor:
        """The memory, one row (class, index of the task, position in its training samples) per sample, ``[m, 3]``."""
        return self._kept

    def stored_batch(self, rows: Sequence[int], rng: np.random.Generator) -> tuple[Batch, Tensor]:
        """The samples of some rows of the memory as a batch under the training transform, and their labels ``[B]``."""
        train = {task.index: task.train for task in self._tasks}
        chosen = self._kept[list(rows), 1:].tolist()
        return self._tasks[-1].train.collate([train[task].item(position, rng) for task, position in chosen])

    def _ranked(self, task: Task) -> Tensor:
        labels = torch.as_tensor(task.train.labels)
        features = extract_features(self.learner.backbone, task.train_eval)[0] if self.selection == "herding" else None
        generator = torch.Generator().manual_seed(self.seed * 100_003 + task.index)
        rows = []
        for c in labels.unique():
            members = torch.nonzero(labels == c)[:, 0]
            if features is None:
                order = torch.randperm(len(members), generator=generator)
            else:
                order = herding(features[members], min(self.budget, len(members)))
            chosen = members[order]
            rows.append(torch.stack([c.expand_as(chosen), torch.full_like(chosen, task.index), chosen], dim=1))
        return torch.cat(rows)

    @property
    def stored_samples(self) -> int:
        """Number of samples in the memory, at most ``budget``."""
        return len(self._kept)

    def get_extra_state(self) -> Tensor:
        """The memory as rows (class, task, position)."""
        return self._kept.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the memory."""
        self._kept = state.clone()


def herding(features: Tensor, n: int) -> Tensor:
    r"""Greedy choice whose running mean follows the mean of all features (Welling, ICML 2009; iCaRL algorithm 4).

    Step k takes :math:`\arg\min_i \|\mu - \frac{1}{k}(h_i + \sum_{j<k} h_{(j)})\|` over samples not yet taken, with
    rows scaled to unit length.

    Args:
        features: ``[m, d]``.
        n: how many to take, at most m.

    Returns:
        Indices in the order taken, ``[n]``.

    >>> herding(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 1)
    tensor([2])
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)  # [m, d]
    mean = unit.mean(dim=0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(unit), dtype=torch.bool)
    taken = []
    for k in range(1, n + 1):
        distance = (mean - (total + unit) / k).norm(dim=1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        taken.append(best)
        free[best] = False
        total += unit[best]
    return torch.tensor(taken, dtype=torch.int64)
