"""Task and TaskStream: what arrives one after the other, and the checks that nothing leaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tangentcl.data.samples import Samples, Transform
from tangentcl.data.table import Source, Table
from tangentcl.errors import DataError

__all__ = ["Samples", "Source", "Table", "Task", "TaskStream", "Transform"]

SCENARIOS = ("class", "domain", "task", "few_shot")


@dataclass(frozen=True)
class Task:
    """One task of a stream.

    Args:
        index: 0 for the first task.
        name: for tables and plots.
        classes: stream labels that occur in this task.
        new_classes: those of them that no earlier task had.
        n_seen: number of classes seen up to and including this task; the width of a classifier's output.
        n_tasks: length of the stream.
        train: training samples under the training transform.
        train_eval: the same samples under the evaluation transform.
        test: test samples of this task's classes (or domain).
        validation: held-out training samples, or None.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    new_classes: tuple[int, ...]
    n_seen: int
    n_tasks: int
    train: Samples
    train_eval: Samples
    test: Samples
    validation: Samples | None = None

    def splits(self) -> Iterator[tuple[str, Samples]]:
        """The splits that exist with their names: train, test, validation."""
        yield "train", self.train
        yield "test", self.test
        if self.validation is not None:
            yield "validation", self.validation


@dataclass(frozen=True)
class TaskStream:
    """Tasks in the order of their arrival; made by the functions in ``tangentcl.data.streams``.

    Stream labels are contiguous in order of arrival: task 0 has 0 to c0 - 1, the next task goes on with c0.

    Args:
        name: name of the source.
        scenario: "class", "domain", "task" (the evaluator may use the task's classes) or "few_shot".
        tasks: the tasks.
        class_names: names in the order of stream labels.
        class_order: source label of stream label 0, 1, ...
        order_seed: seed of that order; None = the source's own.
        source: where the samples come from.
        options: settings of the stream, for the record.
    """

    name: str
    scenario: str
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    order_seed: int | None
    source: Source
    options: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    @property
    def n_classes(self) -> int:
        """Number of classes in all tasks together."""
        return len(self.class_names)

    def with_transforms(self, train: Transform | None, evaluation: Transform | None) -> TaskStream:
        """The same stream with these transforms for training samples and for everything that is evaluated."""
        tasks = tuple(
            replace(
                task,
                train=task.train.with_transform(train),
                train_eval=task.train_eval.with_transform(evaluation),
                test=task.test.with_transform(evaluation),
                validation=None if task.validation is None else task.validation.with_transform(evaluation),
            )
            for task in self.tasks
        )
        return replace(self, tasks=tasks)

    def describe(self) -> dict[str, Any]:
        """What a record keeps of the stream, as JSON values: sizes per task, orders, the source's fingerprint."""
        first = self.tasks[0]
        transforms = {"train": first.train.transform, "evaluation": first.test.transform}
        return {
            "name": self.name,
            "scenario": self.scenario,
            "n_tasks": len(self),
            "n_classes": self.n_classes,
            "order_seed": self.order_seed,
            "class_order": list(self.class_order),
            "class_names": list(self.class_names),
            "options": self.options,
            "tasks": [
                {
                    "name": task.name,
                    "n_classes": len(task.classes),
                    **{f"n_{split}": len(samples) for split, samples in task.splits()},
                }
                for task in self.tasks
            ],
            "transforms": {key: value.describe() if value is not None else None for key, value in transforms.items()},
            "source": self.source.describe(),
            "fingerprint": self.source.fingerprint,
        }

    def check(self) -> TaskStream:
        """Return the stream itself if it is sound.

        Raises:
            DataError: a sample in two splits or in the training data of two tasks, a class in two tasks where classes
                arrive task by task, an empty task or split, labels that are not contiguous in order of arrival, or a
                label that is not among its task's classes.
        """
        if self.scenario not in SCENARIOS:
            raise DataError(f"Expected a scenario among {', '.join(SCENARIOS)}, got {self.scenario!r}.")
        if not self.tasks:
            raise DataError(f"The stream of {self.name} has no task.")
        n_seen = 0
        for index, task in enumerate(self.tasks):
            _check_task(task, index, len(self))
            expected = tuple(range(n_seen, n_seen + len(task.new_classes)))
            if task.new_classes != expected or task.n_seen != n_seen + len(expected):
                raise DataError(
                    f"Labels must be contiguous in order of arrival: task {task.name} should bring {expected} "
                    f"after {n_seen} classes, but brings {task.new_classes} and counts {task.n_seen}."
                )
            if self.scenario != "domain" and task.classes != task.new_classes:
                again = sorted(set(task.classes) - set(task.new_classes))
                raise DataError(f"Task {task.name} repeats the classes {again} of earlier tasks.")
            n_seen = task.n_seen
        if n_seen != self.n_classes or len(self.class_order) != self.n_classes:
            raise DataError(f"Expected {self.n_classes} classes over all tasks, found {n_seen}.")
        self._check_disjoint()
        return self

    def _check_disjoint(self) -> None:
        places: list[str] = []
        ids: list[np.ndarray] = []
        for task in self.tasks:
            for split, samples in task.splits():
                places.append(f"{split} of task {task.name}")
                ids.append(samples.ids)
        names = np.concatenate(ids)
        if len(np.unique(names)) == len(names):
            return
        where = np.repeat(np.arange(len(places)), [len(values) for values in ids])
        values, counts = np.unique(names, return_counts=True)
        first = values[counts > 1][0]
        found = " and in ".join(dict.fromkeys(places[i] for i in where[names == first]))
        raise DataError(f"Samples in more than one place: {int((counts > 1).sum())}; {first!s} is in {found}.")


def _check_task(task: Task, index: int, n_tasks: int) -> None:
    if (task.index, task.n_tasks) != (index, n_tasks):
        raise DataError(
            f"Task {task.name} says it is number {task.index} of {task.n_tasks}, but is {index} of {n_tasks}."
        )
    if not task.classes:
        raise DataError(f"Task {task.name} has no class.")
    if not np.array_equal(task.train.positions, task.train_eval.positions):
        raise DataError(f"Task {task.name} evaluates other training samples than it trains on.")
    for split, samples in task.splits():
        if not len(samples):
            raise DataError(f"Task {task.name} has no {split} sample. Check the classes or the limits per class.")
        foreign = set(np.unique(samples.labels).tolist()) - set(task.classes)
        if foreign:
            raise DataError(
                f"Task {task.name} has {split} samples of classes {sorted(foreign)}, which are not its own."
            )
