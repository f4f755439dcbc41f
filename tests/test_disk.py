"""Disks that are full, read-only, or change under our hands: a clear error, and earlier results as they were."""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tangentcl.cli import main
from tangentcl.data import TaskStream, class_incremental, load
from tangentcl.errors import DataError, ModelError, RecordError
from tangentcl.methods import NCM
from tangentcl.nn import Backbone, FeatureStore, backbone
from tangentcl.records import (
    Record,
    RecordWriter,
    TaskForecast,
    TaskTheory,
    find_records,
    is_abandoned,
    read_forecasts,
    read_theory,
)
from tangentcl.records.forecasts import write_forecast
from tangentcl.records.theory import write_theory
from tangentcl.reports import select, write_report
from tangentcl.training import TrainingPlan, run_stream
from tangentcl.training.checkpoint import LEARNER, load_learner, remove_learners, save_learner
from tangentcl.training.moments import load_moments, save_moments

EXPERIMENT = """
name = "{name}"
[stream]
kind = "class_incremental"
n_tasks = 5
train_per_class = 5
test_per_class = 4
[plan]
epochs = 1
device = "cpu"
[[method]]
name = "finetune"
label = "head, all"
tune = "head"
[[method]]
name = "ncm"
"""
CONFIG = {"name": "x", "seed": 0, "label": "ncm"}
ACCURACY: dict[str, Any] = {
    "scenario": "class",
    "task_names": ["a"],
    "class_names": ["b"],
    "task_classes": [[0]],
    "n_test": [1],
    "matrix": [[1.0]],
}
REFUSED = {"status": "refused", "reason": "nothing trains"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB, mounted, so that it can be full and read-only for root as well."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if sys.platform != "linux" or mount is None or umount is None:
        pytest.skip("needs mount, as on Linux")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    gc.collect()  # writers that a test left open
    subprocess.run([umount, "-l", str(place)], check=True)


def leave(disk: Path, free: int) -> None:
    """Fill the disk up to ``free`` bytes."""
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(room.f_bavail * room.f_frsize - free, 0)))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more than ``size`` bytes into any file."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are of Unix")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def finished(folder: Path) -> Path:
    """A finished record."""
    with RecordWriter(folder, CONFIG, {}) as record:
        record.event("step", {"loss": 1.0})
        record.accuracy(**ACCURACY)
        record.theory(TaskTheory(0, "a", REFUSED))
        record.forecast(TaskForecast(0, "a", REFUSED, {}))
    return folder


def statuses(folder: Path) -> list[str]:
    """Of every record below a folder, all of which have to be readable or say that they lack a file."""
    found = []
    for record in find_records([folder]) if any(folder.rglob("events.jsonl")) else []:
        try:
            found.append(Record.read(record).status.status)
        except RecordError as error:
            found.append("incomplete" if "is missing; a record needs it" in str(error) else str(error))
    return found


