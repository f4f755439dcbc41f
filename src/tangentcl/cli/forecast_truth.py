"""What a run's record knows about a forecast that was made from it afterwards: accuracies before and after the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tangentcl.records import Accuracy, Record

Summary = Mapping[str, Any]
SAME = 1e-6  # accuracies further apart than this are not those of the same learner


def with_truth(summary: Summary, record: Record) -> tuple[Summary, tuple[str, ...]]:
    """The summary with the real accuracies of the run, and a note where the learner before the task is another.

    Only where all old samples were forecast, and with the recipe of the run; otherwise the summary stays as it is.

    Args:
        summary: of the forecast of one of the run's tasks.
        record: of the run; an unfinished one may not know.
    """
    accuracy, task = record.accuracy, int(summary["task"])
    if accuracy is None or summary["n_old"] != summary["n_old_available"]:
        return summary, ()
    before = _mean(accuracy, task - 1, summary["tasks"])
    notes: tuple[str, ...] = ()
    if before is not None and abs(before - summary["accuracy"]["now"]) > SAME:
        now = 100 * summary["accuracy"]["now"]
        notes = (f"the run had {100 * before:.1f} % here and the learner built again has {now:.1f} %: other versions?",)
    real = _mean(accuracy, task, summary["tasks"])
    if real is None:
        return summary, notes
    tasks = [{**one, "real": float(accuracy.matrix[task, one["task"]])} for one in summary["tasks"]]
    classes = [{**one, "real": _of_class(accuracy, task, one["class"])} for one in summary["classes"]]
    return {**summary, "accuracy": {**summary["accuracy"], "real": real}, "tasks": tasks, "classes": classes}, notes


def _mean(accuracy: Accuracy, stage: int, tasks: Sequence[Summary]) -> float | None:
    """Accuracy over the samples of some tasks after a stage; None where one was not evaluated."""
    shares = [float(accuracy.matrix[stage, one["task"]]) for one in tasks]
    if any(math.isnan(share) for share in shares):
        return None
    return sum(share * one["n"] for share, one in zip(shares, tasks)) / sum(one["n"] for one in tasks)


def _of_class(accuracy: Accuracy, stage: int, number: int) -> float | None:
    """Accuracy on a class after a stage; None where it also has samples in tasks that are not old."""
    if accuracy.class_correct is None or accuracy.class_total is None or accuracy.scenario == "domain":
        return None
    correct = float(accuracy.class_correct[stage, number])
    return None if math.isnan(correct) else correct / float(accuracy.class_total[number])
