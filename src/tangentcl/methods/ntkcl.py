"""NTK-CL: two adaptation branches, their running mean and their fusion, with class prototypes (Liu et al., 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.data import Samples, Task
from tangentcl.errors import ModelError
from tangentcl.losses import (
    cross_kernel_energy,
    projected_energy,
    released_dissimilarity,
    released_orthogonality,
    supcon_with_prototypes,
)
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.methods.ntkcl_network import make_network
from tangentcl.methods.ntkcl_old import OldClasses, describe_old
from tangentcl.methods.ntkcl_settings import (
    AnchorKind,
    Branches,
    Compensation,
    Dissimilarity,
    EmaKind,
    FusionKind,
    Loss,
    NTKCLSettings,
    Orthogonality,
    Preset,
    Prompts,
    ScoredViews,
    TrainedSections,
    preset_settings,
)
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.anchors import Anchors
from tangentcl.nn.branches import FeaturesOf
from tangentcl.nn.proxies import CosineProxies
from tangentcl.nn.sections import SectionPrototypes, section_unit
from tangentcl.nn.view_bank import unpacked, view_bank
from tangentcl.theory import moved_prototypes


class NTKCL(Method):
    r"""Three features per sample, held apart from old classes and near their old weights; class means predict.

    A frozen transformer is run with *channel adapters* (S2, beside each MLP) and, apart from it, with *patch prompts*
    (S1, tokens made of tokens). Each branch is run with current modules and with the running mean of those of past
    tasks; side by side they are the views c and p, and :math:`m = c + 0.1\,p + 0.5\,V c` is the third. Each task
    minimises

    .. math:: L = \sum_{z \in \{c, p, m\}} \mathrm{CE}(\sigma \cos(z, w), y)
        + \eta L_{dis} + \upsilon L_{orth} + \kappa \sum_j \|\theta_j - \theta_j^{prev}\|^2,

    with proxies w for the task's own classes only, thrown away after it. Then the running mean takes in the new
    weights, and class means are stored. A sample's score of a view z is :math:`\sum_s m_s \cos(z_s(x), \mu_{c,s})` over
    the sections s = [pre-trained | running mean | current] with weights [1, 0.3, 0.1]. The state grows by class rows
    only, and tasks may differ in size. Source: Liu et al., "Parameter-Efficient Fine-Tuning for Continual Learning: A
    Neural Tangent Kernel Perspective", arXiv 2407.17120; the formulas are read from its released code.

    The presets are ``"intended"`` (what the terms are for), ``"released"`` (what the code computes; tensors that never
    receive a gradient in it are left out, which changes no number) and ``"theory"`` (squared loss, anchored ridge in
    units of the kernel, measured cross-kernel energy). Each switch below is None to follow the preset.

    Args:
        backbone: a transformer that `tangentcl.nn.layouts.transformer` understands; it stays frozen.
        preset: see above.
        rank: of channel adapters. adapter_dropout: on their hidden units.
        n_prompts: per block. modes: of ``prompts="dct"``.
        branches: ``"both"``, ``"channel"`` or ``"patch"``; one branch has one view. ``"joint"`` puts adapters and
            prompts into one pass: one view at half the cost, which is not the paper's method.
        prompts: ``"linear"`` (one number of tokens), ``"dct"`` (any), ``"attention"`` (any, by content), ``"static"``.
            ``"auto"`` is linear for images and attention for texts, where positions mean little. Released: a linear
            map that starts at a saddle and never trains, which leaves static prompts. Nowhere has the last block
            prompts: nothing would look at them.
        prompt_share: what a block's prompts count in attention together, in parts of what the input's tokens do: 0.05
            is what ten prompts are among the 197 tokens of the paper. None: each counts as a token, as released. Then
            the same prompts drown a short input: four among a dozen words cost the patch feature of a text encoder 4.5
            points before training, with 0.05 they cost 1.3.
        fusion: ``"linear"`` starts V at zero; ``"released"`` starts V at random and drops heads; ``"sum"`` has no V.
            Queries and keys of the released attention act on a sequence of length one and do nothing; ``"attention"``
            gives them the sections of both views to look at.
        ema: ``"mean"`` over tasks, ``"decay"`` with ``ema_decay`` (0 is the last task), ``"off"``: no such section.
            One copy is kept: with more, the released schedule updates the wrong one or divides by zero.
        ema_after_last: released skips the last update, so that the last prototypes differ in kind from the others.
        frozen_dropout: dropout in the frozen copy in training mode, as released: noise in features that are constant.
        ptm_section: add the pre-trained feature as a section; the paper does for five of its nine data sets. The
            fusion's map leaves it out, so that it never moves; released mixes it with the others.
        section_weights: m of the sections that there are, 1, 0.3 and 0.1 by default.
        scored_views: ``"all"`` predicts by the mean of the three views' scores: they are there, and err apart.
            ``"fused"`` by m alone, as released.
        section_norm_train: compare section by section in training too. Released normalises the whole feature in
            training and sections at test.
        loss: ``"cross_entropy"``, or ``"squared"`` (half the squared error to one-hot labels).
        proxy_scale: where :math:`\sigma` starts. Released 1: logits in [-1, 1] cannot tell classes apart, and
            :math:`\sigma` hardly grows within a task.
        dissimilarity, dissimilarity_weight: ``"supcon_proto"`` pulls classes together and pushes them from old
            prototypes; ``"released"`` minimises minus InfoNCE, which drives same-class samples apart. Old rows are
            counted by seen classes; the release counts by increment, which is the same for equal tasks only.
        orthogonality, orthogonality_weight: ``"projected_energy"`` in the span of old prototypes, decomposed once per
            task, of which ``orthogonality_energy`` of the energy is kept; ``"cross_kernel"``, the mean squared inner
            product with old prototypes; ``"released"``, a signed sum that is not an energy.
        centre_prototypes: take the mean feature of the first task from features and prototypes before these two
            energies: pre-trained features share a large direction that belongs to no class.
        anchor, anchor_weight: hold adaptation modules and fusion to the weights at the end of the ``"previous"`` task,
            to the running mean (``"ema"``), or to the ``"initial"`` ones. Weight decay pulls the same tensors to zero
            instead: with decay w they end at :math:`2\kappa / (2\kappa + w)` of the anchor, so leave
            ``plan.weight_decay`` at 0 except to reproduce the release.
        anchor_biases: released leaves out biases, those of norms too.
        ridge: :math:`\lambda` of the anchored kernel ridge in place of ``anchor_weight``:
            :math:`\kappa = \lambda / 2n` for n training samples of the task.
        compensation: how old class means follow the modules behind them, which the release never refreshes:
            ``"ridge"`` or ``"mean"``, told from how the task's own samples moved (see
            `tangentcl.theory.moved_prototypes`). Without it a class mean describes features that are gone: that is
            where the release loses most as soon as it trains in earnest.
        first_block: the first block with adaptation modules. Those before it are run once for all branches, and more
            of the pre-trained network is kept.
        cached_views: train on that many fixed random views of each sample and compute what does not train once for
            each. 0 draws a new view every time. 1 loses nothing where the transform is not random, as for texts.
        cached_stem: keep what the branches share, too: up to the first adapted block, ``2 N d`` numbers for each view
            and sample of the task. Worth it for few tokens or a late ``first_block``.

    Note:
        The release feeds pixels in [0, 1] to backbones trained on normalised ones; here the backbone's transform
        normalises.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        preset: Preset = "intended",
        rank: int = 16,
        adapter_dropout: float = 0.1,
        n_prompts: int = 10,
        modes: int = 16,
        branches: Branches | None = None,
        prompts: Prompts | None = None,
        prompt_share: float | None = None,
        fusion: FusionKind | None = None,
        ema: EmaKind | None = None,
        ema_decay: float | None = None,
        ema_after_last: bool | None = None,
        frozen_dropout: bool | None = None,
        ptm_section: bool | None = None,
        section_weights: tuple[float, ...] | None = None,
        scored_views: ScoredViews | None = None,
        trained_sections: TrainedSections | None = None,
        section_norm_train: bool | None = None,
        compensation: Compensation | None = None,
        first_block: int | None = None,
        cached_views: int | None = None,
        cached_stem: bool | None = None,
        loss: Loss | None = None,
        proxy_scale: float | None = None,
        dissimilarity: Dissimilarity | None = None,
        dissimilarity_weight: float | None = None,
        orthogonality: Orthogonality | None = None,
        orthogonality_weight: float | None = None,
        orthogonality_energy: float | None = None,
        centre_prototypes: bool | None = None,
        anchor: AnchorKind | None = None,
        anchor_weight: float | None = None,
        anchor_biases: bool | None = None,
        ridge: float | None = None,
    ) -> None:
        super().__init__()
        self.settings = preset_settings(preset).changed(
            branches=branches,
            prompts=prompts,
            prompt_share=prompt_share,
            fusion=fusion,
            ema=ema,
            ema_decay=ema_decay,
            ema_after_last=ema_after_last,
            frozen_dropout=frozen_dropout,
            ptm_section=ptm_section,
            section_weights=section_weights,
            scored_views=scored_views,
            trained_sections=trained_sections,
            section_norm_train=section_norm_train,
            compensation=compensation,
            first_block=first_block,
            cached_views=cached_views,
            cached_stem=cached_stem,
            loss=loss,
            proxy_scale=proxy_scale,
            dissimilarity=dissimilarity,
            dissimilarity_weight=dissimilarity_weight,
            orthogonality=orthogonality,
            orthogonality_weight=orthogonality_weight,
            orthogonality_energy=orthogonality_energy,
            centre_prototypes=centre_prototypes,
            anchor=anchor,
            anchor_weight=anchor_weight,
            anchor_biases=anchor_biases,
            ridge=ridge,
        )
        chosen = self.settings
        self.network = make_network(
            require_backbone(backbone), chosen, rank=rank, dropout=adapter_dropout, n_prompts=n_prompts, modes=modes
        )
        width = self.network.all_width if self._reads_all else self.network.width
        self.head = SectionPrototypes(width, chosen.weights(len(self.network.branches) + 1 if self._reads_all else 1))
        self.proxies: CosineProxies | None = None
        self.previous = Anchors(self.network.anchored())  # where the last task ended
        self.reference = Anchors(self._anchored()) if chosen.anchor in ("ema", "initial") else None
        self.register_buffer("centre", torch.zeros(width))
        self._known, self._n_samples, self._view_seed = 0, 0, 0
        self._old: OldClasses | None = None
        self.register_load_state_dict_post_hook(_forget_old)

    centre: Tensor

    @property
    def _reads_all(self) -> bool:
        return self.settings.scored_views == "all" and len(self.network.branches) == 2

    def _features(self, task: Task) -> tuple[Tensor, Tensor]:
        """What class means are taken of, ``[n, D]``, and labels, of the task's samples without augmentation."""
        network = self.network
        reader = FeaturesOf(network, network.all_views, network.all_width) if self._reads_all else network
        return extract_features(reader, task.train_eval)

    @property
    def _untrained(self) -> int:
        """Numbers at the beginning of a feature that the losses do not see."""
        frozen = self.network.n_sections - 1
        skipped = {"all": 0, "adapted": int(self.settings.ptm_section), "current": frozen}
        return skipped[self.settings.trained_sections] * self.network.backbone.width

    @property
    def _trains_ptm(self) -> bool:
        """Whether the losses see the pre-trained section."""
        return self.settings.ptm_section and self.settings.trained_sections == "all"

    @property
    def anchors(self) -> Anchors | None:
        """What holds the adaptation modules and the fusion; None where nothing does."""
        return {"off": None, "previous": self.previous}.get(self.settings.anchor, self.reference)

    def _anchored(self) -> dict[str, Tensor]:
        """What the anchors hold, by name."""
        named = self.network.anchored()
        if self.settings.anchor_biases:
            return named
        return {name: p for name, p in named.items() if p.ndim >= 2 or name.endswith("weight")}

    def begin_task(self, task: Task) -> None:
        """New proxies for the task's classes, room for the prototypes of its new ones."""
        self._known = task.n_seen - len(task.new_classes)
        self._n_samples = len(task.train)
        self._old = None
        self._view_seed = int(torch.randint(2**31, ()))
        self.head.means.grow(task.n_seen)
        width = self.network.width - self._untrained
        self.proxies = CosineProxies(width, task.classes, scale=self.settings.proxy_scale)
        self.proxies.to(self.network.device)

    def training_samples(self, task: Task) -> Samples:
        """The task's samples; with ``cached_views``, in fixed views with the frozen branches' features."""
        chosen = self.settings
        if not chosen.cached_views:
            return task.train
        return view_bank(
            self.network,
            task.train,
            chosen.cached_views,
            self._view_seed,
            ptm=self._trains_ptm,
            keep_stems=chosen.cached_stem,
        )

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``cross_entropy_channel``, ``_patch`` and ``_fused`` (or ``squared_``), ``dissimilarity``,
        ``orthogonality``, ``anchor``, each with its weight; terms that are off are left out."""
        if self.proxies is None:
            raise ModelError("NTKCL.training_loss needs begin_task(task) first, which makes the task's proxies")
        views = self.network.views(*unpacked(x), ptm=self._trains_ptm).named()
        with torch.autocast(self.network.device.type, enabled=False):  # cosines lie close together, bf16 has two digits
            return self._terms({name: view[:, -self.proxies.width :].float() for name, view in views.items()}, y)

    def _terms(self, views: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Of the views' trained sections, ``[B, D']`` each."""
        assert self.proxies is not None
        unit = {name: self._unit(view) for name, view in views.items()}
        targets = self.proxies.targets(y)
        terms = {f"{self.settings.loss}_{name}": self._fit(self.proxies(u), targets) for name, u in unit.items()}
        if self.settings.dissimilarity != "off":
            terms["dissimilarity"] = self.settings.dissimilarity_weight * self._dissimilarity(unit["fused"], y)
        if self.settings.orthogonality != "off":
            terms["orthogonality"] = self.settings.orthogonality_weight * self._orthogonality(views)
        if self.anchors is not None:
            terms["anchor"] = self.anchor_weight * self.anchors.distance(self._anchored())
        return terms

    @property
    def anchor_weight(self) -> float:
        r""":math:`\kappa` of the current task."""
        ridge = self.settings.ridge
        return self.settings.anchor_weight if ridge is None else ridge / (2 * max(self._n_samples, 1))

    def _unit(self, view: Tensor) -> Tensor:
        """Rows of length one, as the losses compare them."""
        if self.settings.section_norm_train:
            return section_unit(view, self.settings.weights(1)[-(view.shape[1] // self.network.backbone.width) :])
        return F.normalize(view, dim=1)

    def _fit(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.settings.loss == "cross_entropy":
            return F.cross_entropy(logits, targets)
        return (logits - F.one_hot(targets, logits.shape[1])).square().sum(1).mean() / 2

    def _dissimilarity(self, unit: Tensor, y: Tensor) -> Tensor:
        old = self.old_classes()
        if self.settings.dissimilarity == "released":
            return released_dissimilarity(unit, y, old.unit)
        return supcon_with_prototypes(unit, y, old.unit, old.labels)

    def _orthogonality(self, views: dict[str, Tensor]) -> Tensor:
        old = self.old_classes()
        if self.settings.orthogonality == "released":
            branches = [self._unit(view) for name, view in views.items() if name != "fused" or len(views) == 1]
            return released_orthogonality(branches, old.directions)
        energy = projected_energy if self.settings.orthogonality == "projected_energy" else cross_kernel_energy
        return torch.stack([energy(self._unit(view - old.centre), old.directions) for view in views.values()]).mean()

    def old_classes(self) -> OldClasses:
        """Prototypes of classes of earlier tasks, and the space they span; computed once per task."""
        if self._old is None:
            with torch.no_grad():
                self._old = self._describe_old()
        return self._old

    def _describe_old(self) -> OldClasses:
        labels = self.head.means.counts[: self._known].nonzero().flatten()  # [M]
        seen = slice(self._untrained, self.network.width)  # of the fused view
        prototypes = self.head.means.prototypes[labels, seen].float()  # [M, D']
        n_outputs = self.head.means.n_outputs
        return describe_old(prototypes, labels, self.centre[seen], self.settings, unit=self._unit, n_outputs=n_outputs)

    def end_task(self, task: Task) -> None:
        """The running mean takes in the task's weights, old class means move along, new ones are stored.

        New means are of features as `predict` sees them, under autocast too: what rounding to bf16 does to all features
        alike would else stand between them. How far features move is measured in full precision: that is a small
        difference, and rounding is about as large.
        """
        half, last = torch.is_autocast_enabled(self.network.device.type), task.index == task.n_tasks - 1
        with torch.autocast(self.network.device.type, enabled=False):
            before = self._features_before(task)
        bank = self.network.bank
        if bank is not None and (self.settings.ema_after_last or not last):
            bank.update(self.network.current)
        features, labels = self._features(task)
        if before is not None:
            with torch.autocast(self.network.device.type, enabled=False):
                after = self._features(task)[0] if half else features
            self._move_means(before, after)
        self.head.means.update(features.to(self.centre.device), labels)
        if task.index == 0:
            self.centre.copy_(features.mean(0))
        self.previous.move_to(self.network.anchored())
        if self.reference is not None and self.settings.anchor == "ema":
            self.reference.move_to(self._mean_weights())

    def _features_before(self, task: Task) -> Tensor | None:
        """Features [n, D] of the task's samples with the weights that its training started from."""
        if self.settings.compensation == "off" or not bool(self.head.means.counts.any()):
            return None
        with self.previous.in_place_of(self.network.anchored()):
            return self._features(task)[0]

    def _move_means(self, before: Tensor, after: Tensor) -> None:
        old = torch.cat([self.head.means.prototypes, self.centre[None]])  # [C + 1, D]
        movement = self.settings.compensation
        assert movement != "off"
        moved = moved_prototypes(old, before, after, movement=movement, sections=len(self.head.weights))
        self.head.means.move(moved[:-1])
        self.centre.copy_(moved[-1])

    def _mean_weights(self) -> dict[str, Tensor]:
        anchor, bank = self._anchored(), self.network.bank
        if bank is None:
            return anchor
        means = {f"current.{name}": value for name, value in bank.copy.named_buffers()}
        return {name: means.get(name, value) for name, value in anchor.items()}

    def predict(self, x: Batch) -> Tensor:
        """Weighted cosines to the prototypes of all classes seen so far, ``[B, n_seen]``."""
        return self.head(self.network.all_views(x) if self._reads_all else self.network(x))

    def feature_views(self, x: Batch) -> dict[str, Tensor]:
        """The features of a sample that the losses are taken of, ``[B, D]`` each, for the theory report."""
        return self.network.views(x).named()


def _forget_old(method: nn.Module, _: object) -> None:
    method._old = None  # type: ignore[assignment]


__all__ = ["NTKCL", "NTKCLSettings", "OldClasses"]
