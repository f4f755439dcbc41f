"""The quantities of the theory report for one task, from its features and the moments of past tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg import Spectrum, gram_spectrum, with_constant
from tangentcl.theory import (
    RidgeStep,
    anchored_ridge,
    centred_moment,
    class_forgetting,
    effective_dimension,
    effective_samples,
    evidence_curve,
    held_out_residuals,
    interplay_energy,
    kernel_overlap,
    main_directions,
    mean_features,
    moved_prototypes,
    participation_ratio,
    principal_cosines,
    rademacher_term,
    risk_curve,
    staleness,
    subspace_energy,
    view_correlation,
)

EXACT = 1024  # width up to which second moments are kept whole by default
COSINES = 8  # principal angles that a record keeps for each pair of tasks
RIDGES = torch.logspace(-6, 2, 17, dtype=torch.float64)  # times the mean squared length of a feature
Values = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What the report keeps of a task: moments of its features, and what is often asked of them.

    Attributes:
        moments: with the constant; no sample.
        matrix: second moment [d, d] without the constant. centred: the same around the mean.
        directions: orthonormal columns that hold most of ``centred``, [d, r].
    """

    moments: TaskMoments
    matrix: Tensor
    centred: Tensor
    directions: Tensor

    @property
    def trace(self) -> float:
        """Trace of the kernel of a linear head with bias on the task's samples."""
        return self.moments.features.total


@dataclass(frozen=True)
class PastTask:
    """A learned task: the space it left, and how far it moved a head.

    Attributes:
        predicted: radius of the theory's ridge. head: of the method's linear head; None without one.
    """

    space: Space
    predicted: float
    head: float | None

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain values."""
        moments = self.space.moments
        tensors = {name: getattr(self.space, name) for name in ("matrix", "centred", "directions")}
        kept = {"header": moments.header, "tensors": moments.tensors(), "space": tensors}
        return {**kept, "predicted": self.predicted, "head": self.head}

    @staticmethod
    def restored(state: dict[str, Any]) -> PastTask:
        """From `state_dict`."""
        space = Space(TaskMoments.restored(state["header"], state["tensors"]), **state["space"])
        return PastTask(space, state["predicted"], state["head"])


def space_of(
    features: Tensor, labels: Tensor, *, sketch: str, k: int, energy: float, rank: int, task: int, name: str
) -> Space:
    """The space of some features [n, d] with labels [n].

    Args:
        sketch, k: see `TaskMoments.empty`; "auto" is exact up to a width of 1024 and low rank above.
        energy, rank: see `tangentcl.theory.main_directions`.
    """
    kind = sketch if sketch != "auto" else "exact" if features.shape[1] <= EXACT else "low_rank_diagonal"
    moments = TaskMoments.empty(features.shape[1], sketch=kind, k=k, task=task, name=name)
    moments.add(features, labels)
    matrix, centred = moments.features.matrix()[:-1, :-1].contiguous(), centred_moment([moments])
    return Space(moments, matrix, centred, main_directions(centred, energy=energy, most=rank))


def one_hot(labels: Tensor, n_outputs: int) -> Tensor:
    """Float64 [n, C]."""
    return F.one_hot(labels, n_outputs).to(torch.float64)


def ridge_and_risk(features: Tensor, residual: Tensor, ridge: float | None) -> tuple[Values, RidgeStep]:
    """Q5, Q7, Q8 and Q14 of a task: the risk over strengths, and the theory's step at one of them.

    Args:
        features: [n, d]. residual: what the theory's head still has to learn, [n, C].
        ridge: strength; None takes the one with the lowest leave-one-out risk.
    """
    spectrum = gram_spectrum(features, constant=1.0)
    ridges = RIDGES * float(features.double().square().sum(dim=1).mean() + 1)
    curve = risk_curve(spectrum, residual, ridges)
    strength = float(ridges[curve.best]) if ridge is None else ridge
    at = risk_curve(spectrum, residual, torch.tensor([strength], dtype=torch.float64))
    step = anchored_ridge(with_constant(features, 1.0), residual, torch.zeros_like(residual), strength)
    found = {
        "ridge": strength,
        "risk": {
            "ridges": curve.ridges.tolist(),
            "loo": curve.loo.tolist(),
            "gcv": curve.gcv.tolist(),
            "at_ridge": {"loo": float(at.loo), "gcv": float(at.gcv)},
            "of_nothing": float(residual.square().sum(dim=1).mean()),
        },
        "dimension": dimensions(spectrum.values, strength),
        "radius": step.radius,
        "evidence": evidence(spectrum, residual, ridges),
    }
    return found, step


def evidence(spectrum: Spectrum, residual: Tensor, ridges: Tensor) -> Values | None:
    """Q14; None where nothing is left to learn."""
    if not bool(residual.any()):
        return None
    curve = evidence_curve(spectrum, residual, ridges)
    best, n = curve.best, residual.numel()
    found = {"ridge": curve.ridges, "per_label": curve.log_evidence / n, "noise": curve.noise}
    return {key: float(numbers[best]) for key, numbers in found.items()}


def dimensions(values: Tensor, ridge: float) -> Values:
    """Q8."""
    return {
        "effective": effective_dimension(values, ridge),
        "participation": participation_ratio(values),
        "rank": len(values),
    }


def relations(space: Space, past: Sequence[PastTask]) -> list[Values]:
    """Q3 and Q4 of a task with every past one."""
    return [
        {
            "task": old.space.moments.task,
            "name": old.space.moments.name,
            "n": old.space.moments.n,
            "overlap": kernel_overlap(space.matrix, old.space.matrix),
            "overlap_centred": kernel_overlap(space.centred, old.space.centred),
            "cosines": principal_cosines(space.directions, old.space.directions)[:COSINES].tolist(),
        }
        for old in past
    ]


def interplay(change: Tensor | None, past: Sequence[PastTask]) -> list[Values]:
    """Q1: energy of the drift that a change of a head [d + 1, C] makes on every past task, and per sample."""
    found = []
    for old in past:
        moments = old.space.moments
        energy = None if change is None else interplay_energy(moments.features, change)
        bounds = (None, None) if change is None else moments.features.bounds(change)
        low, high = (None if b is None else float(b.sum()) for b in bounds)
        rms = None if energy is None else (energy / moments.n) ** 0.5
        found.append({"interplay": energy, "interplay_low": low, "interplay_high": high, "interplay_rms": rms})
    return found


def rademacher(radius: float | None, space: Space, past: Sequence[PastTask], *, predicted: bool) -> list[Values]:
    """Q6: what this task adds to the bounds of past tasks, and what they add to this one's (``rademacher_back``)."""
    found = []
    for old in past:
        moments, theirs = old.space.moments, old.predicted if predicted else old.head
        found.append(
            {
                "rademacher": None if radius is None else rademacher_term(radius, old.space.trace, moments.n),
                "rademacher_back": None if theirs is None else rademacher_term(theirs, space.trace, space.moments.n),
            }
        )
    return found


