"""Forecasts of a run as files: what was said before each task, and beside it what came true."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RecordError
from ..files import Damaged, metadata, sealed
from .files import atomic_write, listed, plain, read_bytes, read_json, refused, write_json

FOLDER = "forecasts"
STATUSES = ("forecast", "refused")

Arrays = Mapping[str, npt.NDArray[Any]]

_NAME = re.compile(r"task-(\d{3,})\.(json|safetensors)")
_PARTS = {"accuracy": dict, "classes": list, "tasks": list, "at_risk": list, "flips": dict, "modes": dict, "cost": dict}
_OVER_SAMPLES = ("labels", "tasks", "outputs", "drift")
_OVER_MODES = ("values", "multiplicity", "energy")


@dataclass(frozen=True)
class TaskForecast:
    """What was forecast before one task, and what came true.

    Attributes:
        task: index of the task that was about to be learned, from 0. name: of that task.
        summary: see `docs/experiments.md`; ``status`` is "forecast" or "refused" (with a ``reason``), and what needs
            the truth is None before the task was learned.
        arrays: empty for a refused forecast, else ``labels`` and ``tasks`` int64 [n] (class and past task of each old
            sample), ``outputs`` and ``drift`` float32 [n, C], ``real_drift`` [n, C] once the task was learned, and
            ``values``, ``energy`` float64 [m], ``multiplicity`` int64 [m] of the old kernel's eigenspaces by descending
            eigenvalue; ``new_labels``, ``new_outputs``, ``new_drift``, ``new_real_drift`` where held-out samples of
            the new task were forecast as well.
    """

    task: int
    name: str
    summary: Mapping[str, Any]
    arrays: Arrays


def write_forecast(folder: str | Path, forecast: TaskForecast) -> Path:
    """Write ``folder/forecasts/task-NNN.json`` and ``.safetensors``, each in one piece; what was there is replaced.

    Args:
        folder: of the record; made when missing.
        forecast: NNN is its task; ``task`` and ``name`` are added to its summary.

    Returns:
        the path of the JSON file.

    Raises:
        RecordError: what `read_forecasts` would refuse, or the disk refuses.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> path = write_forecast(folder, TaskForecast(1, "2, 3", {"status": "refused", "reason": "nothing trains"}, {}))
    >>> path.name, [(found.task, found.summary["reason"]) for found in read_forecasts(folder)]
    ('task-001.json', [(1, 'nothing trains')])
    """
    from safetensors.numpy import save

    summary = plain({"task": forecast.task, "name": forecast.name, **forecast.summary}, "summary")
    arrays = {key: np.ascontiguousarray(value) for key, value in forecast.arrays.items()}
    path = Path(folder) / FOLDER / f"task-{forecast.task:03d}.json"
    _check(path, summary)
    if summary["status"] == "forecast":
        _check_arrays(path.with_suffix(".safetensors"), arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused("make the folder", path.parent, error) from error
    if summary["status"] == "forecast":
        atomic_write(path.with_suffix(".safetensors"), sealed(save(arrays)))
    write_json(path, summary)  # last: without it the arrays are no forecast
    return path


def read_forecasts(folder: str | Path) -> list[TaskForecast]:
    """The forecasts of a record by task; none where nothing was forecast.

    Raises:
        RecordError: a missing or damaged file, by name, and what is wrong with it.
    """
    named = [path for path in listed(Path(folder) / FOLDER) if _NAME.fullmatch(path.name)]
    return [_read(path) for path in sorted(named, key=lambda p: int(p.stem[5:])) if path.suffix == ".json"]


def remove_forecasts(folder: Path) -> None:
    """Remove the forecasts of a record that is written again.

    Raises:
        RecordError: the disk refuses.
    """
    for path in listed(folder / FOLDER):
        if _NAME.fullmatch(path.name):
            try:
                path.unlink()
            except OSError as error:
                raise refused("remove", path, error) from error


def _read(path: Path) -> TaskForecast:
    summary = read_json(path)
    _check(path, summary)
    arrays: Arrays = {}
    if summary["status"] == "forecast":
        arrays = _read_arrays(path.with_suffix(".safetensors"))
    return TaskForecast(int(summary["task"]), str(summary["name"]), summary, arrays)


def _read_arrays(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = read_bytes(path)
    try:
        metadata(content)
        arrays = load(content)
    except (Damaged, SafetensorError, KeyError) as error:  # KeyError: a type of numbers that numpy does not have
        raise RecordError(f"{path} is damaged: {error}. Run the experiment again, or leave the file out.") from error
    _check_arrays(path, arrays)
    return arrays


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    task, status = summary.get("task"), summary.get("status")
    if type(task) is not int or task < 0 or path.stem != f"task-{task:03d}":
        raise RecordError(f"{path} is damaged: 'task' must be a number from 0 as in the file's name, got {task!r}")
    if not isinstance(summary.get("name"), str):
        raise RecordError(f"{path} is damaged: 'name' must be text, got {summary.get('name')!r}")
    if status not in STATUSES:
        raise RecordError(f"{path} is damaged: status must be one of {', '.join(STATUSES)}, got {status!r}")
    if status == "refused":
        if not isinstance(summary.get("reason"), str):
            raise RecordError(f"{path} is damaged: a refused forecast needs a reason, got {summary.get('reason')!r}")
        return
    for key, kind in _PARTS.items():
        if not isinstance(summary.get(key), kind):
            got = json.dumps(summary.get(key))[:60]
            raise RecordError(
                f"{path} is damaged: {key!r} must be {'a list' if kind is list else 'an object'}, got {got}"
            )


def _check_arrays(path: Path, arrays: Arrays) -> None:
    for keys in (_OVER_SAMPLES, _OVER_MODES):
        if missing := [key for key in keys if key not in arrays]:
            raise RecordError(f"{path} is damaged: the arrays {', '.join(missing)} are missing")
        lengths = {key: len(arrays[key]) for key in keys}
        if len(set(lengths.values())) > 1:
            raise RecordError(f"{path} is damaged: lengths differ, {lengths}")
    outputs = arrays["outputs"].shape
    for key in ("drift", "real_drift"):
        if key in arrays and (arrays[key].shape != outputs or len(outputs) != 2):
            raise RecordError(f"{path} is damaged: {key} is {arrays[key].shape}, the outputs are {outputs}")
