"""APER: class means on the features of a pre-trained model and of its first-session adaptation (Zhou et al., 2024)."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from tangentcl.data import Task
from tangentcl.errors import ConfigError, nearest
from tangentcl.heads import ClassMeans
from tangentcl.methods.analytic import Analytic
from tangentcl.methods.method import Batch, require_backbone
from tangentcl.nn import Backbone, extract_features

TUNE = ("lora", "full")


class APER(Analytic):
    r"""AdaPt and mERge: :math:`s_c(x) = \cos\big([\phi(x), \phi^*(x)],\, \mu_c\big)`, class means of the same features.

    The first task adapts the backbone :math:`\phi` to :math:`\phi^*` by cross-entropy under the plan, with a linear
    classifier that is thrown away; both are frozen then. A class is the mean :math:`\mu_c` of its concatenated
    features: what the pre-trained model generalises, beside what the first task taught. Nothing trains after the first
    task, and the order of the later ones does not matter.

    Every sample passes twice, in learning class means and in prediction. State between tasks: 2 d numbers a class and
    the adapted parameters. With ``"lora"`` both share the pre-trained weights in memory, with ``"full"`` there are two.

    Source: Zhou, Cai, Ye, Zhan and Liu, "Revisiting Class-Incremental Learning with Pre-Trained Models:
    Generalizability and Adaptivity are All You Need", IJCV 2024 (ADAM in its first version). Departures:

    - LoRA or full tuning, and no adapters, prompts, or scale-and-shift: the paper names its method for any of them.
    - The classifier of the first session is linear with the plan's optimiser; the released code has a cosine one.

    Args:
        backbone: adapted in place in the first task, frozen after it.
        tune: ``"lora"`` (on query and value) or ``"full"``. For none use `NCM`, which is the paper's SimpleCIL.
        rank: of LoRA.

    Raises:
        ConfigError: an unknown way to tune.
    """

    def __init__(self, backbone: Backbone, *, tune: Literal["lora", "full"] = "lora", rank: int = 16) -> None:
        if tune not in TUNE:
            raise ConfigError(f"tune must be one of {', '.join(TUNE)}, got {tune!r}.{nearest(str(tune), TUNE)}")
        pretrained = frozen_twin(require_backbone(backbone), share=tune == "lora")
        super().__init__(backbone, ClassMeans(2 * backbone.width), first_session=tune, rank=rank)
        self.pretrained = pretrained

    def end_task(self, task: Task) -> None:
        """The task's features, with and without the adaptation, go into the class means."""
        before, labels = extract_features(self.pretrained, task.train_eval)
        after, _ = extract_features(self.backbone, task.train_eval)
        self.head.fit_task(torch.cat([before, after], dim=1).to(self.backbone.device), labels)  # [n, 2 d]

    def predict(self, x: Batch) -> Tensor:
        """Cosines to the class means, ``[B, n_seen]``."""
        return self.head(torch.cat([self.pretrained(x), self.backbone(x)], dim=1))


def frozen_twin(backbone: Backbone, *, share: bool) -> Backbone:
    """The same network as it is now, which stays so when adapters are put into the other; its passes count from 0.

    Args:
        share: both hold the same weights. Only for a backbone whose own weights do not train.
    """
    own = [*backbone.parameters(), *backbone.buffers()] if share else []
    twin = copy.deepcopy(backbone, {id(tensor): tensor for tensor in own})
    twin.passes = 0
    return twin.requires_grad_(False)
