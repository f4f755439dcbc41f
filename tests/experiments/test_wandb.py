"""Weights & Biases offline: what the file of a run holds, read record by record."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tangentcl.experiments.run import Outcome
from tangentcl.experiments.trackers.wandb import WandbTracker
from tangentcl.records import Record

pytest.importorskip("wandb", reason='needs pip install "tangentcl[wandb]"')

BLOCK, HEADER = (
    32768,
    7,
)  # LevelDB's log format: checksum 4, length 2, type 1; wandb's file begins with 7 bytes of its own
FULL, FIRST, LAST = 1, 2, 4


def records(file: Path) -> Iterator[Any]:
    """The messages of a ``.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    content, at, parts = file.read_bytes(), HEADER, b""
    assert content[:4] in (b":W&B", b"")  # not written yet
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # too short for a header: filled up with zeros
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        piece = content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield Message.FromString(parts)


def items(message: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in message}


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], dict[str, str], Any]:
    """Rows of the history, config, summary, the axis of each curve, and the exit code of the only run in a folder."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20
    while not any(record.WhichOneof("record_type") == "exit" for record in records(file)):
        assert time.monotonic() < deadline, "wandb's own process writes the file, a little after the run is finished"
        time.sleep(0.05)
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    axes: dict[str, str] = {}
    code = None
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(items(record.history.item))
        elif kind == "run":
            config |= items(record.run.config.update)
        elif kind == "summary":
            summary |= items(record.summary.update)
        elif kind == "metric":
            axes[record.metric.name] = record.metric.step_metric
        elif kind == "exit":
            code = record.exit.exit_code
    return history, config, summary, axes, code


def test_every_number_of_the_record_is_in_the_history(
    tmp_path: Path, tracked_run: Callable[..., Outcome], curves_of: Any, same_record: Any
) -> None:
    plain, outcome = tracked_run(tmp_path / "plain"), tracked_run(tmp_path / "out", "wandb")
    assert (outcome.status, outcome.untracked) == ("done", ())
    same_record(plain.folder, outcome.folder)
    history, config, summary, axes, code = read(tmp_path / "out/wandb")
    record = Record.read(outcome.folder)
    expected = curves_of(record)
    drawn: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name in expected.keys() & row.keys():
            drawn.setdefault(name, []).append((row[axes[name]], row[name]))
    assert drawn == expected
    assert {axes[name] for name in expected} == {"global_step", "task"}
    assert {name for name in expected if axes[name] == "global_step"} == {
        *("loss/cross_entropy", "step/epoch", "step/lr", "step/samples_per_s")
    }
    assert config["plan"]["epochs"] == 2
    assert record.accuracy is not None
    for key, value in record.accuracy.metrics.items():
        if isinstance(value, float):
            assert summary[f"metrics/{key}"] == value
    assert (summary["status"], code) == ("done", 0)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_the_end_is_told_and_the_process_is_left_as_it_was(
    tmp_path: Path, status: str, no_draws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    hooks = sys.exit, sys.excepthook, sys.stdout, sys.stderr

    def track() -> None:
        tracker = WandbTracker(tmp_path / "logs", project="p")
        tracker.start("e/l/seed-0", {"name": "e", "label": "l", "seed": 0})
        tracker.event("run_finished", {"seconds": 1.0})
        tracker.finish(status, {})

    no_draws(track)
    assert hooks == (sys.exit, sys.excepthook, sys.stdout, sys.stderr)
    assert wandb.run is None
    history, _, summary, _, code = read(tmp_path / "logs")
    assert history[0]["run_finished/seconds"] == 1.0
    assert (summary["status"], code) == (status, 1)


def test_a_folder_that_cannot_be_made_costs_the_curves_and_not_the_run(
    tmp_path: Path, tracked_run: Callable[..., Outcome], same_record: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = tracked_run(tmp_path / "out", {"name": "wandb", "folder": str(tmp_path / "file")})
    assert outcome.status == "done"
    assert outcome.untracked[0].startswith("wandb: FileExistsError")
    same_record(tracked_run(tmp_path / "plain").folder, outcome.folder)
