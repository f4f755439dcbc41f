"""The theory report: what the tangent-kernel theory says of every task of a stream, without old data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast.head import Linear, linear_head
from tangentcl.kernels.network import Network
from tangentcl.linalg import gram_spectrum
from tangentcl.methods import Method
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.backbone import BackboneCard
from tangentcl.theory import Laziness, RidgeStep, TangentProbe, anchor_efficiency, capacity_radius, relative_move
from tangentcl.theory.laziness import frozen
from tangentcl.training import theory_quantities as quantities
from tangentcl.training.forecasting import undisturbed
from tangentcl.training.old_samples import in_proportion
from tangentcl.training.order import derived_seed
from tangentcl.training.stage import Stage
from tangentcl.training.theory_certificate import certificate, scores_at
from tangentcl.training.theory_quantities import PastTask, Space, Values, one_hot

SketchKind = Literal["auto", "exact", "low_rank_diagonal", "frequent_directions"]
SAME = 1e-4  # relative difference below which a linear layer on the features is the method's head


@dataclass(frozen=True, kw_only=True)
class TheoryOptions:
    """What the theory report is made from; the table ``[theory]`` of an experiment.

    Args:
        samples: most training samples of a task that are looked at; of more every class is drawn from in proportion.
        probe: samples of the task on which kernels are compared before and after training.
        ridge: strength of the theory's ridge; None takes the one with the lowest leave-one-out risk, task by task.
        sketch, k: how second moments are kept, see `tangentcl.forecast.TaskMoments.empty`; "auto" keeps them whole
            up to a width of 1024.
        energy: share of a second moment that counts as the space of a task. rank: most directions of it.
        views: random training views of a sample that are compared, where the method has no views of its own.
        draws: of noise for the PAC-Bayes certificate of what is more than a linear head; 0 = of linear heads only.

    Raises:
        ConfigError: an impossible value.
    """

    samples: int = 2000
    probe: int = 64
    ridge: float | None = None
    sketch: SketchKind = "auto"
    k: int = 64
    energy: float = 0.95
    rank: int = 64
    views: int = 3
    draws: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("samples", 4), ("probe", 4), ("k", 1), ("rank", 1), ("views", 2), ("draws", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise ConfigError(f"theory.{name} must be a whole number of at least {lowest}, got {value!r}")
        if self.sketch not in get_args(SketchKind):
            raise ConfigError(f"theory.sketch must be one of {', '.join(get_args(SketchKind))}, got {self.sketch!r}")
        if not 0 < self.energy <= 1:
            raise ConfigError(f"theory.energy must be above 0 and at most 1, got {self.energy!r}")
        if self.ridge is not None and not 0 < self.ridge < float("inf"):
            raise ConfigError(f"theory.ridge must be a positive number, got {self.ridge!r}")


@dataclass(frozen=True)
class StageTheory:
    """The quantities of one task.

    Attributes:
        task: that is about to be learned, or was.
        reason: why there are none, else None.
        before, after: plain values as `docs/theory.md` lists them; None where not known (yet).
        seconds: that they took.
    """

    task: Task
    reason: str | None = None
    before: Values | None = None
    after: Values | None = None
    seconds: float = 0.0


@dataclass
class _Look:
    """What is remembered from before a task until after it; of the current task only."""

    extractor: Backbone
    samples: Samples
    features: Tensor
    labels: Tensor
    step: RidgeStep
    probe_rows: Tensor
    start: dict[str, Tensor]
    head: Linear | None
    head_start: Tensor | None
    probe: TangentProbe | None = None
    function: str = "outputs"
    batch: Any = None
    scores: Tensor | None = None
    no_probe: str | None = None
    values: Values = field(default_factory=dict)


class TheoryReport:
    """A `StageWatcher` that computes what theory says of each task, before it is learned and after.

    Of a past task only moments of its features are kept. What is learned is the same with and without it: random
    generators, modes, parameters and buffers stay as they are.

    Args:
        options: from what.
        class_names: by stream label; labels where there are none.
        report: called with the quantities of a task before training, and again after it.

    Attributes:
        made: the quantities so far, task by task.

    >>> TheoryReport(TheoryOptions(samples=500)).made
    []
    """

    def __init__(
        self,
        options: TheoryOptions | None = None,
        *,
        class_names: Sequence[str] = (),
        report: Callable[[StageTheory], None] = lambda theory: None,
    ) -> None:
        self.options = options or TheoryOptions()
        self.class_names = class_names
        self.report = report
        self.made: list[StageTheory] = []
        self._past: list[PastTask] = []
        self._head: Tensor | None = None  # the theory's own, [d + 1, C]
        self._look: _Look | None = None

    def before(self, stage: Stage) -> None:
        """What is known before the task is learned."""
        began, self._look = time.perf_counter(), None
        found = StageTheory(stage.task)
        with undisturbed(stage):
            try:
                self._look = self._looked(stage)
                found = replace(found, before=self._look.values)
            except (ConfigError, DataError, ModelError) as refusal:
                found = replace(found, reason=str(refusal))
        self._keep(replace(found, seconds=time.perf_counter() - began))

    def after(self, stage: Stage) -> None:
        """What the task did."""
        began, look = time.perf_counter(), self._look
        if look is None:
            return
        found = self.made.pop()
        with undisturbed(stage):
            try:
                found = replace(found, after=self._after(stage, look))
            except (ConfigError, DataError, ModelError) as refusal:
                found = replace(found, reason=str(refusal))
        self._look = None
        self._keep(replace(found, seconds=found.seconds + time.perf_counter() - began))

    def _keep(self, theory: StageTheory) -> None:
        self.made.append(theory)
        self.report(theory)

    def state_dict(self) -> dict[str, Any]:
        """The theory's own head, and the spaces that past tasks left."""
        return {"head": self._head, "past": [past.state_dict() for past in self._past]}

    def load_state_dict(self, state: dict[str, Any], tasks: Sequence[Task]) -> None:
        """Go on from `state_dict`; earlier quantities are not in `made`."""
        self._head, self._past = state["head"], [PastTask.restored(past) for past in state["past"]]

    def _looked(self, stage: Stage) -> _Look:
        options, task = self.options, stage.task
        extractor = feature_extractor(stage.method)
        samples = _some(task.train_eval, options.samples, derived_seed(stage.plan.seed, "theory", task.index))
        features, labels = extract_features(extractor, samples, stage.plan.eval_batch_size)
        targets = one_hot(labels, task.n_seen)
        residual = targets - self._theory_outputs(features, task.n_seen)
        values, step = quantities.ridge_and_risk(features, residual, options.ridge)
        space = self._space(features, labels, task)
        values |= {
            "n": len(samples),
            "n_available": len(task.train_eval),
            "width": features.shape[1],
            "past": _joined(
                quantities.relations(space, self._past),
                quantities.interplay(step.change, self._past),
                quantities.rademacher(step.radius, space, self._past, predicted=True),
            ),
            "rademacher_own": quantities.rademacher_term(step.radius, space.trace, space.moments.n),
            "old_energy": quantities.old_energy(features, self._past, energy=options.energy, rank=options.rank),
            "class_drift": quantities.class_drift(step.change, self._past, self.class_names),
        }
        rows = _probe_rows(labels, options.probe, derived_seed(stage.plan.seed, "theory probe", task.index))
        views, kind = self._views(stage, extractor, samples, rows)
        values["views"] = quantities.view_quantities(views, targets[rows], step.ridge, len(task.train_eval), kind)
        start = {name: p.detach().clone() for name, p in stage.method.named_parameters() if p.requires_grad}
        x, _ = next(samples.subset(rows.numpy()).batches(len(rows)))
        x = stage.runtime.to_device(x)
        head = _method_head(stage.method, extractor, x)
        look = _Look(extractor, samples, features, labels, step, rows, start, head, _as_change(head), values=values)
        if start:
            look.batch, look.scores = x, scores_at(stage.method, x)
            try:
                look.probe, look.function = _probe(stage.method, extractor, x)
            except ModelError as refusal:
                look.no_probe = str(refusal)
        return look

    def _after(self, stage: Stage, look: _Look) -> Values:
        options, task = self.options, stage.task
        features, labels = extract_features(look.extractor, look.samples, stage.plan.eval_batch_size)
        now = {name: p.detach() for name, p in stage.method.named_parameters() if p.requires_grad}
        head = _as_change(look.head)
        change = None if head is None or look.head_start is None else head - look.head_start
        radius = None if change is None else float(change.norm())
        space = self._space(features, labels, task)
        own = None if radius is None else quantities.rademacher_term(radius, space.trace, space.moments.n)
        values: Values = {
            "dimension": quantities.dimensions(gram_spectrum(features, constant=1.0).values, look.step.ridge),
            "radius": {"all": capacity_radius(look.start, now), "head": radius},
            "move": relative_move(look.start, now),
            "anchor": _anchor(stage),
            "past": _joined(
                quantities.relations(space, self._past),
                quantities.interplay(change, self._past),
                quantities.rademacher(radius, space, self._past, predicted=False),
            ),
            "rademacher_own": own,
            "old_energy": quantities.old_energy(features, self._past, energy=options.energy, rank=options.rank),
            "staleness": quantities.prototype_staleness(look.features, features, labels, self._past, self.class_names),
            **_laziness(look, features),
            **_certificate(stage, look, features, options.draws),
        }
        self._past.append(PastTask(space, look.step.radius, radius))
        if self._head is None:
            self._head = torch.zeros(features.shape[1] + 1, 0, dtype=torch.float64)
        self._head = _widened(self._head, task.n_seen) + look.step.change
        return values

    def _theory_outputs(self, features: Tensor, n_outputs: int) -> Tensor:
        """What the theory's own head puts out, [n, C]; zero before the first task."""
        if self._head is None:
            return torch.zeros(len(features), n_outputs, dtype=torch.float64)
        head = _widened(self._head, n_outputs)
        return features.double() @ head[:-1] + head[-1]

    def _space(self, features: Tensor, labels: Tensor, task: Task) -> Space:
        o = self.options
        return quantities.space_of(
            features, labels, sketch=o.sketch, k=o.k, energy=o.energy, rank=o.rank, task=task.index, name=task.name
        )

    def _views(self, stage: Stage, extractor: Backbone, samples: Samples, rows: Tensor) -> tuple[Tensor, str]:
        """Views [V, m, d] of the probe's samples, and what they are."""
        own = getattr(stage.method, "feature_views", None)
        chosen = samples.subset(rows.numpy())
        if callable(own):
            stage.method.eval()
            with torch.no_grad():
                x, _ = next(chosen.batches(len(rows)))
                found = [view.float().cpu() for view in own(stage.runtime.to_device(x)).values()]
            if len(found) > 1:
                return torch.stack(found), "the method's own features of a sample"
        train = stage.task.train  # the same samples, as they are where `chosen` holds known features
        place = {name: position for position, name in enumerate(train.ids.tolist())}
        chosen = train.subset([place[name] for name in chosen.ids.tolist()])
        extractor.eval()
        views = []
        for v in range(self.options.views):
            rng = np.random.default_rng(derived_seed(stage.plan.seed, "theory view", stage.task.index, v))
            x, _ = chosen.collate([chosen.item(i, rng) for i in range(len(rows))])
            with torch.no_grad():
                views.append(extractor(stage.runtime.to_device(x)).float().cpu())
        return torch.stack(views), "random training views of a sample"


