"""TensorBoard: what its own reader finds in the files of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tangentcl.experiments.run import Outcome
from tangentcl.experiments.trackers.tensorboard import TensorBoardTracker
from tangentcl.records import Record

pytest.importorskip("tensorboard", reason='needs pip install "tangentcl[tensorboard]"')


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def text(found: Any, tag: str) -> str:
    return found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_every_number_of_the_record_is_on_a_curve(
    tmp_path: Path, tracked_run: Callable[..., Outcome], curves_of: Any, same_record: Any
) -> None:
    plain, outcome = tracked_run(tmp_path / "plain"), tracked_run(tmp_path / "out", "tensorboard")
    assert (outcome.status, outcome.untracked) == ("done", ())
    same_record(plain.folder, outcome.folder)
    found, record = read(tmp_path / "out/tensorboard/watched/a-head/seed-0"), Record.read(outcome.folder)
    expected = curves_of(record)
    assert record.accuracy is not None
    final = {f"metrics/{key}": value for key, value in record.accuracy.metrics.items() if isinstance(value, float)}
    expected |= {key: [(4, value)] for key, value in final.items()}
    assert set(found.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        assert [(p.step, p.value) for p in found.Scalars(name)] == [(at, float(np.float32(v))) for at, v in points]
    assert "| plan.epochs | 2 |" in text(found, "settings")
    assert text(found, "status") == "done"


def test_the_hparams_table_has_settings_and_final_metrics(tmp_path: Path, tracked_run: Callable[..., Outcome]) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    tracked_run(tmp_path, "tensorboard", forecast=False)
    found = read(tmp_path / "tensorboard/watched/a-head/seed-0")
    data = {}
    for tag in ("experiment", "session_start_info"):
        content = found.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
        data[tag] = getattr(plugin_data_pb2.HParamsPluginData.FromString(content), tag)
    assert data["session_start_info"].hparams["plan.epochs"].number_value == 2
    assert data["session_start_info"].hparams["method.name"].string_value == "finetune"
    assert "metrics/average_accuracy" in [info.name.tag for info in data["experiment"].metric_infos]


def test_a_repeated_run_replaces_its_files_and_no_others(tmp_path: Path, tracked_run: Callable[..., Outcome]) -> None:
    logs = {"name": "tensorboard", "folder": str(tmp_path / "logs")}
    tracked_run(tmp_path / "one", logs, seeds=[0, 1])
    other = {path: path.read_bytes() for path in (tmp_path / "logs/watched/a-head/seed-1").iterdir()}
    tracked_run(tmp_path / "two", logs, plan={"epochs": 1, "device": "cpu"})
    assert len(read(tmp_path / "logs/watched/a-head/seed-0").Scalars("loss/cross_entropy")) == 5
    assert {path: path.read_bytes() for path in (tmp_path / "logs/watched/a-head/seed-1").iterdir()} == other
    assert not (tmp_path / "one/tensorboard").exists()


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_the_end_is_told(tmp_path: Path, status: str, no_draws: Any) -> None:
    def track() -> None:
        tracker = TensorBoardTracker(tmp_path)
        tracker.start("e/l/seed-0", {"name": "e", "seed": 0})
        tracker.event("run_started", {"n_tasks": 1})
        tracker.finish(status, {})

    no_draws(track)
    found = read(tmp_path / "e/l/seed-0")
    assert text(found, "status") == status
    assert "_hparams_/session_start_info" not in found.Tags()["tensors"]


def test_a_disk_that_refuses_costs_the_curves_and_not_the_run(
    tmp_path: Path, tracked_run: Callable[..., Outcome], same_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    plain = tracked_run(tmp_path / "plain")
    (tmp_path / "file").write_text("in the way")
    blocked = tracked_run(tmp_path / "blocked", {"name": "tensorboard", "folder": str(tmp_path / "file")})
    assert blocked.status == "done"
    assert blocked.untracked[0].startswith("tensorboard: NotADirectoryError")
    same_record(plain.folder, blocked.folder)

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)  # the writing thread prints its end
    outcome = tracked_run(tmp_path / "full", "tensorboard")
    assert (outcome.status, outcome.untracked) == (
        "done",
        ("tensorboard: OSError: [Errno 28] No space left on device",),
    )
    same_record(plain.folder, outcome.folder)
