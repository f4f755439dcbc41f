"""What figures and detail tables show of a row: means over its seeds, in the figures' own shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..metrics import forgetting_per_task, session_accuracy
from ..records import Record
from .figures import Series
from .selection import accuracies
from .tables import Cell, Row

Array = npt.NDArray[np.float64]
DRAWN = 800


@dataclass(frozen=True)
class ClassLoss:
    """A class and what was forgotten of it: best accuracy before the last task, accuracy after it (mean over seeds)."""

    name: str
    task: str
    forgetting: Cell
    best: float
    last: float


def mean_matrix(row: Row) -> Array:
    """Accuracy matrix [T, T], mean over seeds; NaN where a seed did not evaluate."""
    return np.mean([accuracies(r).matrix for r in row.records], axis=0)


def task_names(row: Row) -> list[str]:
    """Names of the tasks, or plain "task 1", ... where the seeds order them differently."""
    names = [accuracies(r).task_names for r in row.records]
    if all(n == names[0] for n in names):
        return list(names[0])
    return [f"task {t}" for t in range(1, len(names[0]) + 1)]


def accuracy_series(row: Row, label: str, slot: int) -> Series:
    """Accuracy over all seen classes after each task (sample mean), mean ± standard deviation over seeds."""
    return _series(label, slot, [session_accuracy(a.matrix, a.n_test) for a in map(accuracies, row.records)])


def forgetting_series(row: Row, label: str, slot: int) -> Series | None:
    """Forgetting per task, mean ± standard deviation over seeds; None where a seed's matrix does not tell."""
    found = [accuracies(r) for r in row.records]
    if any(a.metrics["ffm"] is None for a in found):
        return None
    return _series(label, slot, [forgetting_per_task(a.matrix) for a in found])


def _series(label: str, slot: int, values: list[Array]) -> Series:
    stack = np.stack(values)  # [seeds, T]
    mean = stack.mean(axis=0)
    if len(stack) < 2:
        return Series(label, slot, mean)
    std = stack.std(axis=0, ddof=1)
    return Series(label, slot, mean, mean - std, mean + std)


def worst_classes(row: Row, count: int = 10) -> list[ClassLoss]:
    """The classes that lost most accuracy, by name over all seeds that have the number; only those that lost any."""
    drops: dict[str, list[tuple[float, float]]] = {}
    tasks: dict[str, list[str]] = {}
    for a in map(accuracies, row.records):
        forgetting = a.metrics["forgetting_per_class"]
        if forgetting is None or a.class_correct is None or a.class_total is None:
            continue
        for c, drop in enumerate(forgetting):
            if drop is not None:
                last = float(a.class_correct[-1, c] / a.class_total[c])
                drops.setdefault(a.class_names[c], []).append((drop, last))
                task = next(name for name, classes in zip(a.task_names, a.task_classes) if c in classes)
                tasks.setdefault(a.class_names[c], []).append(task)
    found = []
    for name, pairs in drops.items():
        cell = Cell.of(drop for drop, _ in pairs)
        last = float(np.mean([last for _, last in pairs]))
        if cell is not None and cell.mean > 0:
            found.append(ClassLoss(name, " / ".join(dict.fromkeys(tasks[name])), cell, cell.mean + last, last))
    return sorted(found, key=lambda c: -c.forgetting.mean)[:count]


@dataclass(frozen=True)
class Losses:
    """Loss terms over optimiser steps, counted through all tasks; ``seeds`` says which runs are averaged."""

    terms: list[Series]
    steps: Array
    starts: list[tuple[int, float]]
    seeds: tuple[int, ...]


def losses(row: Row) -> Losses | None:
    """Mean over seeds where all logged the same steps, else the first seed alone; None when nothing was trained.

    Long curves are averaged over neighbouring entries of a task, to about `DRAWN` of them.
    """
    curves = [_curve(r) for r in row.records]
    if not len(curves[0][0]):
        return None
    steps, starts, _ = curves[0]
    alike = [c for c in curves if np.array_equal(c[0], steps)]
    used = curves if len(alike) == len(curves) else curves[:1]
    names = list(dict.fromkeys(name for _, _, terms in used for name in terms))
    empty = np.full(len(steps), np.nan)
    means = [np.mean([t.get(n, empty) for _, _, t in used], axis=0) for n in names]
    blocks = _blocks(steps, starts)
    terms = [Series(n, i, np.array([mean[b].mean() for b in blocks])) for i, (n, mean) in enumerate(zip(names, means))]
    return Losses(terms, np.array([steps[b][-1] for b in blocks]), starts, row.seeds[: len(used)])


def _blocks(steps: Array, starts: list[tuple[int, float]]) -> list[slice]:
    size = -(-len(steps) // DRAWN)
    bounds = [*np.searchsorted(steps, [start for _, start in starts], side="right").tolist(), len(steps)]
    return [slice(i, min(i + size, end)) for begin, end in pairwise(bounds) for i in range(begin, end, size)]


def _curve(record: Record) -> tuple[Array, list[tuple[int, float]], dict[str, Array]]:
    """Steps counted through all tasks, the step each task starts at, and each term at each step (NaN if absent).

    The counter may restart with every task or run on.
    """
    events = [e for e in record.events_named("step") if isinstance(e.get("step"), (int, float))]
    steps: list[float] = []
    starts: list[tuple[int, float]] = []
    task, offset, raw = None, 0.0, 0.0
    for event in events:
        if event.get("task") != task:
            task = event.get("task")
            end = steps[-1] if steps else 0.0
            offset = end if event["step"] <= raw else offset
            starts.append((int(task or 0), end))
        raw = float(event["step"])
        steps.append(offset + raw)
    names = dict.fromkeys(name for e in events for name in _terms(e))
    values = {n: np.array([_terms(e).get(n, np.nan) for e in events], dtype=np.float64) for n in names}
    return np.array(steps), starts, values


def _terms(event: object) -> dict[str, float]:
    terms = event.get("terms") if isinstance(event, dict) else None
    return {k: np.nan if v is None else v for k, v in terms.items()} if isinstance(terms, dict) else {}


def labels(rows: Sequence[Row]) -> list[str]:
    """A label per row that tells it from the others: with the experiment in front where labels repeat."""
    plain = [r.label for r in rows]
    return [label if plain.count(label) == 1 else f"{r.experiment}/{label}" for r, label in zip(rows, plain)]