def feature_extractor(method: Method) -> Backbone:
    """What makes the method's features: a module of its own around the backbone where it has one, else the backbone.

    Raises:
        ConfigError: the method has neither.
    """
    for module in method.modules():
        if isinstance(getattr(module, "card", None), BackboneCard) and hasattr(module, "width"):
            return cast(Backbone, module)
    raise ConfigError(f"{type(method).__name__} has no backbone, so nobody knows its features")


def _some(samples: Samples, limit: int, seed: int) -> Samples:
    if len(samples) <= limit:
        return samples
    groups = np.unique(samples.labels, return_inverse=True)[1].reshape(-1)
    return samples.subset(in_proportion(groups, limit, np.random.default_rng(seed)))


def _probe_rows(labels: Tensor, limit: int, seed: int) -> Tensor:
    if len(labels) <= limit:
        return torch.arange(len(labels))
    groups = np.unique(labels.numpy(), return_inverse=True)[1].reshape(-1)
    return torch.from_numpy(in_proportion(groups, limit, np.random.default_rng(seed)))


def _probe(method: Method, extractor: Backbone, x: Any) -> tuple[TangentProbe, str]:
    """A probe of the outputs that are finite before the task; of the features where none is."""
    method.eval()
    with torch.no_grad():
        finite = method.predict(x).isfinite().all(dim=0).nonzero().flatten()
    if len(finite):
        return TangentProbe(method, x, lambda m, batch: cast(Method, m).predict(batch)[:, finite]), "outputs"
    return TangentProbe(method, x, lambda m, batch: extractor(batch)), "features"


