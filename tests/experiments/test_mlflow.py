"""MLflow: what its own client finds in the database of a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangentcl.errors import MissingExtra
from tangentcl.experiments.run import Outcome
from tangentcl.experiments.trackers.mlflow import MLflowTracker
from tangentcl.records import Record

for _package in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(_package, reason='needs pip install "tangentcl[mlflow]"')


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path, experiment: str) -> list[Any]:
    reader = client(folder)
    return list(reader.search_runs([reader.get_experiment_by_name(experiment).experiment_id]))


def test_every_number_of_the_record_is_a_metric(
    tmp_path: Path, tracked_run: Callable[..., Outcome], curves_of: Any, same_record: Any
) -> None:
    plain, outcome = tracked_run(tmp_path / "plain"), tracked_run(tmp_path / "out", "mlflow")
    assert (outcome.status, outcome.untracked) == ("done", ())
    same_record(plain.folder, outcome.folder)
    (run,), record = runs(tmp_path / "out/mlflow", "watched"), Record.read(outcome.folder)
    assert (run.info.run_name, run.info.status) == ("a-head/seed-0", "FINISHED")
    assert run.data.tags["tangentcl.run"] == "watched/a-head/seed-0"
    expected = curves_of(record)
    assert record.accuracy is not None
    final = {f"metrics/{key}": value for key, value in record.accuracy.metrics.items() if isinstance(value, float)}
    expected |= {key: [(4, value)] for key, value in final.items()}
    assert set(run.data.metrics) == set(expected)
    reader = client(tmp_path / "out/mlflow")
    for name, points in expected.items():
        history = reader.get_metric_history(run.info.run_id, name)
        assert sorted((m.step, m.value) for m in history) == points
    assert run.data.params["plan.epochs"] == "2"
    assert run.data.params["method.name"] == "finetune"


def test_a_repeated_run_is_another_and_more_settings_than_one_message_holds(tmp_path: Path) -> None:
    import mlflow

    current = mlflow.get_tracking_uri()
    many = {"name": "e", "seed": 0, "plan": {f"key{i}": i for i in range(250)}, "order": "x" * 7000}
    for status in ("interrupted", "failed", "done"):
        tracker = MLflowTracker(tmp_path)
        tracker.start("e/l/seed-0", many)
        tracker.finish(status, {})
    found = runs(tmp_path, "e")
    assert sorted(run.info.status for run in found) == ["FAILED", "FINISHED", "KILLED"]
    assert all(len(run.data.params) == 253 for run in found)
    assert mlflow.get_tracking_uri() == current
    assert mlflow.active_run() is None


def test_nothing_is_drawn(tmp_path: Path, no_draws: Any) -> None:
    def track() -> None:
        tracker = MLflowTracker(tmp_path)
        tracker.start("e/l/seed-0", {"name": "e"})
        tracker.event("run_finished", {"seconds": 1.0})
        tracker.finish("done", {"last_accuracy": 1.0})

    no_draws(track)


def test_a_server_that_is_gone_costs_the_curves_and_not_the_run(
    tmp_path: Path, tracked_run: Callable[..., Outcome], same_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    outcome = tracked_run(tmp_path / "out", {"name": "mlflow", "tracking_uri": address})
    assert outcome.status == "done"
    assert len(outcome.untracked) == 1
    assert outcome.untracked[0].startswith("mlflow: MlflowException: ")
    same_record(tracked_run(tmp_path / "plain").folder, outcome.folder)


def test_the_database_needs_packages_that_the_small_mlflow_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sqlalchemy", None)
    with pytest.raises(MissingExtra, match=r"keeps its runs in a database file, needs the package 'sqlalchemy'"):
        MLflowTracker(tmp_path)
    MLflowTracker(tmp_path, tracking_uri="http://localhost:5000")
