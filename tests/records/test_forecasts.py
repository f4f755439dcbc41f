"""Forecasts written and read back; damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tangentcl.errors import RecordError
from tangentcl.records import Record, RecordWriter, TaskForecast, read_forecasts
from tangentcl.records.forecasts import write_forecast

PARTS: dict[str, Any] = {
    "accuracy": {},
    "classes": [],
    "tasks": [],
    "at_risk": [],
    "flips": {},
    "modes": {},
    "cost": {},
}


def _summary(**changes: Any) -> dict[str, Any]:
    return {"task": 3, "name": "cats", "status": "forecast", **PARTS, **changes}


def _arrays(n: int = 4, outputs: int = 3, modes: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "labels": np.arange(n) % outputs,
        "tasks": np.zeros(n, dtype=np.int64),
        "outputs": rng.normal(size=(n, outputs)).astype(np.float32),
        "drift": rng.normal(size=(n, outputs)).astype(np.float32),
        "energy": rng.random(modes),
        "values": rng.random(modes),
        "multiplicity": np.full(modes, outputs),
    }


def test_what_is_written_is_read_back_and_replaced_by_the_truth(tmp_path: Path) -> None:
    config = {"name": "x", "seed": 0, "label": "head"}
    with RecordWriter(tmp_path / "seed-0", config, {}) as record:
        assert Record.read(record.folder).forecasts == []
        arrays = _arrays()
        record.forecast(TaskForecast(3, "cats", _summary(quality=None, sentence="ß"), arrays))
        before = Record.read(record.folder).forecasts
        known = _summary(quality={"cosine": np.float64(0.5), "r2": np.nan})
        record.forecast(TaskForecast(3, "cats", known, {**arrays, "real_drift": arrays["drift"]}))
        record.forecast(TaskForecast(12, "dogs", {"status": "refused", "reason": "nothing trains"}, {}))
        one = {"task_names": ["a"], "class_names": ["b"], "task_classes": [[0]], "n_test": [1], "matrix": [[1]]}
        record.accuracy(scenario="class", **one)  # type: ignore[arg-type]
    found = Record.read(record.folder).forecasts
    assert [(f.task, f.name, f.summary["status"]) for f in found] == [(3, "cats", "forecast"), (12, "dogs", "refused")]
    assert (before[0].summary["quality"], before[0].summary["sentence"]) == (None, "ß")
    assert "real_drift" not in before[0].arrays
    assert found[0].summary["quality"] == {"cosine": 0.5, "r2": None}
    for key, value in arrays.items():
        assert found[0].arrays[key].dtype == value.dtype
        np.testing.assert_array_equal(found[0].arrays[key], value)
    np.testing.assert_array_equal(found[0].arrays["real_drift"], arrays["drift"])
    assert found[1].arrays == {}
    assert sorted(p.name for p in (record.folder / "forecasts").iterdir()) == [
        "task-003.json",
        "task-003.safetensors",
        "task-012.json",
    ]


def test_a_record_that_is_written_again_loses_its_forecasts(tmp_path: Path) -> None:
    for n in range(2):
        with RecordWriter(tmp_path, {"name": "x", "seed": 0}, {}, overwrite=True) as record:
            assert read_forecasts(record.folder) == []
            if n == 0:
                record.forecast(TaskForecast(3, "cats", _summary(), _arrays()))
                (tmp_path / "forecasts" / "notes.txt").write_text("a user's own")
    assert [p.name for p in (tmp_path / "forecasts").iterdir()] == ["notes.txt"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _changed(**changes: Any) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(".json").write_text(json.dumps(_summary(**changes)), "utf-8") and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"task-003\.safetensors is missing"),
        (_cut, r"task-003\.safetensors is damaged"),
        (lambda path: _cut(path.with_suffix(".json")), r"task-003\.json is damaged"),
        (_changed(task=4), "number from 0 as in the file's name, got 4"),
        (_changed(status="done"), "status must be one of forecast, refused, got 'done'"),
        (_changed(status="refused"), "needs a reason, got None"),
        (_changed(accuracy=None), "'accuracy' must be an object, got null"),
        (_changed(classes={}), "'classes' must be a list, got {}"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_forecast(tmp_path, TaskForecast(3, "cats", _summary(), _arrays()))
    damage(tmp_path / "forecasts" / "task-003.safetensors")
    with pytest.raises(RecordError, match=message):
        read_forecasts(tmp_path)


@pytest.mark.parametrize(
    ("summary", "change", "message"),
    [
        ({}, {"drift": np.zeros((4, 2), dtype=np.float32)}, r"drift is \(4, 2\), the outputs are \(4, 3\)"),
        ({}, {"labels": np.zeros(3, dtype=np.int64)}, "lengths differ"),
        ({}, {"energy": np.zeros(5)}, "lengths differ"),
        ({"task": 4}, {}, "number from 0"),
        ({"name": None}, {}, "'name' must be text"),
    ],
)
def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, summary: dict[str, Any], change: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        write_forecast(tmp_path, TaskForecast(3, "cats", {**_summary(), **summary}, {**_arrays(), **change}))
    with pytest.raises(RecordError, match="the arrays labels, tasks, outputs, drift are missing"):
        write_forecast(tmp_path, TaskForecast(3, "cats", _summary(), {}))
    assert not (tmp_path / "forecasts").exists()
