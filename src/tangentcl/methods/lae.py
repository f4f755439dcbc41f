"""LAE: LoRA that learns, its slow running mean, and the surer of the two (Gao et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError
from tangentcl.losses import task_cross_entropy
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.nn import Backbone, GrowingLinear, add_lora
from tangentcl.nn.ema_bank import EmaBank


class LAE(Method):
    r"""Learning-Accumulation-Ensemble: online adapters learn, offline ones follow, both predict with one head.

    **Learning.** Cross-entropy over the current task's classes trains the online LoRA factors
    :math:`\theta_{on}` and a head that is shared by both. For the first ``frozen_batches`` batches of every task but
    the first, the factors wait for the new rows of the head.

    **Accumulation.** The offline factors start as the online ones at the end of the first task; from then on

    .. math:: \theta_{off} \leftarrow \alpha\,\theta_{off} + (1 - \alpha)\,\theta_{on}

    after every step. A method does not see steps: the update for one is made when the next batch of the task arrives,
    before it is used, and for the last one in ``end_task``.

    **Ensemble.** A class scores :math:`\max\big(\mathrm{softmax}(l_{on})_c, \mathrm{softmax}(l_{off})_c\big)` over all
    classes seen. That is two passes for each sample from the second task on, and one in the first, where both are the
    same.

    Source: Gao, Zhao, Sun, Xi, Zhang, Ghanem and Zhang, "A Unified Continual Learning Framework with General
    Parameter-Efficient Tuning", ICCV 2023. Departures, each with its reason:

    - LoRA only, on all blocks; the paper also has adapters and prefixes, and adapts the first five blocks of a
      ViT-B/16. Keys and values of all blocks exist in every transformer.
    - ``frozen_batches`` is 0, where the paper's code freezes the factors for the first three epochs of a task: counted
      in batches, since a method does not know epochs, and a plan of three epochs would leave nothing to train.
      Three epochs are ``3 * ceil(n / batch_size)``.
    - With ``plan.accumulate`` above 1 the running mean moves once for each batch of a step, so a step counts as
      :math:`\alpha^k`.

    Args:
        backbone: adapted in place.
        rank, alpha, targets, dropout: of LoRA, see `tangentcl.nn.add_lora`.
        decay: :math:`\alpha`. The paper's 0.9999 is made for thousands of steps: after n steps
            :math:`1 - \alpha^n` of the way is gone, 1 % after 100. With short tasks take what goes as far.
        frozen_batches: see above.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int = 5,
        alpha: float | None = None,
        targets: Sequence[str] = ("key", "value"),
        dropout: float = 0.0,
        decay: float = 0.9999,
        frozen_batches: int = 0,
    ) -> None:
        super().__init__()
        if frozen_batches < 0:
            raise ConfigError(f"frozen_batches must be 0 or more, got {frozen_batches}")
        self.backbone = require_backbone(backbone)
        add_lora(backbone, rank, alpha=alpha, targets=targets, dropout=dropout)
        self.head = GrowingLinear(backbone.width)
        online = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        self._names = tuple(online)
        self._online = (nn.ParameterList(online.values()),)  # in a tuple: the backbone owns them
        self.offline = EmaBank(self._online[0], decay=decay)
        self.frozen_batches = frozen_batches
        self._current: tuple[int, ...] = ()
        self._index = 0
        self._batches = 0  # of this task so far

    def begin_task(self, task: Task) -> None:
        """Append one row per new class to the head."""
        self.head.grow(task.n_seen)
        self._current, self._index, self._batches = task.classes, task.index, 0

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``{"cross_entropy": ...}`` over the current task's classes; in training mode the offline factors follow."""
        if self.training:
            if self._index and self._batches:
                self.offline.update(self._online[0])
            self._batches += 1
        waits = self._index > 0 and self._batches <= self.frozen_batches
        with torch.set_grad_enabled(torch.is_grad_enabled() and not waits):
            features = self.backbone(x)
        return {"cross_entropy": task_cross_entropy(self.head(features), y, self._current)}

    def end_task(self, task: Task) -> None:
        """The offline factors take in the last step, or start as the online ones after the first task."""
        self.offline.update(self._online[0])

    def predict(self, x: Batch) -> Tensor:
        """The larger of both probabilities, ``[B, n_seen]``."""
        online = self.head(self.backbone(x)).float().softmax(dim=1)
        if not self._index:
            return online
        offline = self.head(self.offline_features(x)).float().softmax(dim=1)
        return torch.maximum(online, offline)

    def offline_features(self, x: Batch) -> Tensor:
        """Features with the offline factors, ``[B, d]``."""
        factors = dict(zip(self._names, self.offline.copy.buffers(), strict=True))
        features: Tensor = torch.func.functional_call(self.backbone, factors, (x,))
        return features

    def get_extra_state(self) -> Tensor:
        """How many batches of the task there were."""
        return torch.tensor(self._batches)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self._batches = int(state)
