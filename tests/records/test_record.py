"""Writing and reading run records, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tangentcl
from tangentcl.errors import RecordError
from tangentcl.records import Record, RecordWriter, find_records, writer

NAN = float("nan")
CONFIG = {"name": "digits", "seed": 3, "label": "nearest mean", "method": {"name": "ncm"}, "plan": {"epochs": 2}}
ACCURACY = {
    "scenario": "class",
    "task_names": ["0-1", "2-3"],
    "class_names": ["a", "b", "c", "d"],
    "task_classes": [[0, 1], [2, 3]],
    "n_test": [20, 30],
    "matrix": np.array([[0.9, NAN], [0.5, 0.8]]),
    "class_correct": [[8, 10, 0, 0], [4, 6, 12, 12]],
    "class_total": [10, 10, 15, 15],
}


def unfinished(folder: Path) -> RecordWriter:
    record = RecordWriter(folder, CONFIG, {"python": "3.11"})
    record.event("run_started")
    record.event("step", {"task": 0, "step": 1, "terms": {"ce": np.float32(0.5)}, "lr": NAN})
    record.accuracy(**ACCURACY)
    return record


def written(folder: Path) -> Path:
    unfinished(folder).finish()
    return folder


def test_round_trip(tmp_path):
    record = Record.read(written(tmp_path / "seed-3"))
    assert (record.experiment, record.label, record.seed, record.method) == ("digits", "nearest mean", 3, "ncm")
    assert record.config == CONFIG
    assert record.status.status == "done"
    assert record.status.started <= record.status.ended
    assert record.truncated_events == 0
    assert [e["event"] for e in record.events] == ["run_started", "step"]
    step = record.events_named("step")[0]
    assert step["lr"] is None
    assert step["terms"] == {"ce": 0.5}
    np.testing.assert_array_equal(record.accuracy.matrix, ACCURACY["matrix"])
    assert record.accuracy.metrics["ffm"] == pytest.approx(0.4)
    assert record.accuracy.task_classes == ((0, 1), (2, 3))


def test_counts_of_unseen_classes_are_blanked(tmp_path):
    record = Record.read(written(tmp_path))
    np.testing.assert_array_equal(record.accuracy.class_correct, [[8, 10, NAN, NAN], [4, 6, 12, 12]])
    assert record.accuracy.metrics["forgetting_per_class"] == [pytest.approx(0.4), pytest.approx(0.4), None, None]


def test_joint_training_knows_the_last_row_only(tmp_path):
    with RecordWriter(tmp_path, CONFIG, {}) as record:
        written_accuracy = record.accuracy(
            **{**ACCURACY, "matrix": [[None, None], [0.5, 0.8]], "class_correct": [None, [4, 6, 12, 12]]}
        )
    assert json.loads((tmp_path / "accuracy.json").read_text())["class_correct"] == [None, [4, 6, 12, 12]]
    back = Record.read(tmp_path).accuracy
    assert back.metrics == written_accuracy.metrics
    assert back.metrics["last_accuracy"] == pytest.approx(0.68)
    assert back.metrics["ffm"] is None
    assert back.metrics["forgetting_per_class"] is None


def test_files_are_strict_json_and_null_stands_for_what_json_cannot_hold(tmp_path):
    with RecordWriter(tmp_path, {**CONFIG, "stream": {"base": None}}, {"loss": float("inf"), "path": Path("x")}) as r:
        r.event("step", {"terms": {"ce": np.array([NAN, 1.0])}})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"loss": None, "path": "x"}
    assert "base" not in (tmp_path / "config.toml").read_text()
    assert "NaN" not in (tmp_path / "events.jsonl").read_text()
    with pytest.raises(RecordError, match=r"config\.method\.model is a object"):
        RecordWriter(tmp_path / "new", {"method": {"model": object()}}, {})
    assert not (tmp_path / "new").exists()


def test_events_are_on_disk_at_once_and_status_is_running_until_the_end(tmp_path):
    record = RecordWriter(tmp_path, CONFIG, {})
    record.event("run_started")
    assert "run_started" in (tmp_path / "events.jsonl").read_text()
    assert Record.read(tmp_path).status.status == "running"
    assert Record.read(tmp_path).accuracy is None
    record.finish("failed", "non-finite loss")
    assert Record.read(tmp_path).status.reason == "non-finite loss"
    for late in (lambda: record.event("step"), lambda: record.accuracy(**ACCURACY), record.finish):
        with pytest.raises(RecordError, match=r"is finished: .* came too late"):
            late()
    with pytest.raises(RecordError, match="ends as"):
        record.finish("ok")


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt(), "interrupted"), (ValueError("bad"), "failed")])
def test_an_error_inside_the_block_ends_the_record(tmp_path, error, status):
    with pytest.raises(type(error)), RecordWriter(tmp_path, CONFIG, {}):
        raise error
    read = Record.read(tmp_path).status
    assert read.status == status
    assert read.reason == ("stopped by the user" if status == "interrupted" else "ValueError: bad")


def test_done_and_running_records_are_not_overwritten(tmp_path):
    written(tmp_path / "a")
    with pytest.raises(RecordError, match="already holds a record with status 'done'"):
        RecordWriter(tmp_path / "a", CONFIG, {})
    second = RecordWriter(tmp_path / "a", CONFIG, {}, overwrite=True)
    assert Record.read(tmp_path / "a").accuracy is None
    with pytest.raises(RecordError, match="'running'"):
        RecordWriter(tmp_path / "a", CONFIG, {})
    second.finish("interrupted")
    RecordWriter(tmp_path / "a", CONFIG, {}).finish()


def test_a_foreign_config_file_is_not_replaced(tmp_path):
    (tmp_path / "config.toml").write_text("mine = 1")
    with pytest.raises(RecordError, match="no run record"):
        RecordWriter(tmp_path, CONFIG, {})
    assert (tmp_path / "config.toml").read_text() == "mine = 1"


def test_the_systems_reason_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"Not a directory|File exists"):
        RecordWriter(tmp_path / "file" / "seed-0", CONFIG, {})

    record = RecordWriter(tmp_path / "full", CONFIG, {})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RecordError, match=r"cannot write .*accuracy\.json: No space left on device"):
        record.accuracy(**ACCURACY)
    monkeypatch.undo()
    assert not list((tmp_path / "full").glob(".*part"))
    assert Record.read(tmp_path / "full").accuracy is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is always full")
def test_a_full_disk_while_events_are_written(tmp_path):
    record = RecordWriter(tmp_path, CONFIG, {})
    record._events = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(RecordError, match="No space left"):
        record.event("step")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_permission_denied(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match="Permission denied"):
        RecordWriter(tmp_path / "seed-0", CONFIG, {})
    tmp_path.chmod(0o700)


def test_a_cut_off_last_event_is_counted_and_nothing_else_is_forgiven(tmp_path):
    path = unfinished(tmp_path).folder / "events.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"t": 1.0, "eve')
    record = Record.read(tmp_path)
    assert (len(record.events), record.truncated_events) == (2, 1)
    path.write_text('{"t": 1.0, "eve\n' + whole)
    with pytest.raises(RecordError, match=r"events\.jsonl is damaged: line 1: it is not JSON"):
        Record.read(tmp_path)
    path.write_text('{"t": 1.0}\n')
    with pytest.raises(RecordError, match="text 'event'"):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("status.json", '{"status": "finished"}', "status must be one of running, done"),
        ("status.json", '{"status": "done", "reason": 3}', "'reason' must be text or null"),
        ("status.json", '{"status"', r"status\.json is damaged: .* line 1"),
        ("status.json", "[]", "must hold a JSON object"),
        ("config.toml", "name = ", r"config\.toml is damaged"),
        ("config.toml", 'name = "x"', "'seed' must be a whole number"),
        ("config.toml", "seed = 1", "'name' must be text"),
        ("accuracy.json", '{"schema": 9}', "schema 9"),
        ("accuracy.json", '{"schema": 1}', "'scenario' is missing"),
        ("environment.json", None, r"environment\.json is missing"),
        ("events.jsonl", None, r"events\.jsonl is missing"),
        ("accuracy.json", None, r"accuracy\.json is missing"),
    ],
)
def test_damage_is_named(tmp_path, file, text, words):
    path = written(tmp_path) / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(RecordError, match=words):
        Record.read(tmp_path)


def test_bytes_that_are_not_text(tmp_path):
    (written(tmp_path) / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match=r"config\.toml is damaged: it is not UTF-8"):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"matrix": [[0.5]]}, r"matrix must have shape \[2, 2\], got \[1, 1\]"),
        ({"matrix": [[0.5, None], [0.5]]}, "matrix must hold numbers"),
        ({"matrix": [[90.0, None], [50.0, 80.0]]}, "Divide by 100"),
        ({"n_test": [20]}, "n_test must have shape"),
        ({"n_test": [20, 0]}, "n_test must hold 2 positive"),
        ({"task_classes": [[0, 1]]}, "one list per task"),
        ({"task_classes": [[0, 1], [2, 4]]}, "names class 4"),
        ({"task_classes": [[0, 1], [2, "x"]]}, "whole numbers"),
        ({"class_total": [10, 10]}, "class_total must have shape"),
        ({"class_correct": [[99, 0, 0, 0], [0, 0, 0, 0]]}, "99 right answers of 10"),
        ({"scenario": "clas"}, "Did you mean 'class'"),
    ],
)
def test_accuracies_that_do_not_fit_are_refused_in_both_directions(tmp_path, change, words):
    record = RecordWriter(tmp_path, CONFIG, {})
    with pytest.raises(RecordError, match=words):
        record.accuracy(**{**ACCURACY, **change})
    record.accuracy(**ACCURACY)
    record.finish()
    content = json.loads((tmp_path / "accuracy.json").read_text())
    (tmp_path / "accuracy.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(RecordError, match=words):
        Record.read(tmp_path)


def test_find_records(tmp_path):
    for name in ("seed-10", "seed-2", "seed-0"):
        written(tmp_path / "runs" / "digits" / "ncm" / name)
    (tmp_path / "runs" / "empty").mkdir()
    names = [p.name for p in find_records([tmp_path])]
    assert names == ["seed-0", "seed-2", "seed-10"]
    assert len(find_records([tmp_path, tmp_path / "runs" / "digits"])) == 3
    assert len(find_records([str(tmp_path / "runs" / "*")])) == 3
    assert [p.name for p in find_records([tmp_path / "runs" / "digits" / "ncm" / "seed-2"])] == ["seed-2"]
    with pytest.raises(RecordError, match="does not exist"):
        find_records([tmp_path / "typo"])
    with pytest.raises(RecordError, match="no run record under"):
        find_records([tmp_path / "runs" / "empty"])
    with pytest.raises(RecordError, match="no run record under no folder"):
        find_records([])


def test_not_a_folder(tmp_path):
    with pytest.raises(RecordError, match="is not a folder"):
        Record.read(tmp_path / "x")


def test_records_reports_and_metrics_do_not_load_torch():
    """Imports the rooms below a bare package, so that what the package itself offers at its top does not count."""
    source = Path(tangentcl.__file__).parent
    assert Path(writer.__file__).is_relative_to(source)
    program = (
        "import sys, types\n"
        "package = types.ModuleType('tangentcl')\n"
        f"package.__path__ = [{str(source)!r}]\n"
        "sys.modules['tangentcl'] = package\n"
        "import tangentcl.metrics, tangentcl.records, tangentcl.reports\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'datasets', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
