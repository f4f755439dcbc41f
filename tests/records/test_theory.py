"""The theory report written and read back; damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tangentcl.errors import RecordError
from tangentcl.records import Record, RecordWriter, TaskTheory, read_theory
from tangentcl.records.theory import write_theory

BEFORE: dict[str, Any] = {"past": [], "class_drift": [], "risk": {}, "dimension": {}, "views": {}}
AFTER: dict[str, Any] = {"past": [], "dimension": {}, "radius": {}, "staleness": {}, "laziness": {"light": "amber"}}


def _values(**changes: Any) -> dict[str, Any]:
    return {"status": "learned", "reason": None, "before": BEFORE, "after": AFTER, **changes}


def test_what_is_written_is_read_back_and_a_new_writer_starts_afresh(tmp_path: Path) -> None:
    config = {"name": "x", "seed": 0, "label": "head"}
    with RecordWriter(tmp_path / "seed-0", config, {}) as record:
        assert Record.read(record.folder).theory == []
        record.theory(TaskTheory(3, "cats", _values(status="before", after=None)))
        assert [(t.light, t.after) for t in Record.read(record.folder).theory] == [(None, None)]
        record.theory(TaskTheory(3, "cats", _values(seconds=float("nan"))))
        record.theory(TaskTheory(1000, "dogs", {"status": "refused", "reason": "no features"}))
        record.theory(TaskTheory(20, "ß", _values(after={**AFTER, "laziness": None})))
        one = {"task_names": ["a"], "class_names": ["b"], "task_classes": [[0]], "n_test": [1], "matrix": [[1]]}
        record.accuracy(scenario="class", **one)  # type: ignore[arg-type]
    found = Record.read(record.folder).theory
    assert [(t.task, t.name, t.light) for t in found] == [(3, "cats", "amber"), (20, "ß", None), (1000, "dogs", None)]
    assert found[0].before == BEFORE
    assert found[0].values["seconds"] is None
    with RecordWriter(tmp_path / "seed-0", config, {}, overwrite=True) as record:
        assert read_theory(record.folder) == []
        record.accuracy(scenario="class", **one)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (_values(status="half"), "status must be one of before, learned, refused"),
        (_values(after=None), "'after' must be an object"),
        (_values(before={**BEFORE, "past": {}}), "before.past must be a list"),
        (_values(after={**AFTER, "radius": 3}), "after.radius must be an object"),
        ({"status": "refused"}, "need a reason"),
    ],
)
def test_parts_that_are_missing_are_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        write_theory(tmp_path, TaskTheory(0, "cats", values))
    assert read_theory(tmp_path) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = write_theory(tmp_path, TaskTheory(7, "cats", _values()))
    path.rename(path.with_name("task-008.json"))
    with pytest.raises(RecordError, match=r"task-008\.json is damaged: 'task' must be a number"):
        read_theory(tmp_path)
    path.with_name("task-008.json").write_text("{")
    with pytest.raises(RecordError, match=r"task-008\.json"):
        read_theory(tmp_path)
