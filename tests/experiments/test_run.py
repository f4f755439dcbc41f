"""Experiments from tables to records: what is skipped, refused, recorded as failed, and taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tangentcl.data import Task
from tangentcl.errors import ConfigError, DataError, RecordError
from tangentcl.experiments import build
from tangentcl.experiments.config import Experiment, experiment_from
from tangentcl.experiments.run import Outcome, difference, run_experiment
from tangentcl.methods import NCM, Finetune
from tangentcl.nn import Backbone
from tangentcl.records import Record, RecordWriter, is_abandoned

pytestmark = pytest.mark.usefixtures("pixel_experiments")
HERE = "tests_experiments_methods"  # module under which the methods below are found


class Raises(NCM):
    """Fails at the second task."""

    def end_task(self, task: Task) -> None:
        if task.index == 1:
            raise RuntimeError("no more memory")
        super().end_task(task)


class Interrupted(NCM):
    """Stopped by the user at the second task, as long as the file named here exists."""

    once: Path

    def end_task(self, task: Task) -> None:
        if task.index == 1 and self.once.exists():
            self.once.unlink()
            raise KeyboardInterrupt
        super().end_task(task)


class Exits(NCM):
    """Leaves the program."""

    def end_task(self, task: Task) -> None:
        raise SystemExit(3)


class BadConstructor(NCM):
    """Cannot be made."""

    def __init__(self, backbone: Backbone) -> None:
        raise RuntimeError("wrong moon")


class OneColumn(NCM):
    """Scores for one class only."""

    def predict(self, x: Any) -> torch.Tensor:
        return super().predict(x)[:, :1]


class Vector(Finetune):
    """A loss per sample."""

    def training_loss(self, x: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"each": self.predict(x).sum(dim=1)}


class Bare(Finetune):
    """A loss without a name."""

    def training_loss(self, x: Any, y: torch.Tensor) -> Any:
        return super().training_loss(x, y)["cross_entropy"]


class Detached(Finetune):
    """A loss that nothing depends on."""

    def training_loss(self, x: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"cross_entropy": super().training_loss(x, y)["cross_entropy"].detach()}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def experiment(*methods: str | dict[str, Any], **tables: Any) -> Experiment:
    """Five tasks of two digits, 5 training and 4 test samples each."""
    entries = [{"name": m} if isinstance(m, str) else m for m in methods or ("ncm",)]
    entries = [
        {"label": e["name"].split(":")[-1], **({"tune": "head"} if e["name"] == "finetune" else {}), **e}
        for e in entries
    ]
    stream = {"n_tasks": 5, "train_per_class": 5, "test_per_class": 4, **tables.pop("stream", {})}
    plan = {"epochs": 1, "device": "cpu", **tables.pop("plan", {})}
    return experiment_from({"name": "e", "stream": stream, "plan": plan, "method": entries, **tables})


def run(what: Experiment, out: Path, *, overwrite: bool = False) -> list[Outcome]:
    return run_experiment(what, out, observe=lambda *event: None, overwrite=overwrite)


def statuses(outcomes: list[Outcome]) -> list[tuple[str, int, str]]:
    return [(o.label, o.seed, o.status) for o in outcomes]


def test_every_method_and_seed_leaves_a_record(tmp_path: Path) -> None:
    what = experiment("finetune", "ncm", seeds=[0, 3])
    outcomes = run(what, tmp_path)
    assert statuses(outcomes) == [(m, s, "done") for s in (0, 3) for m in ("finetune", "ncm")]
    record = Record.read(tmp_path / "e" / "ncm" / "seed-3")
    assert (record.label, record.seed, record.status.status) == ("ncm", 3, "done")
    assert record.config["stream"]["train_per_class"] == 5
    assert record.environment["protocol"]["split"].startswith("train/test per task 10/8, 10/8")
    assert record.accuracy is not None
    assert record.accuracy.n_test.tolist() == [8] * 5
    assert (record.folder / "checkpoints" / "learner.safetensors").exists()
    assert [e["event"] for e in record.events][:2] == ["run_started", "task_started"]


def test_what_is_done_is_skipped_and_the_rest_is_run(tmp_path: Path) -> None:
    run(experiment("ncm", save=False), tmp_path)
    before = (tmp_path / "e/ncm/seed-0/events.jsonl").read_bytes()
    seen: list[tuple[str, int, str]] = []
    both = experiment("ncm", {"name": "ncm", "label": "second"}, save=False)
    outcomes = run_experiment(both, tmp_path, observe=lambda label, seed, event, f: seen.append((label, seed, event)))
    assert [o.status for o in outcomes] == ["skipped", "done"]
    assert seen[:2] == [("ncm", 0, "skipped"), ("second", 0, "run_started")]
    assert (tmp_path / "e/ncm/seed-0/events.jsonl").read_bytes() == before
    assert not (tmp_path / "e/ncm/seed-0/checkpoints").exists()


def test_changed_settings_are_refused_by_name_before_anything_runs(tmp_path: Path) -> None:
    run(experiment("ncm"), tmp_path)
    changed = experiment({"name": "ncm", "label": "new"}, {"name": "ncm", "metric": "euclidean"}, plan={"epochs": 2})
    with pytest.raises(
        ConfigError, match=r"method.metric was 'cosine', now 'euclidean'; plan.epochs was 1, now 2.*--over"
    ):
        run(changed, tmp_path)
    assert not (tmp_path / "e/new").exists()
    assert statuses(run(changed, tmp_path, overwrite=True)) == [("new", 0, "done"), ("ncm", 0, "done")]
    assert Record.read(tmp_path / "e/ncm/seed-0").config["plan"]["epochs"] == 2


def test_tuples_from_python_equal_lists_from_the_record(tmp_path: Path) -> None:
    what = experiment("ncm", transform={"scale": (0.6, 1.0)})
    run(what, tmp_path)
    assert statuses(run(what, tmp_path)) == [("ncm", 0, "skipped")]


def test_forecasts_are_recorded_and_change_nothing_else(tmp_path: Path) -> None:
    kinds = ("finetune", {"name": "finetune", "label": "lora", "tune": "full"}, "ncm")
    seen: list[tuple[str, str, dict[str, Any]]] = []
    without = experiment(*kinds)
    run(without, tmp_path / "without")
    what = experiment(*kinds, forecast={"samples": 10})
    outcomes = run_experiment(what, tmp_path, observe=lambda label, seed, event, f: seen.append((label, event, f)))
    for outcome in outcomes:
        record, plain = Record.read(outcome.folder), Record.read(tmp_path / "without/e" / outcome.label / "seed-0")
        assert plain.forecasts == []
        assert record.config["forecast"] == {"samples": 10, "new_samples": 0, "form": "auto", "refine": 0.0}
        assert [f.task for f in record.forecasts] == [1, 2, 3, 4]
        assert (record.folder / "accuracy.json").read_text() == (plain.folder / "accuracy.json").read_text()
        learner, other = (load_file(r.folder / "checkpoints" / "learner.safetensors") for r in (record, plain))
        assert learner.keys() == other.keys()
        assert all(np.array_equal(learner[key], other[key]) for key in learner)
        steps = [[{k: v for k, v in e.items() if k not in ("t", "samples_per_s")} for e in r.events_named("step")]
                 for r in (record, plain)]  # fmt: skip
        assert steps[0] == steps[1]
    head, _, ncm = (Record.read(outcome.folder) for outcome in outcomes)
    assert all(f.summary["n_old"] == 10 - 2 * (f.task == 1) for f in head.forecasts)
    assert all("real_drift" in f.arrays and f.summary["quality"]["cosine"] is not None for f in head.forecasts)
    assert {f.summary["status"] for f in ncm.forecasts} == {"refused"}
    named = [event for label, event, _ in seen if label == "finetune" and event.startswith("forecast")]
    assert named == ["forecast", "forecast_checked"] * 4
    assert [event for label, event, _ in seen if label == "ncm" and event.startswith("forecast")] == ["forecast"] * 4


def test_a_theory_report_is_recorded_and_changes_nothing_else(tmp_path: Path) -> None:
    kinds = ({"name": "finetune", "tune": "head"}, {"name": "ncm"})
    for before, after in zip(
        run(experiment(*kinds), tmp_path / "plain"),
        run(experiment(*kinds, theory={"samples": 10, "probe": 5}), tmp_path / "theory"),
        strict=True,
    ):
        plain, record = Record.read(before.folder), Record.read(after.folder)
        assert plain.theory == []
        assert record.config["theory"]["samples"] == 10
        assert [(t.task, t.light) for t in record.theory] == [(k, "green") for k in range(5)]
        names = [row["name"] for row in record.theory[2].after["staleness"]["own"]]  # type: ignore[index]
        assert names == [plain.accuracy.class_names[c] for c in plain.accuracy.task_classes[2]]  # type: ignore[union-attr]
        assert plain.accuracy is not None
        assert record.accuracy is not None
        np.testing.assert_array_equal(record.accuracy.matrix, plain.accuracy.matrix)
    with pytest.raises(ConfigError, match=r"\[theory\] does not know 'prob'. Did you mean 'probe'\?"):
        run(experiment("ncm", theory={"prob": 10}), tmp_path / "typo")


def test_a_mistyped_forecast_table_is_answered_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[forecast\] does not know 'sample'. Did you mean 'samples'\?"):
        run(experiment("ncm", forecast={"sample": 10}), tmp_path)
    with pytest.raises(ConfigError, match=r"\[forecast\] form must be one of 'auto', 'exact', 'bilinear', 'ntk'"):
        run(experiment("ncm", forecast={"form": "nkt"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_differences_name_each_key() -> None:
    assert difference({"a": 1, "c": 2}, {"a": 3, "c": 2}) == ["a was 1, now 3"]
    assert difference({"a": {"b": 1}}, {"a": {}}) == ["a.b was 1, now not set"]


def test_a_failing_method_is_recorded_and_does_not_stop_the_others(tmp_path: Path) -> None:
    outcomes = run(experiment(f"{HERE}:Raises", "ncm"), tmp_path)
    assert statuses(outcomes) == [("Raises", 0, "failed"), ("ncm", 0, "done")]
    record = Record.read(outcomes[0].folder)
    assert (record.status.status, record.status.reason) == ("failed", "RuntimeError: no more memory")
    failed = record.events_named("failed")[0]
    assert "end_task" in failed["traceback"]
    assert statuses(run(experiment(f"{HERE}:Raises", "ncm"), tmp_path))[0][2] == "failed", "a failed run is tried again"


@pytest.mark.parametrize(
    ("method", "plan", "reason"),
    [
        (
            "finetune",
            {"lr": 1e38, "epochs": 6, "optimizer": "sgd"},
            r"loss term 'cross_entropy' became (nan|inf) at step",
        ),
        (f"{HERE}:OneColumn", {}, r"OneColumn.predict must return .* \[8 samples, 2 classes seen\], got \(8, 1\)"),
        (f"{HERE}:Vector", {}, r"Vector.training_loss: term 'each' must be a scalar, got shape \(10,\)"),
        (f"{HERE}:Bare", {}, "Bare.training_loss must return a dict of scalar tensors by name, got Tensor"),
        (f"{HERE}:Detached", {}, "no term depends on a trainable parameter"),
    ],
)
def test_failures_say_what_was_wrong(tmp_path: Path, method: str, plan: dict[str, Any], reason: str) -> None:
    entry = {"name": method} if method.endswith("OneColumn") else {"name": method, "tune": "head"}
    outcome = run(experiment(entry, plan=plan), tmp_path)[0]
    assert outcome.status == "failed"
    assert outcome.reason is not None
    assert re.search(reason, outcome.reason)


def test_an_interrupted_run_is_closed_and_finished_by_a_repeat(tmp_path: Path) -> None:
    Interrupted.once = tmp_path / "once"
    Interrupted.once.touch()
    what = experiment("ncm", f"{HERE}:Interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(what, tmp_path / "runs")
    record = Record.read(tmp_path / "runs/e/interrupted/seed-0")
    assert (record.status.status, record.status.reason) == ("interrupted", "stopped by the user")
    assert statuses(run(what, tmp_path / "runs")) == [("ncm", 0, "skipped"), ("Interrupted", 0, "done")]


def test_a_method_that_leaves_the_program_leaves_a_closed_record(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(experiment(f"{HERE}:Exits"), tmp_path)
    assert Record.read(tmp_path / "e/exits/seed-0").status.reason == "the program exited (3)"


def test_a_killed_run_is_taken_up_again_and_a_living_one_is_not(tmp_path: Path) -> None:
    """The killed process holds the record of `experiment()`, written as the runner does."""
    what = experiment("ncm")
    folder = tmp_path / "e/ncm/seed-0"
    settings = json.dumps(what.resolved(what.methods[0], 0))
    code = f"""
        import json, sys
        from tangentcl.records import RecordWriter
        writer = RecordWriter({str(folder)!r}, json.loads({settings!r}), {{}})
        writer.event("run_started", {{"n_tasks": 5}})
        print("ready", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert not is_abandoned(folder)
        with pytest.raises(RecordError, match=r"another run is writing .*seed-0. Wait for it or stop it"):
            run(what, tmp_path)
        with pytest.raises(RecordError, match="is being written by a run that goes on"):
            run(what, tmp_path, overwrite=True)
        assert len(Record.read(folder).events) == 1, "the living record is untouched"
        other.send_signal(signal.SIGKILL)
    assert Record.read(folder).status.status == "running"
    assert is_abandoned(folder)
    assert statuses(run(what, tmp_path)) == [("ncm", 0, "done")]
    assert not is_abandoned(folder)


def test_killed_before_the_record_had_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "e/ncm/seed-0"
    RecordWriter(folder, {"name": "e", "seed": 0, "label": "ncm"}, {}).finish("interrupted")
    content = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**content, "status": "running"}))
    for name in ("config.toml", "environment.json"):
        (folder / name).unlink()
    assert statuses(run(experiment("ncm"), tmp_path)) == [("ncm", 0, "done")]


