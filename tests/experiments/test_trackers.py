"""Trackers: how an experiment names them, what they are told, and that a run is the same with and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tangentcl.data import Task
from tangentcl.errors import ConfigError, MissingExtra
from tangentcl.experiments.config import Experiment, apply_setting, experiment_from
from tangentcl.experiments.run import Outcome
from tangentcl.experiments.trackers import TRACKERS, Curves, build_trackers, tracker_class
from tangentcl.methods import NCM
from tangentcl.records import Record

HERE = "tests_experiments_trackers"  # module under which the classes below are found
told: list[tuple[Any, ...]] = []


class Listens:
    """Keeps what it is told."""

    def __init__(self, folder: Path, *, level: int = 1) -> None:
        self.folder, self.level = folder, level

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        told.append(("start", name, settings["method"]["name"], self.folder, self.level))

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        told.append(("event", event, fields))

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        told.append(("finish", status, metrics))


class Breaks(Listens):
    """Fails when asked for the first time in the method named here."""

    at = "start"

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        self._break("start")

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        self._break(event)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        self._break("finish")

    def _break(self, where: str) -> None:
        told.append(("asked", where))
        if where == self.at:
            raise OSError(28, "No space left on device")


class Stops(NCM):
    """Stopped by the user at the second task, once."""

    stopped = False

    def end_task(self, task: Task) -> None:
        if task.index == 1 and not Stops.stopped:
            Stops.stopped = True
            raise KeyboardInterrupt
        super().end_task(task)


class Fails(NCM):
    """Fails at the second task."""

    def end_task(self, task: Task) -> None:
        if task.index == 1:
            raise RuntimeError("no more memory")
        super().end_task(task)


NoTracker = NCM


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    told.clear()


def experiment(tracker: Any, **tables: Any) -> Experiment:
    return experiment_from({"method": {"name": "ncm"}, "tracker": tracker, **tables})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (False, ()),
        ([], ()),
        ("tensorboard", ({"name": "tensorboard"},)),
        (["tensorboard", {"name": "wandb", "mode": "x"}], ({"name": "tensorboard"}, {"name": "wandb", "mode": "x"})),
        ({"name": "mlflow", "tracking_uri": "http://x"}, ({"name": "mlflow", "tracking_uri": "http://x"},)),
    ],
)  # fmt: skip
def test_names_and_tables_switch_trackers_on(given: Any, expected: tuple[dict[str, Any], ...]) -> None:
    assert experiment(given).trackers == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["tracker=wandb"], [{"name": "wandb"}]),
        (['tracker=["mlflow", "wandb"]'], [{"name": "mlflow"}, {"name": "wandb"}]),
        (["tracker=false"], []),
        (["tracker.folder=logs"], [{"name": "tensorboard", "folder": "logs"}]),
        (["tracker=false", "tracker.name=wandb", "tracker.mode=online"], [{"name": "wandb", "mode": "online"}]),
        (
            ['tracker=["mlflow", "wandb"]', "tracker.folder=x"],
            [{"name": "mlflow", "folder": "x"}, {"name": "wandb", "folder": "x"}],
        ),
    ],
)
def test_settings_of_the_command_line_change_trackers(settings: list[str], expected: list[dict[str, Any]]) -> None:
    document: dict[str, Any] = {"method": {"name": "ncm"}, "tracker": "tensorboard"}
    for setting in settings:
        apply_setting(document, setting)
    assert list(experiment_from(document).trackers) == expected


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        (True, r"tracker must be a name, a table, \[tracker\] or \[\[tracker\]\], or false, got \[True\]"),
        ([1], r"tracker must be a name, a table"),
        ({"folder": "x"}, r'every \[\[tracker\]\] needs a name, as in name = "tensorboard", got None'),
        ("tensorbord", r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'\? .*Or give 'package.module:Class'"),
        ("nowhere:X", "cannot be imported: ModuleNotFoundError"),
        (f"{HERE}:told", "must be a class with the methods start, event and finish; it is a list"),
        (f"{HERE}:NoTracker", "must be a class with the methods start, event and finish; it lacks start, event, fi"),
        ({"name": f"{HERE}:Listens", "levl": 2}, r"not know 'levl'. Did you mean 'level'\? Known: folder, level, name"),
        ({"name": f"{HERE}:Listens", "level": "x"}, "level must be a whole number, got 'x'"),
        ({"name": f"{HERE}:Listens", "folder": 3}, "folder must be text that is not empty, got 3"),
        ([f"{HERE}:Listens", f"{HERE}:Listens"], "there are two trackers"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_before_anything_runs(
    tmp_path: Path, tracked_run: Callable[..., Outcome], tracker: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tracked_run(tmp_path, tracker)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf'the tracker \'{name}\' needs .* pip install "tangentcl\[{name}\]"'):
        build_trackers([{"name": name}], Path("runs"))


def test_folders_have_the_name_of_their_tracker() -> None:
    name = f"{HERE}:Listens"
    found = build_trackers([{"name": name}], Path("runs"))[name]
    assert isinstance(found, Listens)
    assert found.folder == Path("runs/listens")
    assert tracker_class(name).__name__ == "Listens"


def test_a_tracker_is_told_what_the_record_holds(
    tmp_path: Path, tracked_run: Callable[..., Outcome], same_record: Any
) -> None:
    plain = tracked_run(tmp_path / "plain")
    outcome = tracked_run(tmp_path / "out", {"name": f"{HERE}:Listens", "folder": "logs", "level": 3})
    same_record(plain.folder, outcome.folder)
    record = Record.read(outcome.folder)
    assert told[0] == ("start", "watched/a-head/seed-0", "finetune", Path("logs"), 3)
    events = [json.loads(json.dumps({"event": event, **fields})) for kind, event, fields in told[1:-1]]
    assert events == [{key: value for key, value in event.items() if key != "t"} for event in record.events]
    assert record.accuracy is not None
    single = {key: value for key, value in record.accuracy.metrics.items() if isinstance(value, float)}
    assert told[-1] == ("finish", "done", single)
    assert "average_accuracy" in single


def test_another_tracker_is_no_other_run(tmp_path: Path, tracked_run: Callable[..., Outcome]) -> None:
    assert tracked_run(tmp_path).status == "done"
    assert tracked_run(tmp_path, f"{HERE}:Listens").status == "skipped"
    assert told == []


@pytest.mark.parametrize("at", ["start", "evaluated", "finish"])
def test_a_tracker_that_fails_is_said_once_and_costs_nothing_else(
    tmp_path: Path, tracked_run: Callable[..., Outcome], same_record: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(Breaks, "at", at)
    said: list[Any] = []
    plain = tracked_run(tmp_path / "plain")
    outcome = tracked_run(
        tmp_path / "out", [f"{HERE}:Breaks", f"{HERE}:Listens"], observe=lambda *event: said.append(event)
    )
    reason = "OSError: [Errno 28] No space left on device"
    assert outcome.status == "done"
    assert outcome.untracked == (f"{HERE}:Breaks: {reason}",)
    fields = {"tracker": f"{HERE}:Breaks", "error": reason}
    assert [one for one in said if one[2] == "tracker_failed"] == [("a head", 0, "tracker_failed", fields)]
    assert [one for one in told if one[0] == "asked"][-1] == ("asked", at), "it hears no more"
    assert told[-1][:2] == ("finish", "done"), "the other one does"
    same_record(plain.folder, outcome.folder)


def test_failed_and_interrupted_runs_end_so_for_a_tracker(
    tmp_path: Path, tracked_run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = tracked_run(tmp_path, f"{HERE}:Listens", method={"name": f"{HERE}:Fails"}, forecast=False)
    assert (outcome.status, told[-1]) == ("failed", ("finish", "failed", {}))
    assert told[-2][:2] == ("event", "failed")
    told.clear()
    monkeypatch.setattr(Stops, "stopped", False)
    stops = {"method": {"name": f"{HERE}:Stops", "label": "stops"}, "forecast": False}
    with pytest.raises(KeyboardInterrupt):
        tracked_run(tmp_path, f"{HERE}:Listens", **stops)
    assert told[-1] == ("finish", "interrupted", {})
    told.clear()
    outcome = tracked_run(tmp_path, f"{HERE}:Listens", **stops)
    events = [{"event": event, **fields} for kind, event, fields in told[1:-1]]
    kept = [{key: value for key, value in event.items() if key != "t"} for event in Record.read(outcome.folder).events]
    assert events == kept, "a run that goes on is told from its beginning"
    assert [event["event"] for event in events].count("resumed") == 1
    assert told[-1][:2] == ("finish", "done")


def test_what_has_not_started_does_not_finish(
    tmp_path: Path, tracked_run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, name: str, settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Listens, "start", stopped)
    with pytest.raises(KeyboardInterrupt):
        tracked_run(tmp_path, f"{HERE}:Listens")
    assert told == []
    assert Record.read(tmp_path / "watched/a-head/seed-0").status.status == "interrupted"


def test_steps_count_over_tasks_and_what_is_no_number_is_left_out() -> None:
    curves = Curves()
    step = {"task": 0, "step": 2, "n_steps": 2, "epoch": 0, "terms": {"a": 1.0}}
    assert curves.read("step", step).at == 2
    curves.read("task_trained", {"task": 0, "steps": 2})
    later = curves.read("step", {**step, "task": 1, "step": 1, "terms": {"a": float("nan"), "b": 2}})
    assert (later.axis, later.at, later.values) == ("global_step", 3, {"loss/b": 2.0, "step/epoch": 0.0})
    last = curves.read("run_finished", {"seconds": 2.5})
    assert (last.axis, last.at, last.values) == ("task", 1, {"run_finished/seconds": 2.5})


OWN = '''
import os

class Ranks:
    """Writes which process it is told in."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, name, settings):
        self.folder.mkdir(parents=True)

    def event(self, event, fields):
        (self.folder / f"rank-{os.environ['RANK']}").touch()

    def finish(self, status, metrics):
        (self.folder / f"{status}-{len(metrics) > 0}").touch()
'''


def test_of_two_processes_one_tracks(tmp_path: Path) -> None:
    (tmp_path / "own_tracker.py").write_text(OWN)
    (tmp_path / "pair.toml").write_text(
        '[stream]\nn_tasks = 2\ntrain_per_class = 4\ntest_per_class = 4\n[plan]\ndevice = "cpu"\n[method]\nname="ncm"\n'
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tangentcl"]
    command = [*launch, "run", "pair.toml", "--no-report", "--set", "tracker=own_tracker:Ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / "runs/ranks").iterdir()} == {"rank-0", "done-True"}
