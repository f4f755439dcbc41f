"""A finished record whose files are not what was written is noticed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tangentcl.errors import RecordError
from tangentcl.records import Record, RecordWriter, TaskForecast, TaskTheory, is_abandoned, write_checksums
from tangentcl.records import checksums as module
from tangentcl.records import writer as writer_module

CONFIG = {"name": "digits", "seed": 3, "label": "ncm"}
ACCURACY = {
    "scenario": "class",
    "task_names": ["0"],
    "class_names": ["a", "b"],
    "task_classes": [[0, 1]],
    "n_test": [20],
    "matrix": [[0.9]],
}
PARTS = {"accuracy": {}, "classes": [], "tasks": [], "at_risk": [], "flips": {}, "modes": {}, "cost": {}}
ARRAYS = {
    "labels": np.zeros(2, dtype=np.int64),
    "tasks": np.zeros(2, dtype=np.int64),
    "outputs": np.ones((2, 2), dtype=np.float32),
    "drift": np.ones((2, 2), dtype=np.float32),
    **{key: np.ones(2) for key in ("energy", "values", "multiplicity")},
}


def started(folder: Path) -> RecordWriter:
    record = RecordWriter(folder, CONFIG, {"python": "3.11", "threads": 4})
    record.event("step", {"loss": 0.5})
    record.accuracy(**ACCURACY)
    record.forecast(TaskForecast(1, "cats", {"status": "forecast", **PARTS}, ARRAYS))
    record.theory(TaskTheory(1, "cats", {"status": "refused", "reason": "no features"}))
    return record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    started(tmp_path / "seed-3").finish()
    return tmp_path / "seed-3"


def everything(folder: Path) -> tuple[object, ...]:
    record = Record.read(folder)
    forecasts = [(f.task, f.summary, {k: v.tolist() for k, v in f.arrays.items()}) for f in record.forecasts]
    theory = [(t.task, t.values) for t in record.theory]
    return record.status, record.config, record.environment, record.events, record.accuracy.to_json(), forecasts, theory


def test_the_list_holds_every_file_of_a_record_and_is_written_before_the_last_word(folder: Path) -> None:
    found = json.loads((folder / "checksums.json").read_text())["sha256"]
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "checksums.json")
    assert sorted(found) == files
    assert len(files) == 8
    everything(folder)


def test_no_flipped_bit_goes_unnoticed(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for place in rng.choice(len(whole), min(len(whole), 40), replace=False):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(RecordError, match=rf"{re.escape(str(path))} (is damaged|must hold)"):
                everything(folder)
        path.write_bytes(whole)
    everything(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "checksums.json").unlink(), r"checksums\.json is missing"),
        (lambda f: (f / "checksums.json").write_text('{"schema": 1}'), "expected schema 1 and 'sha256', got"),
        (lambda f: (f / "checksums.json").write_text('{"schema": 1, "sha256": {}}'), "the list in it is not what was"),
        (lambda f: (f / "forecasts" / "task-001.json").unlink(), r"task-001\.json is missing"),
        (lambda f: shutil.rmtree(f / "theory"), r"theory/task-001\.json is missing"),
        (
            lambda f: shutil.copy(f / "theory" / "task-001.json", f / "theory" / "task-0001.json"),
            r"task-0001\.json is damaged: 'task' must be",
        ),
        (
            lambda f: shutil.copy(f / "forecasts" / "task-001.safetensors", f / "forecasts" / "task-002.safetensors"),
            r"task-002\.safetensors was not there when the record ended",
        ),
        (
            lambda f: (f / "events.jsonl").write_text(""),
            r"events\.jsonl is damaged: it is not what was written, as checksums\.json tells\. Take the folder from a",
        ),
    ],
)
def test_what_is_missing_changed_or_added_is_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(RecordError, match=message):
        everything(folder)


def test_a_change_on_purpose_is_sealed_anew(folder: Path) -> None:
    path = folder / "environment.json"
    path.write_text(json.dumps({"python": "3.12"}))
    with pytest.raises(RecordError, match=r"environment\.json is damaged"):
        Record.read(folder)
    assert write_checksums(folder) == folder / "checksums.json"
    assert Record.read(folder).environment == {"python": "3.12"}


def test_a_record_that_is_written_again_loses_its_checksums(folder: Path) -> None:
    record = RecordWriter(folder, CONFIG, {}, overwrite=True)
    assert not (folder / "checksums.json").exists()
    assert Record.read(folder).checksums is None
    record.finish("interrupted", "enough")
    assert Record.read(folder).checksums is not None


@pytest.mark.parametrize("step", ["before", "between"])
def test_killed_while_it_finishes_it_counts_as_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The process is gone before or after ``checksums.json``: the record is neither done nor damaged."""

    class Killed(BaseException):
        pass

    def kill(*args: object, **keywords: object) -> None:
        raise Killed

    record = started(tmp_path)
    if step == "before":
        monkeypatch.setattr(module, "write_json", kill)
    else:
        monkeypatch.setattr(writer_module.RecordWriter, "_write_status", kill)
    with pytest.raises(Killed):
        record.finish()
    monkeypatch.undo()
    record._events.close()  # as the system does
    assert (tmp_path / "checksums.json").exists() == (step == "between")
    assert Record.read(tmp_path).status.status == "running"
    assert is_abandoned(tmp_path)
    started(tmp_path).finish()
    everything(tmp_path)