@pytest.mark.parametrize("free", [0, 4096, 8192, 16384, 24576, 32768, 49152, 65536, 98304])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    disk: Path,
    free: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pixel_experiments: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    finished(disk / "earlier" / "ncm" / "seed-0")
    before = contents(disk)
    (tmp_path / "small.toml").write_text(EXPERIMENT.format(name="small"))
    leave(disk, free)
    code = main(["run", "small.toml", "--out", str(disk)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert code == 2
    last = printed.err.splitlines()[-1]
    assert last.startswith("tangentcl: error: ")
    assert "No space left on device" in last
    assert str(disk / "small") in last
    assert {name: content for name, content in contents(disk).items() if name in before} == before
    assert not list(disk.rglob("*.part"))
    done = statuses(disk / "small").count("done")
    (disk / "ballast").unlink()
    assert main(["run", "small.toml", "--out", str(disk), "--json"]) == 0
    again = capsys.readouterr().out
    assert again.count('"status": "skipped"') == done
    assert statuses(disk / "small") == ["done", "done"]


def test_a_read_only_disk(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixel_experiments: None
) -> None:
    record = finished(disk / "earlier" / "ncm" / "seed-0")
    (tmp_path / "small.toml").write_text(EXPERIMENT.format(name="small"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert main(["run", str(tmp_path / "small.toml"), "--out", str(disk)]) == 2
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    assert main(["report", str(disk)]) == 2
    assert "report.html: Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(RecordError, match="Read-only file system"):
        RecordWriter(record, CONFIG, {}, overwrite=True)
    assert Record.read(record).status.status == "done"
    assert main(["report", str(disk), "--out", str(tmp_path / "page.html")]) == 0


def test_events_cut_off_by_a_full_disk_leave_whole_lines(disk: Path) -> None:
    record = RecordWriter(disk / "seed-0", CONFIG, {})
    leave(disk, 8192)
    with pytest.raises(RecordError, match=r"cannot write .*events\.jsonl: No space left on device"):
        collections.deque((record.event("step", {"text": "x" * 100}) for _ in range(1000)), maxlen=0)
    kept = (disk / "seed-0" / "events.jsonl").read_bytes()
    assert kept
    assert not kept.endswith(b"\n")  # cut within a line
    (disk / "ballast").unlink()
    record.event("later")
    record.finish("failed", "the disk was full")
    found = Record.read(disk / "seed-0")
    assert found.truncated_events == 0
    assert [e["event"] for e in found.events[-2:]] == ["step", "later"]


def test_a_record_that_cannot_even_say_that_it_failed_is_abandoned(disk: Path) -> None:
    record = RecordWriter(disk / "seed-0", CONFIG, {})
    leave(disk, 0)
    with pytest.raises(RecordError, match="No space left on device"):
        record.finish()
    record.give_up("the disk is full")
    assert Record.read(disk / "seed-0").status.status == "running"
    assert is_abandoned(disk / "seed-0")
    (disk / "ballast").unlink()
    finished(disk / "seed-0")


@pytest.fixture
def learned(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> NCM:
    method = NCM(tiny_backbone())
    run_stream(method, tiny_stream, TrainingPlan(epochs=1, device="cpu"))
    return method


def writers(learned: NCM, stream: TaskStream, folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that writes a result, each into a folder where it has written before."""
    run = finished(folder / "run")
    made = {
        "learner": lambda: save_learner(learned, folder / "learner"),
        "moments": lambda: save_moments(learned, stream[0], folder / "moments"),
        "report": lambda: write_report([run], folder / "page.html"),
        "forecast": lambda: write_forecast(folder / "f", TaskForecast(1, "a" * 400, REFUSED, {})),
        "theory": lambda: write_theory(folder / "t", TaskTheory(1, "a" * 400, REFUSED)),
    }
    for write in made.values():
        write()
    return made


@pytest.mark.parametrize("name", ["learner", "moments", "report", "forecast", "theory"])
def test_a_file_that_the_system_cuts_off_leaves_the_old_one(
    learned: NCM, tiny_stream: TaskStream, tmp_path: Path, name: str
) -> None:
    write = writers(learned, tiny_stream, tmp_path)[name]
    before = contents(tmp_path)
    with largest_file(100), pytest.raises(RecordError, match="File too large"):
        write()
    assert contents(tmp_path) == before


def test_a_record_is_as_it_was_where_not_even_the_begin_of_the_next_can_be_written(tmp_path: Path) -> None:
    before = contents(finished(tmp_path))
    with largest_file(20), pytest.raises(RecordError, match=r"cannot write .*status\.json: File too large"):
        RecordWriter(tmp_path, CONFIG, {}, overwrite=True)
    assert contents(tmp_path) == before
    assert Record.read(tmp_path).status.status == "done"


@pytest.mark.parametrize("call", ["mkstemp", "fsync", "replace"])
def test_a_refusal_at_any_step_of_any_file_is_one_error(
    learned: NCM, tiny_stream: TaskStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The first, second, ... call fails, until one is never reached; what was finished before stays as it was."""
    kept = finished(tmp_path / "kept")
    before = contents(kept)
    module: Any = __import__("tempfile") if call == "mkstemp" else os
    real, reached = getattr(module, call), 0
    for n in range(1, 100):
        count = 0

        def failing(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:  # noqa: B023 (called within this turn)
                raise OSError(28, "No space left on device")
            return real(*arguments, **keywords)

        folder = tmp_path / f"{call}-{n}"
        monkeypatch.setattr(module, call, failing)
        said = "No space left on device"
        try:
            finished(folder)
            save_learner(learned, folder)
            save_moments(learned, tiny_stream[0], folder, k=2, layers_k=0)
            write_report([folder], folder / "page.html")
        except RecordError as error:
            said = str(error)
        monkeypatch.undo()
        assert "No space left on device" in said
        assert contents(kept) == before
        assert not list(folder.rglob("*.part"))
        if count < n:
            break
        reached = n
        whole = (folder / "checksums.json").exists() and Record.read(folder).status.status == "done"
        assert whole or statuses(folder) in (["running"], ["failed"], ["incomplete"])
    assert reached >= 10, f"{call} was called {reached} times"
    assert Record.read(folder).status.status == "done"


@pytest.mark.parametrize("name", ["forecasts", "theory"])
def test_a_file_in_place_of_a_folder_of_a_record(tmp_path: Path, name: str) -> None:
    record = finished(tmp_path / "seed-0")
    shutil.rmtree(record / name)
    (record / name).write_text("in the way")
    with pytest.raises(RecordError, match=rf"{name}/task-000\.json"):
        _ = getattr(Record.read(record), name)
    writer = RecordWriter(record, CONFIG, {}, overwrite=True)
    write = {
        "theory": lambda: writer.theory(TaskTheory(0, "a", REFUSED)),
        "forecasts": lambda: writer.forecast(TaskForecast(0, "a", REFUSED, {})),
    }[name]
    with pytest.raises(RecordError, match=f"cannot make the folder .*{name}"):
        write()


def test_a_file_in_place_of_a_folder_of_learners_and_moments(
    learned: NCM, tiny_stream: TaskStream, tmp_path: Path
) -> None:
    for name in ("learner", "moments"):
        (tmp_path / name).write_text("in the way")
    with pytest.raises(RecordError, match="cannot be written"):
        save_learner(learned, tmp_path / "learner")
    with pytest.raises(RecordError, match="cannot be written"):
        save_moments(learned, tiny_stream[0], tmp_path)
    with pytest.raises(ModelError, match=rf"{LEARNER} cannot be read: Not a directory"):
        load_learner(learned, tmp_path / "learner")
    with pytest.raises(RecordError, match="holds no moments"):
        load_moments(tmp_path)
    remove_learners(tmp_path / "nowhere")


def test_a_record_that_vanishes_after_it_was_listed_is_left_out_with_the_reason(tmp_path: Path) -> None:
    finished(tmp_path / "seed-0"), finished(tmp_path / "seed-1")
    found = find_records([tmp_path])
    shutil.rmtree(tmp_path / "seed-1")
    selection = select(found)
    assert [record.folder.name for record in selection.done] == ["seed-0"]
    assert "seed-1 is not a folder" in selection.excluded[0][1]


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the system refuse to list a folder, which root cannot be refused otherwise."""

    def refuse(folder: Path) -> None:
        real_list, real_scan = os.listdir, os.scandir

        def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any = ".") -> Any:
                if isinstance(path, (str, os.PathLike)) and Path(path) == folder:
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path)

            return call

        monkeypatch.setattr(os, "listdir", refusing(real_list))
        monkeypatch.setattr(os, "scandir", refusing(real_scan))

    return refuse


def test_folders_that_may_not_be_listed_are_named_not_skipped(tmp_path: Path, unlisted: Callable[[Path], None]) -> None:
    from PIL import Image

    record = finished(tmp_path / "runs" / "seed-0")
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (2, 2)).save(tmp_path / "images" / name / f"{i}.png")
    unlisted(tmp_path / "images" / "dog")
    with pytest.raises(DataError, match=r"Cannot list the folder .*dog \(Permission denied\)"):
        load(tmp_path / "images")
    unlisted(tmp_path / "images")
    with pytest.raises(DataError, match=r"Cannot list the folder .*images \(Permission denied\)"):
        load(tmp_path / "images")
    unlisted(record / "theory")
    with pytest.raises(RecordError, match=r"cannot list .*theory: Permission denied"):
        read_theory(record)
    unlisted(record / "forecasts")
    with pytest.raises(RecordError, match=r"cannot list .*forecasts: Permission denied"):
        read_forecasts(record)
    unlisted(tmp_path / "runs")
    with pytest.raises(RecordError, match=r"cannot list .*runs: Permission denied"):
        find_records([tmp_path / "runs"])


def test_an_image_that_vanishes_while_the_folder_is_listed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"Cannot read the image .*cat/gone\.png \(No such file or directory\)"):
        load(tmp_path)


def test_permission_denied_for_an_ordinary_user(tmp_path: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    record = finished(tmp_path / "seed-0")
    before = contents(record)
    record.chmod(0o500)
    try:
        with pytest.raises(RecordError, match="Permission denied"):
            RecordWriter(record, CONFIG, {}, overwrite=True)
    finally:
        record.chmod(0o700)
    assert contents(record) == before


def test_features_on_a_full_disk_are_refused_clearly_and_those_that_are_there_stay(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentcl.nn.feature_store.ROWS", 40)
    network = backbone()
    stream = class_incremental(load("digits"), n_tasks=5, train_per_class=20, test_per_class=4)
    small = class_incremental(load("digits"), n_tasks=5, train_per_class=3, test_per_class=1)
    FeatureStore(disk / "cache").stream(small, network)
    before = contents(disk / "cache")
    leave(disk, 60_000)
    with pytest.raises(DataError, match=r"features cannot be kept in .*No space left on device.*--no-cache"):
        FeatureStore(disk / "cache").stream(stream, network)
    assert before.items() <= contents(disk / "cache").items()
    assert not list(disk.rglob("*.part"))
    (disk / "ballast").unlink()
    store = FeatureStore(disk / "cache")
    assert store.stream(stream, network) is not None
    assert 0 < store.computed < 240 - 40
