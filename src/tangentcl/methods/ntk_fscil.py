"""NTK-FSCIL on a pre-trained backbone: adapt on the base session, and never train again (Liu et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.heads import AnalyticHead, ClassMeans, HeadForecast, RandomReLU, RidgeHead
from tangentcl.heads.strength import Rule
from tangentcl.losses import fuse_images, n_pairs, pair_index, partners, spectrum_penalty
from tangentcl.methods.analytic import Analytic, drawn_seed
from tangentcl.methods.method import Batch, require_backbone
from tangentcl.nn import Backbone, CosineLinear, add_lora, extract_features

HeadKind = Literal["ridge", "prototypes"]
BaseSession = Literal["off", "lora"]
Spectrum = Literal["off", "orthogonality", "log_condition"]


class NTKFSCIL(Analytic):
    r"""Few-shot class-incremental learning: all training in the base session, closed-form sessions of K shots after it.

    Source: Liu et al., "NTK-Guided Few-Shot Class Incremental Learning" (NTK-FSCIL), arXiv 2403.12486, IEEE TIP 2024.
    Its thesis: what generalises best forgets least, so make the tangent kernel converge (a wide network) and shrink
    the generalisation term (initial weights, alignment, spectrum), once, on the base classes.

    **Base session.** LoRA factors and a cosine classifier over a widened lift,

    .. math:: L = CE\big(s \cos(w_c, h(x))\big) + \beta\, CE\big(s \cos(w_c, h(\tilde x))\big)
        + \gamma\,\operatorname{mean}_A \Omega(A), \qquad h = \mathrm{ReLU}(z(x) R) / \sqrt M,

    over the base classes and the virtual classes between them: :math:`\tilde x` mixes two samples of different classes,
    cell by cell of a 4 x 4 grid for images, as the mean of both features for everything else.
    :math:`\Omega` is of `tangentcl.losses.spectrum`, of the factors that are not zero at the start (A of each B A).

    **Sessions.** Nothing trains. ``head="ridge"``: ridge regression over the lift, one second moment for all classes,
    every class with the same weight however many samples it has, and a posterior kernel (`uncertainty`).
    ``head="prototypes"``: the classifier and its lift are thrown away, and the class mean with the greatest cosine of
    backbone features wins. Either learns from the K shots what it would have learned from all samples at once, so
    `forecast_session` says beforehand what a session changes.

    Departures, each with its reason:

    - A pre-trained backbone stands for 1000 epochs of self-supervision on the base classes, the lift for a network of
      twice the width: both make the kernel, neither is worth training here.
    - Fused classes and spectrum penalty are off: with one seed on CLINC150 and Omniglot each moves the last accuracy by
      0.6 points at most, either way, which is within the noise, and mixed images cost a second forward pass.
    - The penalty is on adapter factors, by an r x r Gram matrix, and not the sum of
      :math:`\sigma_1 / \sigma_r` over convolutions, whose gradient explodes as :math:`\sigma_r \to 0`.
    - No curricular margin and no meta loss (episodes of prototypes), which belong to training a network from scratch.
    - Virtual classes are at most ``n_virtual``, pairs hashed to them: 60 classes have 1770 pairs, 1000 have half a
      million.

    Args:
        backbone: adapted in the base session, frozen after it.
        head: ``"ridge"`` or ``"prototypes"``.
        first_session: ``"lora"``, or ``"off"`` for a frozen backbone throughout.
        n_units: M, of the lift. scale: s.
        strength, holdout, balanced: of the ridge, see `tangentcl.heads.RidgeHead`.
        rank, targets: of LoRA, see `tangentcl.nn.add_lora`.
        fused_weight: beta; 0 makes no virtual class. n_virtual: at most so many of them.
        spectrum: Omega. spectrum_weight: gamma.

    Raises:
        ConfigError: settings out of range, or a base session's setting without one.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        head: HeadKind = "ridge",
        first_session: BaseSession = "lora",
        n_units: int = 2000,
        scale: float = 16.0,
        strength: float | Rule = "gcv",
        holdout: float = 0.1,
        balanced: bool = True,
        rank: int = 8,
        targets: Sequence[str] = ("query", "value"),
        fused_weight: float = 0.0,
        n_virtual: int = 1000,
        spectrum: Spectrum = "off",
        spectrum_weight: float = 0.005,
    ) -> None:
        _one_of("head", head, get_args(HeadKind))
        _one_of("first_session", first_session, get_args(BaseSession))
        _one_of("spectrum", spectrum, get_args(Spectrum))
        for name, value in (("fused_weight", fused_weight), ("spectrum_weight", spectrum_weight)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r}")
        if not 0 < scale < float("inf"):
            raise ConfigError(f"scale must be a positive number, got {scale!r}")
        if n_virtual < 1:
            raise ConfigError(f"n_virtual must be at least 1, got {n_virtual!r}")
        if first_session == "off" and (fused_weight or spectrum != "off"):
            raise ConfigError("fused classes and the spectrum penalty act in the base session: first_session='off'.")
        width = require_backbone(backbone).width
        lift = RandomReLU(width, n_units, seed=drawn_seed())
        learned: AnalyticHead = ClassMeans(width)
        if head == "ridge":
            learned = RidgeHead(lift, strength=strength, holdout=holdout, balanced=balanced)
        super().__init__(backbone, learned)
        self.first_session = first_session
        if first_session == "lora":
            add_lora(backbone, rank, targets=targets)
        self.base_lift = [lift]  # in a list: a submodule of the base session alone
        self.scale = scale
        self.fused_weight, self.n_virtual = fused_weight, n_virtual
        self.spectrum, self.spectrum_weight = spectrum, spectrum_weight
        self.penalised = [p for p in backbone.parameters() if p.requires_grad and p.ndim == 2 and bool(p.any())]
        self.n_base = 0

    def begin_task(self, task: Task) -> None:
        """Room for the new classes; a classifier over base and virtual classes for the first task alone."""
        super().begin_task(task)
        if self.session is None:
            return
        self.n_base = task.n_seen
        n_virtual = min(self.n_virtual, n_pairs(self.n_base)) if self.fused_weight else 0
        classifier = CosineLinear(self.base_lift[0].width, scale=self.scale)
        classifier.grow(self.n_base + n_virtual)
        self.session = nn.Sequential(self.base_lift[0], classifier)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``cross_entropy``, and ``fused`` and ``spectrum`` where they are on; nothing after the base session."""
        if self.session is None:
            return {}
        features = self.backbone(x)
        terms = {"cross_entropy": F.cross_entropy(self.session(features).float(), y)}
        if self.fused_weight:
            terms["fused"] = self.fused_weight * self._fused(self.session, x, features, y)
        if self.spectrum != "off":
            terms["spectrum"] = self.spectrum_weight * spectrum_penalty(self.penalised, self.spectrum)
        return terms

    def _fused(self, session: nn.Module, x: Batch, features: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of mixed pairs under their virtual class; 0 for a batch of one class."""
        own, other = partners(y)
        if not len(own):
            return features.new_zeros(())
        if isinstance(x, Tensor) and x.ndim == 4:
            mixed = self.backbone(fuse_images(x[own], x[other]))
        else:
            mixed = (features[own] + features[other]) / 2
        virtual = self.n_base + pair_index(y[own], y[other], self.n_base, self.n_virtual)
        return F.cross_entropy(session(mixed).float(), virtual)

    @torch.no_grad()
    def uncertainty(self, x: Batch) -> Tensor:
        r"""Posterior variance in units of the noise, :math:`h(x)^\top (G + \lambda I)^{-1} h(x)`, float64 [B].

        Small where features like x were learned from many samples. See `tangentcl.heads.RidgeHead.posterior_kernel`.

        Raises:
            ModelError: prototypes have none.
        """
        if not isinstance(self.head, RidgeHead):
            raise ModelError("prototypes have no posterior: make the method with head='ridge'.")
        features = self.backbone(x).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.head.posterior_kernel(features, features).diagonal()

    def forecast_session(self, old: Samples, task: Task) -> HeadForecast:
        """What learning a session would do to the scores of old samples, exactly. Nothing is learned.

        Args:
            old: samples of classes learned so far, under the evaluation transform.
            task: a session that was not learned yet.

        Raises:
            ModelError: before the base session, which trains the backbone, or with a session learned already.
        """
        if not bool(self.head.counts.any()):
            raise ModelError("the base session comes first: it trains the backbone, and old samples are its own.")
        learned = [c for c in task.new_classes if c < self.head.n_outputs and int(self.head.counts[c])]
        if learned:
            raise ModelError(f"task {task.index} was learned already: class {learned[0]} has samples.")
        device = self.backbone.device
        old_features, _ = extract_features(self.backbone, old)
        new_features, labels = extract_features(self.backbone, task.train_eval)
        return self.head.forecast(old_features.to(device), new_features.to(device), labels)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.{nearest(str(value), known)}")
