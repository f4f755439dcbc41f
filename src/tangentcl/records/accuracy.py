"""The accuracies of a run: the content of ``accuracy.json``, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, RecordError, nearest
from ..metrics import SCENARIOS, summary

SCHEMA = 1


@dataclass(frozen=True)
class Accuracy:
    """Accuracies of one run, checked to fit together when constructed.

    Attributes:
        scenario: "class", "domain", "task" or "few_shot".
        task_names: [T]; class_names: [C] in stream order; task_classes: [T] lists of stream labels.
        n_test: [T] int64, test samples per task.
        matrix: [T, T] fractions, NaN where not evaluated.
        class_correct: [T, C] right answers per class after each task, NaN where not counted; or None.
        class_total: [C] int64 test samples per class; or None.
        metrics: `tangentcl.metrics.summary` of the above.

    Raises:
        RecordError: what does not fit, by name.
    """

    scenario: str
    task_names: tuple[str, ...]
    class_names: tuple[str, ...]
    task_classes: tuple[tuple[int, ...], ...]
    n_test: npt.NDArray[np.int64]
    matrix: npt.NDArray[np.float64]
    class_correct: npt.NDArray[np.float64] | None
    class_total: npt.NDArray[np.int64] | None
    metrics: Mapping[str, Any]

    @staticmethod
    def of(
        *,
        scenario: str,
        task_names: Sequence[str],
        class_names: Sequence[str],
        task_classes: Sequence[Sequence[int]],
        n_test: npt.ArrayLike,
        matrix: npt.ArrayLike,
        class_correct: npt.ArrayLike | None = None,
        class_total: npt.ArrayLike | None = None,
    ) -> Accuracy:
        """Check the parts against each other, blank counts of classes not seen yet, and compute the metrics.

        >>> a = Accuracy.of(scenario="class", task_names=["a", "b"], class_names=["x", "y"], task_classes=[[0], [1]],
        ...                 n_test=[4, 2], matrix=[[1.0, None], [0.75, 1.0]])
        >>> a.metrics["ffm"]
        0.25
        """
        n_tasks, n_classes = len(task_names), len(class_names)
        if scenario not in SCENARIOS:
            raise RecordError(f"unknown scenario {scenario!r}.{nearest(str(scenario), SCENARIOS)}")
        tasks = tuple(tuple(_whole(c, "task_classes") for c in classes) for classes in task_classes)
        if len(tasks) != n_tasks:
            raise RecordError(f"task_classes must have one list per task ({n_tasks}), got {len(tasks)}")
        outside = [c for classes in tasks for c in classes if not 0 <= c < n_classes]
        if outside:
            raise RecordError(f"task_classes names class {outside[0]}, but there are {n_classes} class names")
        test = _array(n_test, (n_tasks,), "n_test")
        R = _array(matrix, (n_tasks, n_tasks), "matrix")
        correct = total = None
        if class_correct is not None and class_total is not None:
            total = _array(class_total, (n_classes,), "class_total")
            rows = [[np.nan] * n_classes if row is None else row for row in _rows(class_correct)]
            correct = _array(rows, (n_tasks, n_classes), "class_correct")
            correct = np.where(_seen(tasks, n_classes), correct, np.nan)
        try:
            metrics = summary(R, test, correct, total, scenario)
        except DataError as error:
            raise RecordError(str(error)) from error
        return Accuracy(
            scenario=scenario,
            task_names=tuple(map(str, task_names)),
            class_names=tuple(map(str, class_names)),
            task_classes=tasks,
            n_test=test.astype(np.int64),
            matrix=R,
            class_correct=correct,
            class_total=None if total is None else total.astype(np.int64),
            metrics=metrics,
        )

    @staticmethod
    def from_json(content: Mapping[str, Any], where: str) -> Accuracy:
        """From the content of ``accuracy.json``; ``where`` names the file in errors."""
        schema = content.get("schema")
        if schema != SCHEMA:
            raise RecordError(
                f"{where} has schema {schema!r}, this version reads {SCHEMA}. Written by a newer tangentcl?"
            )
        keys = ("scenario", "task_names", "class_names", "task_classes", "n_test", "matrix")
        for key in keys:
            if key not in content:
                raise RecordError(f"{where} is damaged: {key!r} is missing")
            if key != "scenario" and not isinstance(content[key], list):
                raise RecordError(f"{where} is damaged: {key!r} must be a list, got {type(content[key]).__name__}")
        try:
            return Accuracy.of(
                **{key: content[key] for key in keys},
                class_correct=content.get("class_correct"),
                class_total=content.get("class_total"),
            )
        except (RecordError, TypeError) as error:
            raise RecordError(f"{where} is damaged: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The content of ``accuracy.json``; a stage without any count becomes null."""
        correct = None
        if self.class_correct is not None:
            correct = [
                None if np.isnan(row).all() else [None if np.isnan(v) else int(v) for v in row]
                for row in self.class_correct
            ]
        return {
            "schema": SCHEMA,
            "scenario": self.scenario,
            "task_names": list(self.task_names),
            "class_names": list(self.class_names),
            "task_classes": [list(classes) for classes in self.task_classes],
            "n_test": self.n_test,
            "matrix": self.matrix,
            "class_correct": correct,
            "class_total": self.class_total,
            "metrics": dict(self.metrics),
        }


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise RecordError(f"{name} must hold whole numbers, got {value!r}")
    return int(value)


def _rows(values: npt.ArrayLike) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple, np.ndarray)) else [values]


def _array(values: Any, shape: tuple[int, ...], name: str) -> npt.NDArray[np.float64]:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{name} must hold numbers in shape {list(shape)}: {error}") from error
    if array.shape != shape:
        raise RecordError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
    return array


def _seen(tasks: tuple[tuple[int, ...], ...], n_classes: int) -> npt.NDArray[np.bool_]:
    """[T, C]: class c belongs to one of the tasks 0..t."""
    seen = np.zeros((len(tasks), n_classes), dtype=bool)
    for t, classes in enumerate(tasks):
        seen[t:, list(classes)] = True
    return seen