def old_energy(features: Tensor, past: Sequence[PastTask], *, energy: float, rank: int) -> Values | None:
    """Q12: how much of the features lies where past tasks are; None without any."""
    if not past:
        return None
    moments = [old.space.moments for old in past]
    basis = main_directions(centred_moment(moments), energy=energy, most=rank)
    return {"energy": subspace_energy(features, basis, mean_features(moments)), "directions": basis.shape[1]}


def class_drift(change: Tensor, past: Sequence[PastTask], names: Sequence[str]) -> list[Values]:
    """Q2 by class: how the mean outputs of every old class would move, its own output's change and the whole."""
    found = []
    for old in past:
        drift = class_forgetting(old.space.moments, change)  # [K, C]
        for label, row in zip(old.space.moments.classes.tolist(), drift):
            own = float(row[label]) if label < len(row) else None
            found.append(
                {
                    "task": old.space.moments.task,
                    "class": label,
                    "name": class_name(label, names),
                    "own": own,
                    "size": float(row.norm()),
                }
            )
    return found


def class_name(label: int, names: Sequence[str]) -> str:
    """Its name, or its label where it has none."""
    return names[label] if label < len(names) else str(label)


def view_quantities(views: Tensor, targets: Tensor, ridge: float, n: int, kind: str) -> Values:
    """Q10, from views [V, m, d] of some samples.

    Args:
        targets: [m, C]. n: samples of the task. kind: of views, in words.
    """
    V = len(views)
    correlation = view_correlation(held_out_residuals(views, targets, ridge))
    worth = effective_samples(n, V, max(correlation, 0.0))
    return {"kind": kind, "views": V, "correlation": correlation, "effective": worth, "times": worth / n}


def prototype_staleness(
    before: Tensor, after: Tensor, labels: Tensor, past: Sequence[PastTask], names: Sequence[str]
) -> Values:
    """Q11: of the task's own classes as measured, and of old ones as its samples' movement predicts.

    Args:
        before, after: features of the task's samples, [n, d]. labels: [n].
    """
    classes = labels.unique()
    stored, now = (torch.stack([h[labels == c].double().mean(dim=0) for c in classes]) for h in (before, after))
    own = [
        {"class": int(c), "name": class_name(int(c), names), "cosine": float(cosine)}
        for c, cosine in zip(classes, staleness(stored, now))
    ]
    old = []
    for task in past:
        moments = task.space.moments
        means = moments.means[:, :-1]
        for label, cosine in zip(moments.classes.tolist(), staleness(means, moved_prototypes(means, before, after))):
            old.append(
                {
                    "task": moments.task,
                    "class": label,
                    "name": class_name(label, names),
                    "cosine": float(cosine),
                }
            )
    return {"own": own, "old": old}
