"""The theory report of a run as files: what theory said of each task, before it was learned and after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecordError
from .files import listed, plain, read_json, refused, write_json

FOLDER = "theory"
STATUSES = ("before", "learned", "refused")

_NAME = re.compile(r"task-(\d{3,})\.json")
_LISTS = {"before": ("past", "class_drift"), "after": ("past",)}
_TABLES = {"before": ("risk", "dimension", "views"), "after": ("dimension", "radius", "staleness")}


@dataclass(frozen=True)
class TaskTheory:
    """The quantities of one task.

    Attributes:
        task: index of the task, from 0. name: of that task.
        values: see `docs/theory.md`; ``status`` is "before" (the task is not learned yet), "learned" or "refused" (with
            a ``reason``), ``before`` and ``after`` hold the quantities, None where they are not known.
    """

    task: int
    name: str
    values: Mapping[str, Any]

    @property
    def before(self) -> Mapping[str, Any] | None:
        """What was known before the task."""
        return self.values.get("before")

    @property
    def after(self) -> Mapping[str, Any] | None:
        """What was known after it."""
        return self.values.get("after")

    @property
    def light(self) -> str | None:
        """Validity of derived numbers, "green", "amber" or "red"; None where it was not measured."""
        laziness = (self.after or {}).get("laziness")
        return None if laziness is None else str(laziness["light"])


def write_theory(folder: str | Path, theory: TaskTheory) -> Path:
    """Write ``folder/theory/task-NNN.json`` in one piece, in place of what was there.

    Args:
        folder: of the record; made when missing.
        theory: NNN is its task; ``task`` and ``name`` are added to its values.

    Raises:
        RecordError: what `read_theory` would refuse, or the disk refuses.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_theory(folder, TaskTheory(1, "2, 3", {"status": "refused", "reason": "no features"})).name
    'task-001.json'
    >>> [(found.task, found.values["reason"]) for found in read_theory(folder)]
    [(1, 'no features')]
    """
    values = plain({"task": theory.task, "name": theory.name, **theory.values}, "theory")
    path = Path(folder) / FOLDER / f"task-{theory.task:03d}.json"
    _check(path, values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused("make the folder", path.parent, error) from error
    write_json(path, values)
    return path


def read_theory(folder: str | Path) -> list[TaskTheory]:
    """The theory report of a record by task; empty where there is none.

    Raises:
        RecordError: a damaged file, by name, and what is wrong with it.
    """
    found = []
    for path in sorted(listed(Path(folder) / FOLDER), key=lambda p: (len(p.stem), p.stem)):
        if _NAME.fullmatch(path.name):
            values = read_json(path)
            _check(path, values)
            found.append(TaskTheory(int(values["task"]), str(values["name"]), values))
    return found


def remove_theory(folder: Path) -> None:
    """Remove the theory report of a record that is written again.

    Raises:
        RecordError: the disk refuses.
    """
    for path in listed(folder / FOLDER):
        if _NAME.fullmatch(path.name):
            try:
                path.unlink()
            except OSError as error:
                raise refused("remove", path, error) from error


def _check(path: Path, values: Mapping[str, Any]) -> None:
    task, status = values.get("task"), values.get("status")
    if type(task) is not int or task < 0 or path.stem != f"task-{task:03d}":
        raise RecordError(f"{path} is damaged: 'task' must be a number from 0 as in the file's name, got {task!r}")
    if not isinstance(values.get("name"), str):
        raise RecordError(f"{path} is damaged: 'name' must be text, got {values.get('name')!r}")
    if status not in STATUSES:
        raise RecordError(f"{path} is damaged: status must be one of {', '.join(STATUSES)}, got {status!r}")
    if status == "refused" and not isinstance(values.get("reason"), str):
        raise RecordError(f"{path} is damaged: refused quantities need a reason, got {values.get('reason')!r}")
    needed = {"before": ("before",), "learned": ("before", "after"), "refused": ()}[status]
    for when in ("before", "after"):
        part = values.get(when)
        if part is None and when not in needed:
            continue
        if not isinstance(part, Mapping):
            raise RecordError(f"{path} is damaged: {when!r} must be an object, got {part!r}")
        for kind, keys in ((list, _LISTS[when]), (Mapping, _TABLES[when])):
            for key in keys:
                if not isinstance(part.get(key), kind):
                    said = "a list" if kind is list else "an object"
                    raise RecordError(f"{path} is damaged: {when}.{key} must be {said}, got {part.get(key)!r}")
