"""L2P: prompts of a pool, chosen by what the frozen backbone sees (Wang et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.methods.method import Batch
from tangentcl.methods.prompted import Prompted
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.blocks import Tokens
from tangentcl.nn.prompt_tokens import READS
from tangentcl.nn.prompted_trunk import cosines


class L2P(Prompted):
    r"""The N prompts whose keys are nearest to a sample's query stand before its tokens.

    A pool holds M prompts :math:`P_i \in R^{L_p \times d}` with keys :math:`k_i \in R^d`. With the query q(x), the
    feature of the frozen backbone without prompts, a sample takes

    .. math:: S(x) = \text{the } N \text{ largest of } \cos(q(x), k_i), \qquad
        L = \mathrm{CE} + \lambda \frac1B \sum_x \sum_{i \in S(x)} (1 - \cos(q(x), k_i)),

    and its tokens go through the frozen blocks behind :math:`[P_i]_{i \in S(x)}`. The classifier reads the mean output
    of the prompt tokens. Pool, keys and classifier are shared by all tasks, and all of it goes on training: what is
    forgotten is forgotten there. Source: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022,
    arXiv 2112.08654; initial values from the released code.

    Args:
        n_prompts: M. length: :math:`L_p`. n_chosen: N. The paper's 10, 5, 5 are those of Split CIFAR-100; its released
            configuration has 10, 10, 4.
        pull: :math:`\lambda`; the released configuration has 1.
        read: ``"prompts"``, the paper's read-out and the default, or ``"backbone"``: the backbone's own pooling of the
            input's tokens, which starts from features that are worth something, for short training.
        balanced: the paper's option against few prompts taking all: in training, S(x) is the N smallest of
            :math:`(1 - \cos(q(x), k_i)) f_i`, where f is how often each prompt was chosen in earlier tasks, as a share.
        logits: see `Prompted`.

    Departures, each with its reason:

    - Prompts are chosen for every sample on its own. The release lets a batch vote and gives all its samples the same
      prompts (``batchwise_prompt``, at test, too), so that its predictions depend on which samples come together.
    - Prompts have no position; the release adds none either, a port to torch does.
    - Initial prompts and keys are uniform on [-1, 1], as in the port, which most comparisons run; the release has
      [0, 0.01), where prompts start alike and all keys share a large direction.
    - f is counted over a task's samples at its end, by the choice that training made with the keys as they then are;
      while training it would depend on how samples are shared among processes.
    - No label smoothing, and no gradient clipping unless ``plan.clip_norm`` asks for it (the release: 1).

    Note:
        Prompts want larger rates than LoRA: the release trains with Adam at 0.03 times batch size / 256, constant, for
        5 epochs per task.
    """

    frequency: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        n_prompts: int = 10,
        length: int = 5,
        n_chosen: int = 5,
        pull: float = 0.5,
        read: Literal["prompts", "backbone"] = "prompts",
        balanced: bool = False,
        logits: Literal["all", "current"] = "current",
    ) -> None:
        super().__init__(backbone, logits=logits)
        if length < 1 or not 1 <= n_chosen <= n_prompts:
            raise ConfigError(
                "length must be at least 1 and n_chosen from 1 to n_prompts, "
                f"got length={length}, n_chosen={n_chosen}, n_prompts={n_prompts}"
            )
        if read not in READS:
            raise ConfigError(f"read must be one of {', '.join(READS)}, got {read!r}.{nearest(read, READS)}")
        self.n_chosen, self.pull, self.read, self.balanced = n_chosen, pull, read, balanced
        width = self.trunk.width
        self.prompts = nn.Parameter(torch.empty(n_prompts, length, width).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(n_prompts, width).uniform_(-1, 1))
        self.register_buffer("frequency", torch.zeros(n_prompts, dtype=torch.int64))  # of earlier tasks

    def chosen(self, similarity: Tensor) -> Tensor:
        """Numbers of the N prompts of each sample at test, ``[B, M] -> [B, N]``."""
        return similarity.topk(self.n_chosen, dim=1).indices

    def chosen_in_training(self, similarity: Tensor) -> Tensor:
        """As `chosen`; with ``balanced``, prompts that earlier tasks chose often stand back."""
        if not self.balanced or not bool(self.frequency.any()):
            return self.chosen(similarity)
        share = self.frequency / self.frequency.sum()  # [M]
        return ((1 - similarity) * share.to(similarity)).topk(self.n_chosen, dim=1, largest=False).indices

    def _features(self, tokens: Tokens, chosen: Tensor) -> Tensor:
        return self.trunk.prompted(tokens, self.prompts[chosen].flatten(1, 2), self.read)  # prompts [B, N L_p, d]

    def prompted(self, x: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Features, and the term ``pull``."""
        tokens = self.trunk.embed(x)
        similarity = cosines(self.trunk.query(tokens), self.keys)  # [B, M]
        chosen = self.chosen_in_training(similarity.detach())
        distance = (1 - similarity.gather(1, chosen)).sum(1).mean()
        return self._features(tokens, chosen), {"pull": self.pull * distance}

    def features(self, x: Batch) -> Tensor:
        """With the prompts of the nearest keys."""
        tokens = self.trunk.embed(x)
        return self._features(tokens, self.chosen(cosines(self.trunk.query(tokens), self.keys)))

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """With ``balanced``, count which prompts the task's samples choose: a pass without prompts."""
        if not self.balanced:
            return
        queries = extract_features(self.trunk.backbone, task.train_eval)[0].to(self.keys.device)  # [n, d]
        chosen = self.chosen_in_training(cosines(queries, self.keys))
        self.frequency += torch.bincount(chosen.flatten(), minlength=len(self.frequency))
