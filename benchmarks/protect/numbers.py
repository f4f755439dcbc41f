"""The numbers of one run, from its record."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.protect.cells import Cell
from tangentcl.records import Record
from tangentcl.reports.selection import accuracies
from tangentcl.reports.tables import run_costs

# name, heading; accuracies are fractions
ACCURACIES = (
    ("last_accuracy", "A_T"),
    ("average_accuracy", "Ā"),
    ("forgetting", "forgetting"),
    ("new_accuracy", "new tasks"),
    ("old_accuracy", "old tasks"),
)
COSTS = (("cpu_seconds", "CPU s"), ("backbone_passes", "passes"), ("state_bytes", "state"), ("memory_bytes", "memory"))

Numbers = dict[str, float | None]


def numbers(cell: Cell, record: Record) -> Numbers:
    r"""Everything in the table, None where a run does not tell.

    ``new_accuracy`` is :math:`\frac1T \sum_k R_{kk}`, the accuracy on each task right after it; ``old_accuracy`` is
    :math:`\frac1{T-1} \sum_{k<T} R_{Tk}`, that on all but the last task at the end. ``memory_bytes`` adds the stored
    samples to the state. ``backbone_passes`` counts a kept feature as one pass, whichever run computed it.
    """
    accuracy = accuracies(record)
    R, metrics, costs = accuracy.matrix, accuracy.metrics, run_costs(record)
    state, stored = costs["state_bytes"], costs["stored_samples"]
    return {
        "last_accuracy": metrics["last_accuracy"],
        "average_accuracy": metrics["average_accuracy"],
        "forgetting": metrics["ffm"],
        "new_accuracy": _mean(np.diag(R)),
        "old_accuracy": _mean(R[-1, :-1]),
        "cpu_seconds": cpu_seconds(cell),
        "backbone_passes": passes(record),
        "state_bytes": state,
        "memory_bytes": None if state is None else state + (stored or 0) * cell.setting.sample_bytes,
    }


def cpu_seconds(cell: Cell) -> float | None:
    """Processor time of training and consolidation over all tasks; the last line of a task counts."""
    if not cell.seconds.exists():
        return None
    lines = [json.loads(line) for line in cell.seconds.read_text().splitlines()]
    return sum({line["task"]: float(line["cpu_seconds"]) for line in lines}.values())


def passes(record: Record) -> float | None:
    """Samples through the backbone, evaluation among them; None for a run that was stopped, which counts anew."""
    if record.events_named("resumed"):
        return None
    own = [event["backbone_passes"] for event in record.events_named("run_finished")]
    return float(sum(own) + sum(event["n"] for event in record.events_named("features"))) if own else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None
