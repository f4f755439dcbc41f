"""Events as points of named curves, the same for every tracker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

_PLACES = {"task", "step", "n_steps"}  # where an event stands, not what it says


@dataclass(frozen=True)
class Reading:
    """What one event adds: ``values`` at the place ``at`` of an axis: steps over all tasks from 1, or tasks from 0."""

    axis: Literal["global_step", "task"]
    at: int
    values: dict[str, float]


class Curves:
    """Names the numbers of a run's events, one object per run.

    Loss terms are ``loss/TERM``, accuracies ``accuracy/task-NNN`` and, over the tasks evaluated, their plain mean
    ``accuracy/mean_of_tasks``. Every other number is ``EVENT/FIELD``. Numbers of a ``step`` lie over the steps of all
    tasks, everything else over tasks. Text, lists, truth values and numbers that are not finite are left out.

    >>> curves = Curves()
    >>> curves.read("step", {"task": 0, "step": 10, "n_steps": 10, "lr": 0.1, "terms": {"distance": 2.0}})
    Reading(axis='global_step', at=10, values={'loss/distance': 2.0, 'step/lr': 0.1})
    >>> curves.read("task_trained", {"task": 0, "steps": 10})
    Reading(axis='task', at=0, values={'task_trained/steps': 10.0})
    >>> curves.read("evaluated", {"task": 0, "accuracy": [0.75, None]}).values
    {'accuracy/task-000': 0.75, 'accuracy/mean_of_tasks': 0.75}
    """

    def __init__(self) -> None:
        self.task = 0
        self._steps_before = 0  # of the tasks that are learned

    def read(self, event: str, fields: Mapping[str, Any]) -> Reading:
        """The points of one event; events are read in order, because steps count from task to task."""
        self.task = fields.get("task", self.task)
        own = {key: value for key, value in fields.items() if key not in _PLACES}
        values: dict[str, float] = {}
        if event == "step":
            values |= numbers(own.pop("terms"), "loss")
        elif event == "evaluated":
            values |= _accuracies(own.pop("accuracy"))
        values |= numbers(own, event)
        if event == "step":
            return Reading("global_step", self._steps_before + fields["step"], values)
        if event == "task_trained":
            self._steps_before += fields["steps"]
        return Reading("task", self.task, values)


def numbers(table: Mapping[str, Any], name: str) -> dict[str, float]:
    """The finite numbers of a nested table under names that begin with ``name/``.

    >>> numbers({"n": 2, "cost": {"seconds": 0.5, "passes": None}, "exact": True, "text": "x"}, "forecast")
    {'forecast/n': 2.0, 'forecast/cost/seconds': 0.5}
    """
    found: dict[str, float] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}/{key}")
        elif isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{name}/{key}"] = float(value)
    return found


def _accuracies(row: list[float | None]) -> dict[str, float]:
    known = {f"accuracy/task-{k:03}": value for k, value in enumerate(row) if value is not None}
    mean = {"accuracy/mean_of_tasks": sum(known.values()) / len(known)} if known else {}
    return {**known, **mean}
