"""Which records enter a table, and which of them saw the same stream."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..records import Accuracy, Record

SCENARIOS = {
    "class": "class-incremental",
    "domain": "domain-incremental",
    "task": "task-incremental",
    "few_shot": "few-shot class-incremental",
}


@dataclass(frozen=True)
class Selection:
    """Records that are done, and (folder, reason) of those that are left out."""

    done: tuple[Record, ...]
    excluded: tuple[tuple[str, str], ...]


def select(records: Iterable[Record | str | Path]) -> Selection:
    """Keep the finished records; folders are read here, and one that cannot be read is left out with the reason.

    A second record of the same experiment, label, seed and stream is left out too: it would count as another seed.
    """
    done: list[Record] = []
    excluded: list[tuple[str, str]] = []
    first: dict[tuple[Any, ...], Record] = {}
    for given in records:
        try:
            record = given if isinstance(given, Record) else Record.read(given)
        except RecordError as error:
            excluded.append((str(given), str(error)))
            continue
        if record.status.status != "done" or record.accuracy is None:
            reason = f": {record.status.reason}" if record.status.reason else ""
            excluded.append((str(record.folder), f"{record.status.status}{reason}"))
            continue
        key = (record.experiment, record.label, record.seed, stream_key(record))
        if key in first:
            excluded.append((str(record.folder), f"same experiment, label and seed as {first[key].folder}"))
            continue
        first[key] = record
        done.append(record)
    return Selection(tuple(done), tuple(excluded))


def accuracies(record: Record) -> Accuracy:
    """The accuracies of a finished record."""
    if record.accuracy is None:
        raise RecordError(f"{record.folder} has no accuracies: its status is {record.status.status!r}")
    return record.accuracy


def stream_key(record: Record) -> tuple[Any, ...]:
    """Equal for runs on the same stream up to the order of its classes, which may follow the seed."""
    a, stream = accuracies(record), _stream(record)
    sizes = tuple(sorted(len(classes) for classes in a.task_classes))
    return (stream.get("name", ""), stream.get("fingerprint", ""), a.scenario, len(a.class_names), sizes)


def stream_title(record: Record) -> str:
    """The stream in words, with numbers."""
    a = accuracies(record)
    name = _stream(record).get("name") or "stream"
    tasks = "1 task" if len(a.task_names) == 1 else f"{len(a.task_names)} tasks"
    return f"{name}: {tasks}, {len(a.class_names)} classes, {SCENARIOS[a.scenario]}"


def same_problem(record: Record) -> tuple[Any, ...] | None:
    """Equal for runs whose accuracies may be subtracted: the same stream in the same order, seed and backbone.

    None when the record does not tell (no fingerprint of the stream), so that nothing is compared by accident.
    """
    a, stream = accuracies(record), _stream(record)
    if not stream.get("fingerprint"):
        return None
    order = json.dumps([stream.get("class_order"), a.class_names, a.task_names, a.task_classes, a.n_test.tolist()])
    card = record.environment.get("backbone") or {}
    backbone = (card.get("name"), card.get("sha256")) if isinstance(card, dict) else (str(card), None)
    return (stream["fingerprint"], a.scenario, order, record.seed, backbone)


def _stream(record: Record) -> dict[str, Any]:
    stream = record.environment.get("stream")
    return stream if isinstance(stream, dict) else {}
