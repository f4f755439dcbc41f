"""NTK-CL: two adaptation branches, their running mean and their fusion, with class prototypes (Liu et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.data import Task
from tangentcl.errors import ModelError
from tangentcl.losses import (
    cross_kernel_energy,
    old_basis,
    projected_energy,
    released_direction,
    released_dissimilarity,
    released_orthogonality,
    supcon_with_prototypes,
)
from tangentcl.methods.method import Batch, Method, require_backbone
from tangentcl.methods.ntkcl_settings import (
    AnchorKind,
    Branches,
    Dissimilarity,
    EmaKind,
    FusionKind,
    Loss,
    NTKCLSettings,
    Orthogonality,
    Preset,
    Prompts,
    preset_settings,
)
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.anchors import Anchors
from tangentcl.nn.blocks import Transformer
from tangentcl.nn.branches import TwoBranches
from tangentcl.nn.channel_adapter import ChannelAdapter
from tangentcl.nn.layouts import transformer
from tangentcl.nn.patch_prompts import make_prompts
from tangentcl.nn.proxies import CosineProxies
from tangentcl.nn.sections import SectionPrototypes, section_unit


@dataclass(frozen=True)
class OldClasses:
    """What the losses need of earlier tasks; constant during a task.

    Attributes:
        unit: prototypes as the losses see them, rows of length one ``[M, D]``. labels: theirs ``[M]``.
        centre: taken from features before they are compared with the old space, ``[D]``.
        directions: for "projected_energy" the basis ``[D, k]``, for "cross_kernel" the unit rows ``[M, D]`` after
            centring, for "released" the vector r ``[D]``.
    """

    unit: Tensor
    labels: Tensor
    centre: Tensor
    directions: Tensor


class NTKCL(Method):
    r"""Three features per sample, held apart from old classes and near their old weights; class means predict.

    A frozen transformer is run with *channel adapters* (S2, beside each MLP) and, apart from it, with *patch prompts*
    (S1, tokens made of tokens). Each branch is run with current modules and with the running mean of those of past
    tasks; side by side they are the views c and p, and :math:`m = c + 0.1\,p + 0.5\,V c` is the third. Each task
    minimises

    .. math:: L = \sum_{z \in \{c, p, m\}} \mathrm{CE}(\sigma \cos(z, w), y)
        + \eta L_{dis} + \upsilon L_{orth} + \kappa \sum_j \|\theta_j - \theta_j^{prev}\|^2,

    with proxies w for the task's own classes only, thrown away after it. Then the running mean takes in the new
    weights, and the class means of m are stored. A sample's score is :math:`\sum_s m_s \cos(m_s(x), \mu_{c,s})` over
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
        branches: ``"both"``, ``"channel"`` or ``"patch"``; one branch has one view.
        prompts: ``"linear"`` (one number of tokens), ``"dct"`` (any), ``"attention"`` (any, by content), ``"static"``.
            ``"auto"`` is linear for images and attention for texts, where positions mean little. Released: a linear
            map that starts at a saddle and never trains, which leaves static prompts. Nowhere has the last block
            prompts: nothing would look at them.
        fusion: ``"linear"`` starts V at zero; ``"released"`` starts V at random and drops heads; ``"sum"`` has no V.
            Queries and keys of the released attention act on a sequence of length one and do nothing.
        ema: ``"mean"`` over tasks, ``"decay"`` with ``ema_decay`` (0 is the last task), ``"off"``: no such section.
            One copy is kept: with more, the released schedule updates the wrong one or divides by zero.
        ema_after_last: released skips the last update, so that the last prototypes differ in kind from the others.
        frozen_dropout: dropout in the frozen copy in training mode, as released: noise in features that are constant.
        ptm_section: add the pre-trained feature as a section; the paper does for data far from the pre-training.
        section_norm_train: compare section by section in training too. Released normalises the whole feature in
            training and sections at test.
        loss: ``"cross_entropy"``, or ``"squared"`` (half the squared error to one-hot labels).
        proxy_scale: where :math:`\sigma` starts.
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
        anchor_biases: released leaves out biases and norms.
        ridge: :math:`\lambda` of the anchored kernel ridge in place of ``anchor_weight``:
            :math:`\kappa = \lambda / 2n` for n training samples of the task.

    Note:
        The release feeds pixels in [0, 1] to backbones trained on normalised ones; here the backbone's transform
        normalises. Old prototypes are never refreshed, in the paper neither, while the modules behind them move.
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
        fusion: FusionKind | None = None,
        ema: EmaKind | None = None,
        ema_decay: float | None = None,
        ema_after_last: bool | None = None,
        frozen_dropout: bool | None = None,
        ptm_section: bool | None = None,
        section_norm_train: bool | None = None,
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
            fusion=fusion,
            ema=ema,
            ema_decay=ema_decay,
            ema_after_last=ema_after_last,
            frozen_dropout=frozen_dropout,
            ptm_section=ptm_section,
            section_norm_train=section_norm_train,
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
        self.network = _network(
            require_backbone(backbone), chosen, rank=rank, dropout=adapter_dropout, n_prompts=n_prompts, modes=modes
        )
        self.head = SectionPrototypes(self.network.width, self._section_weights())
        self.proxies: CosineProxies | None = None
        self.anchors = Anchors(self._anchored()) if chosen.anchor != "off" else None
        self.register_buffer("centre", torch.zeros(self.network.width))
        self._known, self._n_samples = 0, 0
        self._old: OldClasses | None = None
        self.register_load_state_dict_post_hook(_forget_old)

    centre: Tensor

    def _section_weights(self) -> tuple[float, ...]:
        weights = [1.0] if self.settings.ptm_section else []
        return (*weights, *(() if self.settings.ema == "off" else (0.3,)), 0.1)

    def _anchored(self) -> dict[str, Tensor]:
        """What the anchors hold, by name."""
        named = self.network.anchored()
        return named if self.settings.anchor_biases else {name: p for name, p in named.items() if p.ndim >= 2}

    def begin_task(self, task: Task) -> None:
        """New proxies for the task's classes, room for the prototypes of its new ones."""
        self._known = task.n_seen - len(task.new_classes)
        self._n_samples = len(task.train)
        self._old = None
        self.head.means.grow(task.n_seen)
        self.proxies = CosineProxies(self.network.width, task.classes, scale=self.settings.proxy_scale)
        self.proxies.to(self.network.device)

    def training_loss(self, x: Batch, y: Tensor) -> dict[str, Tensor]:
        """``cross_entropy_channel``, ``_patch`` and ``_fused`` (or ``squared_``), ``dissimilarity``,
        ``orthogonality``, ``anchor``, each with its weight; terms that are off are left out."""
        if self.proxies is None:
            raise ModelError("NTKCL.training_loss needs begin_task(task) first, which makes the task's proxies")
        views = {name: view.float() for name, view in self.network.views(x).named().items()}
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
            return section_unit(view, self.head.weights)
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
        kind, counts = self.settings.orthogonality, self.head.means.counts[: self._known]
        labels = counts.nonzero().flatten()  # [M]
        prototypes = self.head.means.prototypes[labels].float()  # [M, D]
        centre = self.centre if self.settings.centre_prototypes else torch.zeros_like(self.centre)
        directions = prototypes.new_zeros(len(self.centre), 0)
        if kind == "released":
            directions = released_direction(prototypes, self.head.means.n_outputs)
        elif kind == "projected_energy":
            directions = old_basis(self._unit(prototypes - centre), energy=self.settings.orthogonality_energy)
        elif kind == "cross_kernel":
            directions = self._unit(prototypes - centre)
        return OldClasses(self._unit(prototypes), labels, centre, directions)

    def end_task(self, task: Task) -> None:
        """The running mean takes in the task's weights, its class means are stored, the anchors move."""
        last = task.index == task.n_tasks - 1
        bank = self.network.bank
        if bank is not None and (self.settings.ema_after_last or not last):
            bank.update(self.network.current)
        features, labels = extract_features(self.network, task.train_eval)
        self.head.means.update(features.to(self.centre.device), labels)
        if task.index == 0:
            self.centre.copy_(features.mean(0))
        if self.anchors is not None and self.settings.anchor != "initial":
            self.anchors.move_to(self._next_anchor())

    def _next_anchor(self) -> dict[str, Tensor]:
        anchor, bank = self._anchored(), self.network.bank
        if self.settings.anchor == "ema" and bank is not None:
            means = {f"current.{name}": value for name, value in bank.copy.named_buffers()}
            anchor = {name: means.get(name, value) for name, value in anchor.items()}
        return anchor

    def predict(self, x: Batch) -> Tensor:
        """Weighted cosines to the prototypes of all classes seen so far, ``[B, n_seen]``."""
        return self.head(self.network(x))


