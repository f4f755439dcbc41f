"""DualPrompt: prompts for all tasks in early blocks, prompts of each task behind them (Wang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods.method import Batch
from tangentcl.methods.prompted import Prompted
from tangentcl.nn import Backbone
from tangentcl.nn.blocks import Tokens
from tangentcl.nn.prefix import Prefixes, PrefixPool, check_blocks, first_blocks
from tangentcl.nn.prompted_trunk import cosines

GENERAL, EXPERT = 2, 5  # of 12 blocks: the first two, and from there to the fifth


class DualPrompt(Prompted):
    r"""General prefixes that every task trains, and one set of expert prefixes with a key per task.

    Prefixes are keys and values that blocks attend to beside their own (`tangentcl.nn.prefix`). Blocks 0 and 1 have the
    general ones g, blocks 2 to 4 the expert ones :math:`e_t` of one task. In training it is the current task, which is
    known, and its key is pulled to the queries q(x) of its samples (the feature of the backbone without prompts); at
    test it is the task of the nearest key:

    .. math:: L = \mathrm{CE}(h(x; g, e_t), y) + \lambda \frac1B \sum_x (1 - \cos(q(x), k_t)), \qquad
        \hat t(x) = \arg\max_t \cos(q(x), k_t).

    Experts and keys of earlier tasks are frozen; g and the classifier go on training. Source: Wang et al.,
    "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning", ECCV 2022, arXiv 2204.04799; initial
    values and the form of the prefix from the released code.

    Args:
        general_length, expert_length: keys of a prefix, and as many values, as in the release (the paper counts both
            together). The release takes an ``expert_length`` of 5 for CIFAR-100.
        general_blocks, expert_blocks: which blocks, without overlap. None: 0 and 1, and 2 to 4, of twelve blocks and
            more; in shallower networks the same share of the depth, rounded up, so 0, and 1 and 2, of the six of the
            bundled network.
        pull: :math:`\lambda`.
        logits: see `Prompted`.

    Departures, each with its reason:

    - The expert is chosen for every sample on its own. The release lets a batch vote at test (``batchwise_prompt``), so
      that its predictions depend on which samples come together: one task's, in its evaluation.
    - There is one expert for each task seen. The release has as many as it is told tasks to come, and at test compares
      with the keys of those, too.
    - Prefixes and keys start uniform on [-1, 1], as in the port to torch, which most comparisons run; the release has
      [0, 0.01), where prefixes start alike and all keys share a large direction.
    - An expert starts at random. The release starts it from that of the task before (``shared_prompt_pool``), of which
      the paper does not speak.
    - No label smoothing, and no gradient clipping unless ``plan.clip_norm`` asks for it (the release: 1).

    Note:
        Prefixes want larger rates than LoRA: the release trains with Adam at 0.03 times batch size / 256, constant, for
        5 epochs per task.

    Raises:
        ConfigError: blocks that overlap or do not exist, or a length below 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        general_length: int = 5,
        expert_length: int = 20,
        general_blocks: Sequence[int] | None = None,
        expert_blocks: Sequence[int] | None = None,
        pull: float = 1.0,
        logits: Literal["all", "current"] = "current",
    ) -> None:
        super().__init__(backbone, logits=logits)
        width, depth = self.trunk.width, self.trunk.depth
        split = first_blocks(depth, GENERAL)
        general = range(split) if general_blocks is None else general_blocks
        expert = range(split, max(first_blocks(depth, EXPERT), split + 1)) if expert_blocks is None else expert_blocks
        general, expert = check_blocks("general_blocks", general, depth), check_blocks("expert_blocks", expert, depth)
        if set(general) & set(expert):
            raise ConfigError(f"general_blocks {list(general)} and expert_blocks {list(expert)} must not overlap")
        self.pull = pull
        self.general = PrefixPool(width, general, general_length)
        self.general.append(self.general.drawn(1))
        self.experts = PrefixPool(width, expert, expert_length)
        self.keys = nn.ParameterList()  # [d] for each task

    def begin_task(self, task: Task) -> None:
        """A new expert with its key; those of earlier tasks are frozen."""
        super().begin_task(task)
        device = self.trunk.backbone.device
        self.experts.append(self.experts.drawn(1).to(device))
        self.keys.requires_grad_(False)
        self.keys.append(nn.Parameter(torch.empty(self.trunk.width).uniform_(-1, 1).to(device)))

    def _features(self, tokens: Tokens, expert: Prefixes) -> Tensor:
        general = self.general.same(0, tokens.values.shape[0])  # not len, which tracing would take for a constant
        return self.trunk.prefixed(tokens, {**general, **expert})

    def _similarity(self, tokens: Tokens) -> Tensor:
        """Of each sample's query with each task's key, ``[B, T]``."""
        return cosines(self.trunk.query(tokens), torch.stack(list(self.keys)))

    def prompted(self, x: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Features with the current task's expert, and the term ``pull``."""
        if not len(self.experts):
            raise ModelError("DualPrompt.training_loss needs begin_task(task) first, which makes the task's expert")
        tokens = self.trunk.embed(x)
        pull = self.pull * (1 - self._similarity(tokens)[:, -1]).mean()
        return self._features(tokens, self.experts.same(-1, tokens.values.shape[0])), {"pull": pull}

    def nearest_task(self, x: Batch) -> Tensor:
        """The task whose expert a sample takes at test, ``[B]`` int64."""
        return self._similarity(self.trunk.embed(x)).argmax(1)

    def features(self, x: Batch) -> Tensor:
        """With the expert of the nearest key."""
        tokens = self.trunk.embed(x)
        return self._features(tokens, self.experts.chosen(self._similarity(tokens).argmax(1)))
