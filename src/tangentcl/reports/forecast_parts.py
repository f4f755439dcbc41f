"""What the figures of a forecast draw: its old samples, its classes, and the energy in its modes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..records.forecasts import TaskForecast
from .forecasts import value

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Points:
    """Old samples, predicted against real: the drift's size (root mean square over outputs) and the margin's change.

    The margin is the output of the true class minus the largest other output: over all C outputs, or over those of the
    sample's own task where only they compete.

    Attributes:
        position: of each sample among the old samples of the forecast, int64 [k].
        labels, tasks: class and past task, int64 [k].
        rms: predicted and real, [2, k]. margin: change, predicted and real, [2, k]; NaN where no other output competes.
        n: old samples of the forecast, of which k were drawn at random.
    """

    position: Positions
    labels: Positions
    tasks: Positions
    rms: Array
    margin: Array
    n: int


def points(forecast: TaskForecast, limit: int = 400, seed: int = 0) -> Points | None:
    """At most ``limit`` of the old samples, drawn with ``seed``; None before the truth is known."""
    arrays = forecast.arrays
    if "real_drift" not in arrays or not len(arrays["labels"]):
        return None
    n = len(arrays["labels"])
    position = np.arange(n)
    if n > limit:
        position = np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))
    labels = arrays["labels"][position].astype(np.int64)
    outputs = arrays["outputs"][position].astype(np.float64)
    drifts = [arrays[name][position].astype(np.float64) for name in ("drift", "real_drift")]
    competing = _competing(forecast, position, outputs.shape[1])
    before = _margin(outputs, labels, competing)
    return Points(
        position=position,
        labels=labels,
        tasks=arrays["tasks"][position].astype(np.int64),
        rms=np.stack([np.sqrt(np.mean(d**2, axis=1)) for d in drifts]),
        margin=np.stack([_margin(outputs + d, labels, competing) - before for d in drifts]),
        n=n,
    )


def _competing(forecast: TaskForecast, position: Positions, n_outputs: int) -> npt.NDArray[np.bool_]:
    """Outputs that compete for each of some samples, [k, C]: all, or the classes that occur in its own past task."""
    if forecast.summary.get("competing") != "own task":
        return np.ones((len(position), n_outputs), dtype=bool)
    labels, tasks = (forecast.arrays[name].astype(np.int64) for name in ("labels", "tasks"))
    of_task = np.zeros((int(tasks.max()) + 1, n_outputs), dtype=bool)
    of_task[tasks, labels] = True
    return np.asarray(of_task[tasks[position]])


def _margin(outputs: Array, labels: Positions, competing: npt.NDArray[np.bool_]) -> Array:
    rows = np.arange(len(outputs))
    others = np.where(competing, outputs, -np.inf)
    others[rows, labels] = -np.inf
    largest = others.max(axis=1)
    return np.where(np.isfinite(largest), outputs[rows, labels] - largest, np.nan)


@dataclass(frozen=True)
class ClassChange:
    """Accuracy on a class: now, predicted and, once known, real."""

    name: str
    n: int
    now: float
    predicted: float
    real: float | None

    @property
    def loss(self) -> float:
        """The larger of predicted and real loss, so that a loss nobody foresaw is not hidden."""
        return self.now - min(self.predicted, self.predicted if self.real is None else self.real)


def class_changes(forecast: TaskForecast) -> list[ClassChange]:
    """All past classes, worst first."""
    found = [
        ClassChange(str(c["name"]), int(c["n"]), float(c["now"]), float(c["predicted"]), c.get("real"))
        for c in forecast.summary.get("classes") or ()
    ]
    return sorted(found, key=lambda c: -c.loss)


@dataclass(frozen=True)
class Energy:
    """Shares of the drift's energy in the eigenspaces of the old kernel, by descending eigenvalue, [m].

    Attributes:
        cumulative: share in the 1, 2, ..., m eigenspaces that hold the most, [m].
        outside: share in no eigenspace.
    """

    task: int
    name: str
    shares: Array
    cumulative: Array
    outside: float

    def rank(self, share: float) -> int | None:
        """Fewest eigenspaces that hold this share; None where all together hold less."""
        reached = np.flatnonzero(self.cumulative >= share * (1 - 1e-12))
        return int(reached[0]) + 1 if len(reached) else None


def energy(forecast: TaskForecast) -> Energy | None:
    """The energy of the forecast's drift; None where there is no kernel or no drift."""
    inside = forecast.arrays.get("energy")
    if inside is None or not len(inside) or not float(inside.sum()) > 0:
        return None
    outside = value(forecast, "modes", "outside_share") or 0.0
    shares = inside.astype(np.float64) / float(inside.sum()) * (1 - outside)
    return Energy(forecast.task, forecast.name, shares, np.sort(shares)[::-1].cumsum(), outside)