@pytest.mark.parametrize(
    ("name", "content"),
    [("status.json", "{"), ("events.jsonl", "{}\n"), ("accuracy.json", "[]"), ("config.toml", None)],
)
def test_a_damaged_record_is_named_and_can_be_replaced(tmp_path: Path, name: str, content: str | None) -> None:
    run(experiment("ncm"), tmp_path)
    file = tmp_path / "e/ncm/seed-0" / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(RecordError, match=f"{name}.*Repeat with --overwrite"):
        run(experiment("ncm"), tmp_path)
    assert statuses(run(experiment("ncm"), tmp_path, overwrite=True)) == [("ncm", 0, "done")]


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    run(experiment("ncm"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot make the folder .*file/e/ncm/seed-0"):
        run(experiment("ncm"), tmp_path / "file")
    (tmp_path / "e/second").write_text("in the way")
    with pytest.raises(RecordError, match="cannot make the folder"):
        run(experiment("ncm", {"name": "ncm", "label": "second"}), tmp_path)
    assert Record.read(tmp_path / "e/ncm/seed-0").status.status == "done"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match="Permission denied"):
        run(experiment("ncm"), tmp_path)


@pytest.mark.parametrize(
    ("methods", "tables", "error", "message"),
    [
        (["nmc"], {}, ConfigError, r"unknown method 'nmc'. Did you mean 'ncm'\?"),
        (["nowhere:X"], {}, ConfigError, "cannot be imported: ModuleNotFoundError"),
        ([":X"], {}, ConfigError, "cannot be imported"),
        (["os:path"], {}, ConfigError, "not a subclass of tangentcl.methods.Method"),
        (
            [{"name": "ncm", "metrc": 1}],
            {},
            ConfigError,
            r"\[method ncm\] does not know 'metrc'. Did you mean 'metric'",
        ),
        ([{"name": "finetune", "rank": "a"}], {}, ConfigError, "rank must be a whole number, got 'a'"),
        ([f"{HERE}:BadConstructor"], {}, ConfigError, r"cannot be constructed: RuntimeError: wrong moon \(test_run.py"),
        (["ncm"], {"stream": {"kind": "clas_incremental"}}, ConfigError, "Did you mean 'class_incremental'"),
        (["ncm"], {"stream": {"kind": 3}}, ConfigError, r"\[stream\] kind is 3"),
        (["ncm"], {"stream": {"tasks": 3}}, ConfigError, r"\[stream\] does not know 'tasks'. Did you mean 'n_tasks'"),
        (["ncm"], {"stream": {"order_seed": "sed"}}, ConfigError, 'order_seed must be a whole number, or "seed"'),
        (["ncm"], {"stream": {"n_tasks": 11}}, ConfigError, "at most 10, the number of classes, got 11"),
        (["ncm"], {"source": {"name": "digts"}}, DataError, r"Did you mean 'digits'\?"),
        (["ncm"], {"source": {"name": 3}}, ConfigError, r"\[source\] name must be a text that is not empty, got 3"),
        (["ncm"], {"backbone": {"name": ""}}, ConfigError, r"\[backbone\] name must be a text"),
        (["ncm"], {"backbone": {"poling": "cls"}}, ConfigError, r"\[backbone\] does not know 'poling'. Did you mean"),
        (["ncm"], {"transform": {"scal": [0.5, 1]}}, ConfigError, r"\[transform\] does not know 'scal'. Did you mean"),
        (["ncm"], {"transform": {"scale": 0.5}}, ConfigError, "scale must be a list of 2 numbers"),
        (["ncm"], {"transform": {"size": 8}}, ConfigError, "belongs to the backbone"),
        (["ncm"], {"transform": {"augment": 1}}, ConfigError, "augment must be true or false"),
        (["ncm"], {"plan": {"seed": 1}}, ConfigError, r"\[plan\] does not take a seed; use seeds"),
        (["ncm"], {"plan": {"epoch": 1}}, ConfigError, r"\[plan\] does not know 'epoch'. Did you mean 'epochs'"),
        (["ncm"], {"plan": {"device": "cuda"}}, ConfigError, "this machine does not have"),
        ([{"name": "ncm", "plan": {"epochs": 0}}], {}, ConfigError, "plan.epochs must be a whole number"),
    ],
)
def test_a_mistake_in_the_last_method_costs_no_training(
    tmp_path: Path, methods: list[Any], tables: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "cuda" in str(tables) and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    what = experiment(
        {"name": "ncm", "label": "first"},
        *[m if isinstance(m, dict) else {"name": m, "label": "x"} for m in methods],
        **tables,
    )
    with pytest.raises(error, match=message):
        run(what, tmp_path)
    assert not (tmp_path / "e").exists()


def test_texts_do_not_go_into_an_image_backbone(tmp_path: Path) -> None:
    rows = "".join(f"{word} {i},{word}\n" for i in range(8) for word in ("good", "bad"))
    (tmp_path / "t.csv").write_text("text,label\n" + rows)
    with pytest.raises(ConfigError, match="holds text samples, the backbone 'bundled' takes image samples"):
        run(experiment("ncm", source={"name": str(tmp_path / "t.csv")}, stream={"n_tasks": 2}), tmp_path)


def test_the_class_order_follows_the_seed_when_asked(tmp_path: Path) -> None:
    orders = []
    for order in ("seed", 5):
        outcomes = run(experiment("ncm", seeds=[0, 1], stream={"order_seed": order}), tmp_path / str(order))
        orders += [Record.read(o.folder).environment["stream"]["class_order"] for o in outcomes]
    assert orders[0] != orders[1]
    assert orders[2] == orders[3]
    assert orders[0] == np.random.RandomState(0).permutation(10).tolist()


def test_the_source_is_loaded_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    real = build.load

    def counting(name: str) -> Any:
        loaded.append(name)
        return real(name)

    monkeypatch.setattr(build, "load", counting)
    run(experiment("ncm", seeds=[0, 1, 2], stream={"order_seed": "seed"}), tmp_path)
    assert loaded == ["digits"]


def test_transforms_follow_the_table() -> None:
    features = build.build_backbone({"name": "x"})
    train, evaluation = build.transforms(features, {"scale": [0.5, 0.5], "flip": 1.0})
    assert (train.describe()["scale"], train.describe()["flip"]) == ([0.5, 0.5], 1.0)  # type: ignore[union-attr]
    still, _ = build.transforms(features, {"augment": False})
    assert still.describe() == evaluation.describe()  # type: ignore[union-attr]