def _forget_old(method: nn.Module, _: object) -> None:
    method._old = None  # type: ignore[assignment]


def _network(
    backbone: Backbone, chosen: NTKCLSettings, *, rank: int, dropout: float, n_prompts: int, modes: int
) -> TwoBranches:
    model, channel, patch = transformer(backbone), None, None
    if chosen.branches != "patch":
        channel = nn.ModuleList(ChannelAdapter(model.width, rank=rank, dropout=dropout) for _ in model.blocks)
    if chosen.branches != "channel":
        patch = _prompts(backbone, model, chosen.prompts, n_prompts, modes)
    return TwoBranches(
        backbone,
        model,
        channel=channel,
        patch=patch,
        ptm_section=chosen.ptm_section,
        ema=chosen.ema,
        ema_decay=chosen.ema_decay,
        frozen_dropout=chosen.frozen_dropout,
        fusion=chosen.fusion,
    )


def _prompts(backbone: Backbone, model: Transformer, form: str, n_prompts: int, modes: int) -> nn.ModuleList:
    if len(model.blocks) < 2:
        raise ModelError(
            f"{backbone.card.name} has one block, and prompts of the last block are looked at by nothing. "
            "Try branches='channel'."
        )
    with torch.no_grad():
        tokens = model.embed(backbone.sample_input())
    text = tokens.grid is None and tokens.mask is not None
    if form == "auto":
        form = "attention" if text else "linear"
    n_prefix = None if tokens.grid is None else tokens.n_prefix
    n_tokens = tokens.values.shape[1]
    made = (
        make_prompts(form, model.width, n_prompts, n_tokens=n_tokens, n_prefix=n_prefix, modes=modes)
        for _ in model.blocks[1:]
    )
    return nn.ModuleList(made)


__all__ = ["NTKCL", "NTKCLSettings", "OldClasses"]
