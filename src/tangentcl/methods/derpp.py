"""DER++: stored samples are answered as they were answered when they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError
from tangentcl.methods.method import Batch, Method
from tangentcl.methods.replay import Replay
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.backbone import to_device


class DERPP(Method):
    r"""Fine-tuning with a memory of samples x, labels y and logits z: dark experience replay.

    .. math:: L = L_{CE} + \alpha\, E_{(x, z) \sim M} \frac{\|f_{A(x)}(x) - z\|^2}{|A(x)|}
        + \beta\, E_{(x, y) \sim M} L_{CE}(x, y),

    two independent draws of ``memory_batch`` samples for each batch. Buzzega et al., "Dark Experience for General
    Continual Learning: a Strong, Simple Baseline", NeurIPS 2020. z are the logits of the model at the end of the task
    that the sample came with, over the classes seen until then, A(x): there was no answer about later classes, so that
    the squared error has nothing to say on their columns (the labels do).

    The memory is that of `Replay`, the same number for every class, filled at the end of a task. Departures from the
    paper, which is about streams without known tasks and keeps a reservoir, filled while training:

    - A reservoir holds classes in proportion to their samples, here every class is as well remembered; and it would
      make what a step sees depend on earlier batches, so that processes and stops would have to share more than a seed.
    - Logits are those of the trained model, not those that the model happened to have when a sample came by, and are
      computed under the evaluation transform.
    - Nothing of the task at hand is in the memory while it is learned.

    Memory: beside the samples ``budget x n_seen`` float32 logits, counted in ``state_bytes``. The draws follow from
    ``seed`` and the number of batches so far: every process draws the same, and a run that was stopped goes on alike.
    Memory batches are read in the main process, under the training transform.

    Args:
        budget: most samples kept over all classes.
        logits_weight, labels_weight: α and β, which the paper chooses for each data set, between 0.1 and 1.
        memory_batch: samples of each of the two draws.
        selection: ``"random"`` or ``"herding"``, see `Replay`.
        seed: of the ranking and the draws.

    The other arguments are those of `Finetune`; the loss is over all classes seen.

    Raises:
        ConfigError: a budget or a batch below 1, negative weights, an unknown selection.
    """

    keeps_samples: bool = True
    logits: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        budget: int = 2000,
        logits_weight: float = 0.2,
        labels_weight: float = 0.5,
        memory_batch: int = 32,
        selection: Literal["random", "herding"] = "random",
        seed: int = 0,
        tune: Literal["head", "lora", "full"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ("query", "value"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, weight in (("logits_weight", logits_weight), ("labels_weight", labels_weight)):
            if weight < 0:
                raise ConfigError(f"{name} multiplies a loss and must be at least 0, got {weight}")
        if memory_batch < 1:
            raise ConfigError(f"memory_batch is a number of samples and must be at least 1, got {memory_batch}")
        self.replay = Replay(
            backbone,
            budget=budget,
            selection=selection,
            seed=seed,
            tune=tune,
            rank=rank,
            alpha=alpha,
            targets=targets,
            dropout=dropout,
        )
        self.logits_weight, self.labels_weight = logits_weight, labels_weight
        self.memory_batch, self.seed = memory_batch, seed
        self.register_buffer("logits", torch.zeros(budget, 0))  # row i: of row i of the memory; beyond it zero
        self._n_seen: dict[int, int] = {}  # after each task
        self._batches = 0  # so far, over all tasks

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head, and a column to the stored logits."""
        self.replay.begin_task(task)
        self._n_seen[task.index] = task.n_seen
        self.logits = F.pad(self.logits, (0, task.n_seen - self.logits.shape[1]))

    def training_samples(self, task: Task) -> Samples:
        """The task's own: stored ones are drawn for each batch."""
        return task.train

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ..., "memory_logits": ..., "memory_labels": ...}``; without a memory the first alone."""
        terms = self.replay.training_loss(x, y)
        if not self.stored_samples:
            return terms
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self._batches]))
        self._batches += 1
        x, _, rows = self._draw(rng)
        error = (self.replay.predict(x).float() - self.logits[rows]).square()  # [m, n_seen]
        n_seen = torch.tensor([self._n_seen[t] for t in self.replay.rows[rows, 1].tolist()])
        then = (torch.arange(error.shape[1]) < n_seen[:, None]).to(error)  # 1 where there was an answer
        terms["memory_logits"] = self.logits_weight * ((error * then).sum(dim=1) / then.sum(dim=1)).mean()
        x, y, _ = self._draw(rng)
        terms["memory_labels"] = self.labels_weight * self.replay.training_loss(x, y)["cross_entropy"]
        return terms

    def _draw(self, rng: np.random.Generator) -> tuple[Any, Tensor, Tensor]:
        """Batch, labels and rows of some samples of the memory."""
        n = self.stored_samples
        rows = rng.choice(n, size=min(self.memory_batch, n), replace=False)
        x, y = self.replay.stored_batch(rows.tolist(), rng)
        device = self.logits.device
        return to_device(x, device), y.to(device), torch.from_numpy(rows)

    def end_task(self, task: Task) -> None:
        """Choose what is kept, and store the logits of what is new in the memory."""
        before = {tuple(row): i for i, row in enumerate(self.replay.rows.tolist())}
        self.replay.end_task(task)
        rows = self.replay.rows
        new = rows[:, 1] == task.index
        logits = torch.zeros_like(self.logits)
        was = torch.tensor([before[tuple(row)] for row in rows[~new].tolist()], dtype=torch.int64)
        logits[: len(rows)][~new] = self.logits[was]
        logits[: len(rows)][new] = self._answers(task.train_eval.subset(rows[new, 2].numpy()))
        self.logits.copy_(logits)

    @torch.no_grad()
    def _answers(self, samples: Samples) -> Tensor:
        learner = self.replay.learner
        features = extract_features(learner.backbone, samples)[0].to(self.logits)
        with torch.autocast(features.device.type, enabled=False):
            return learner.head(features).to(self.logits)

    @property
    def reads_features(self) -> bool:
        """As the learner inside."""
        return self.replay.reads_features

    def predict(self, x: Batch) -> Tensor:
        """Logits over all classes seen so far, ``[B, n_seen]``."""
        return self.replay.predict(x)

    @property
    def stored_samples(self) -> int:
        """Number of samples in the memory, at most ``budget``."""
        return self.replay.stored_samples

    def get_extra_state(self) -> Tensor:
        """The number of batches so far."""
        return torch.tensor(self._batches)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self._batches = int(state)
