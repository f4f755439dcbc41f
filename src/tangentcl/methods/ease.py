"""EASE: adapters for every task, prototypes in all their subspaces (Zhou et al., 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.losses import task_cross_entropy
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.nn import Backbone, GrowingLinear, extract_features
from tangentcl.nn.heads import at_least_float32
from tangentcl.nn.subspaces import Subspaces


class EASE(Method):
    r"""ExpAndable Subspace Ensemble: each task has its own adapters, and old classes get prototypes in new subspaces.

    **Subspaces.** Task t trains adapters :math:`A_t` beside the MLPs of a frozen transformer, with a linear classifier
    that is thrown away, by cross-entropy over the task's classes. Then they are frozen. Nothing is overwritten, so what
    is lost is lost to the classifier.

    **Prototypes.** :math:`P_{c,j}` is the mean of :math:`\phi(x; A_j)` over the samples of class c, which are there in
    subspaces up to the class's own task i. For the newer subspace t of the task with classes N it is put together
    from their prototypes, with weights by similarity in subspace i, where both are known:

    .. math:: \hat P_{c,t} = \sum_{n \in N} S_{cn} P_{n,t}, \qquad
        S_{cn} = \frac{\exp \cos(P_{c,i}, P_{n,i})}{\sum_{m \in N} \exp \cos(P_{c,i}, P_{m,i})}.

    **Ensemble.** A class of task i scores mostly in its own subspace,

    .. math:: s_c(x) = \cos\big(\phi(x; A_i), P_{c,i}\big) + \alpha \sum_{j \ne i} \cos\big(\phi(x; A_j), P_{c,j}\big).

    **Cost grows with tasks**: after t of them a prediction takes t passes (training takes one), the state holds t sets
    of adapters, of :math:`2 d r + r + d` numbers in each block, and t d numbers for every class.

    Source: Zhou, Sun, Ye and Zhan, "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental
    Learning", CVPR 2024. Departures, each with its reason:

    - With several old subspaces the similarity is taken in the class's own one, as the released code does: the paper
      writes it down for two subspaces.
    - :math:`\alpha` counts for each other subspace, as in the paper; the code divides it by their number.
    - The classifier of a task is linear, as in the paper's formula; the code trains a cosine one.
    - A class that comes back (domain-incremental streams) keeps the subspace of its first task as its own, and its
      prototypes become means over all its samples that a subspace has seen.

    Note:
        Adapters are no part of the backbone: they train at ``plan.head_lr`` where it is set, as those of `NTKCL` do.

    Args:
        backbone: a transformer that `tangentcl.nn.layouts.transformer` understands; it stays frozen.
        rank: r of the adapters, adapter_dropout: on their hidden units, adapter_scale: see
            `tangentcl.nn.channel_adapter.ChannelAdapter`.
        alpha: weight of other subspaces.

    Raises:
        ConfigError: a weight that is negative or not finite.
        ModelError: a backbone that cannot be taken apart into blocks.
    """

    prototypes: Tensor
    counts: Tensor
    home: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int = 64,
        adapter_dropout: float = 0.1,
        adapter_scale: float = 0.1,
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"alpha must be a finite number of at least 0, got {alpha!r}")
        self.subspaces = Subspaces(require_backbone(backbone), rank=rank, dropout=adapter_dropout, scale=adapter_scale)
        self.alpha = alpha
        self.session: nn.Module | None = None
        self._current: tuple[int, ...] = ()
        self.register_buffer("prototypes", torch.zeros(0, 0, backbone.width))  # [C, t, d]
        self.register_buffer("counts", torch.zeros(0, 0, dtype=torch.int64))  # samples behind each, 0: put together
        self.register_buffer("home", torch.zeros(0, dtype=torch.int64))  # task that a class came with

    def begin_task(self, task: Task) -> None:
        """New adapters, a classifier for the session, and a new column and new rows of prototypes."""
        self.subspaces.expand()
        self._current = task.classes
        classifier = GrowingLinear(self.subspaces.backbone.width)
        classifier.grow(task.n_seen)
        self.session = classifier.to(self.subspaces.device)
        n_new = task.n_seen - len(self.home)
        self.home = torch.cat([self.home, self.home.new_full((n_new,), len(self.subspaces.sets) - 1)])
        self.prototypes = F.pad(self.prototypes, (0, 0, 0, 1, 0, n_new))
        self.counts = F.pad(self.counts, (0, 1, 0, n_new))

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` over the current task's classes, in the newest subspace."""
        assert self.session is not None
        return {"cross_entropy": task_cross_entropy(self.session(self.subspaces.newest(x)), y, self._current)}

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Prototypes of the task's classes in all subspaces, then those of old classes in the new one."""
        features, labels = extract_features(self.subspaces, task.train_eval)
        z = features.unflatten(1, (len(self.subspaces.sets), -1))  # [n, t, d]
        for c in labels.unique().tolist():
            own = z[labels == c].double()
            before = self.counts[c].cpu()[:, None]  # [t, 1]
            total = self.prototypes[c].cpu().double() * before + own.sum(dim=0)
            self.prototypes[c] = (total / (before + len(own))).to(self.prototypes)
            self.counts[c] += len(own)
        self._complement()

    def _complement(self) -> None:
        """Prototypes in the newest subspace of classes without samples there."""
        there, known = self.counts[:, -1] > 0, self.counts.amax(dim=1) > 0
        for i in self.home[known & ~there].unique().tolist():
            old = known & ~there & (self.home == i)
            new = self.prototypes[there]
            self.prototypes[old, -1] = complement(self.prototypes[old, i], new[:, i], new[:, -1])

    def predict(self, x: Batch) -> Tensor:
        """The weighted sums of cosines, ``[B, n_seen]``; a class without samples scores minus infinity."""
        features = at_least_float32(self.subspaces(x)).unflatten(1, (len(self.subspaces.sets), -1))  # [B, t, d]
        own = F.one_hot(self.home, len(self.subspaces.sets)).to(features)  # [C, t]
        weighted = F.normalize(self.prototypes.to(features), dim=2) * (own + self.alpha * (1 - own))[..., None]
        with torch.autocast(features.device.type, enabled=False):
            scores = F.linear(F.normalize(features, dim=2).flatten(1), weighted.flatten(1))  # [B, C]
        return scores.masked_fill(self.counts.amax(dim=1) == 0, -torch.inf)

    @property
    def state_bytes(self) -> int:
        """Of adapters and prototypes; the classifier of the session is not handed on."""
        session = 0 if self.session is None else sum(p.nbytes for p in self.session.parameters())
        return super().state_bytes - session


def complement(old: Tensor, new: Tensor, new_there: Tensor) -> Tensor:
    r"""Prototypes of old classes in another space, :math:`\mathrm{softmax}_n(\cos(p_o, p_n))\, Q`, ``[O, e]``.

    Args:
        old: ``[O, d]``, where both are known. new: ``[N, d]``, there too. new_there: ``[N, e]``, in the other space.

    >>> old, new = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    >>> complement(old, new, torch.eye(2))
    tensor([[0.7311, 0.2689]])
    """
    with torch.autocast(old.device.type, enabled=False):
        similarity = F.normalize(old, dim=1) @ F.normalize(new, dim=1).T  # [O, N]
        return similarity.softmax(dim=1) @ new_there