def _method_head(method: Method, extractor: Backbone, x: Any) -> Linear | None:
    """The linear layer on the method's features that makes its scores, or None."""
    try:
        network = Network(method, parameters=())
        with network.evaluating(), torch.no_grad():
            head = linear_head(network, x)
            if head is None or head.weight.shape[1] != extractor.width:
                return None
            scores = network(x)
            same = float((head(extractor(x)) - scores).norm()) <= SAME * float(scores.norm())
    except ModelError:  # no finite scores yet, so no linear layer made them
        return None
    return head if same else None


def _as_change(head: Linear | None) -> Tensor | None:
    """Weights and bias as a matrix on features with a constant, float64 [d + 1, C] on the CPU."""
    if head is None:
        return None
    weight = cast(nn.Parameter, head.weight).detach().double().cpu()
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double().cpu()
    return torch.cat([weight.T, bias[None]])


def _widened(head: Tensor, n_outputs: int) -> Tensor:
    return torch.cat([head, head.new_zeros(len(head), n_outputs - head.shape[1])], dim=1)


def _anchor(stage: Stage) -> Values | None:
    """Q13; None for a method without an anchor."""
    kappa = getattr(stage.method, "anchor_weight", None)
    if kappa is None or getattr(stage.method, "anchors", None) is None:
        return None
    decay = stage.plan.weight_decay
    efficiency = anchor_efficiency(float(kappa), decay) if float(kappa) + decay > 0 else None
    decoupled = stage.plan.optimizer == "adamw" and decay > 0
    return {"kappa": float(kappa), "weight_decay": decay, "efficiency": efficiency, "decoupled": decoupled}


def _laziness(look: _Look, features: Tensor) -> Values:
    """Q9; or why it is not known."""
    before, after = look.features[look.probe_rows], features[look.probe_rows]
    if not look.start:
        return {"laziness": frozen(before, after).to_dict(), "no_laziness": None}
    found: Laziness | None = None
    reason = look.no_probe
    if look.probe is not None:
        try:
            found = look.probe.compare(before, after, function=look.function)
        except ModelError as refusal:
            reason = str(refusal)
    return {"laziness": None if found is None else found.to_dict(), "no_laziness": reason}


def _certificate(stage: Stage, look: _Look, features: Tensor, draws: int) -> Values:
    """Q15; or why there is none."""
    seed = derived_seed(stage.plan.seed, "theory certificate", stage.task.index)
    try:
        found, reason = certificate(stage, look, features, draws=draws, seed=seed)
    except (ConfigError, DataError, ModelError) as refusal:
        found, reason = None, str(refusal)
    return {"certificate": None if found is None else found.to_dict(), "no_certificate": reason}


def _joined(*parts: list[Values]) -> list[Values]:
    """Lists of values of the same past tasks, task by task."""
    return [{key: value for part in row for key, value in part.items()} for row in zip(*parts, strict=True)]
