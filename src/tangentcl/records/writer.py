"""Writing a run record while the run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ..errors import RecordError
from ..files import remove_parts
from .accuracy import Accuracy
from .files import atomic_write, hold, is_held, plain, read_json, refused, write_json, write_toml
from .forecasts import TaskForecast, remove_forecasts, write_forecast
from .theory import TaskTheory, remove_theory, write_theory

ENDS = ("done", "failed", "interrupted")


class RecordWriter:
    """Writes one run record; one writer per folder, in the main process only.

    The folder is marked ``running`` at once, so that an abandoned run is never taken for a result, and gets its last
    word from `finish`. ``events.jsonl`` is locked in between: a record that says ``running`` but whose process is gone
    may be written again. As a context manager the writer finishes by itself: ``done``, ``interrupted`` on
    KeyboardInterrupt, ``failed`` with the error's text otherwise.

    Args:
        folder: ``runs/<experiment>/<label>/seed-<s>``; made when missing.
        config: resolved experiment: name, seed, label and the tables stream, backbone, plan, method. TOML has no null,
            so keys with value None are left out.
        environment: versions, device, protocol; non-finite numbers become null.
        overwrite: replace a record that is done, or damaged, or ``running`` where locks do not tell whether it is.
        go_on: `position` of an earlier writer of this folder: its record is continued from there, later events go.

    Raises:
        RecordError: the folder holds a record that is done or running, or cannot be written; with the system's reason.

    >>> import tempfile
    >>> with RecordWriter(tempfile.mkdtemp() + "/seed-0", {"name": "x", "seed": 0, "label": "ncm"}, {}) as record:
    ...     record.event("task_started", {"task": 0})
    >>> read_json(record.folder / "status.json")["status"]
    'done'
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        overwrite: bool = False,
        go_on: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        config, environment = (
            plain(config, "config"),
            plain(environment, "environment"),
        )  # refuse before touching the disk
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused("make the folder", self.folder, error) from error
        if not overwrite:
            self._refuse_to_overwrite()
        self._started = datetime.now(timezone.utc)
        self._clock = time.monotonic()
        path = self.folder / "events.jsonl"
        try:
            self._events = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        except OSError as error:
            raise refused("write", path, error) from error
        hold(self._events, path)
        remove_parts(self.folder)
        if go_on is not None:
            self._go_on(go_on)
            return
        self._write_status("running", None)
        try:
            self._events.truncate(0)
            (self.folder / "accuracy.json").unlink(missing_ok=True)
        except OSError as error:
            raise refused("write", path, error) from error
        remove_forecasts(self.folder)
        remove_theory(self.folder)
        write_toml(self.folder / "config.toml", config)
        write_json(self.folder / "environment.json", environment)

    def _go_on(self, place: Mapping[str, Any]) -> None:
        path = self.folder / "events.jsonl"
        if (size := path.stat().st_size) < place["events"]:
            raise RecordError(
                f"{path} is damaged: it holds {size} bytes where the run had written {place['events']} when its state "
                "was kept. Start afresh with --overwrite."
            )
        self._started = datetime.fromisoformat(read_json(self.folder / "status.json")["started"])
        self._clock -= place["clock"]
        self._write_status("running", None)
        try:
            self._events.truncate(place["events"])
        except OSError as error:
            raise refused("write", path, error) from error

    def position(self) -> dict[str, Any]:
        """Where the record stands, for ``go_on``; what was written before is on the disk.

        Raises:
            RecordError: the disk refuses.
        """
        try:
            self._events.flush()
            os.fsync(self._events.fileno())
        except OSError as error:
            raise refused("write", self.folder / "events.jsonl", error) from error
        return {"events": os.fstat(self._events.fileno()).st_size, "clock": time.monotonic() - self._clock}

    def event(self, event: str, fields: Mapping[str, Any] | None = None) -> None:
        """Append one line to ``events.jsonl`` with ``t``, the seconds since the start, and flush it.

        Raises:
            RecordError: the record is finished, a field cannot be stored, or the disk refuses.
        """
        fields = fields or {}
        taken = {"t", "event"} & set(fields)
        if taken:
            raise RecordError(f"an event cannot have a field named {taken.pop()!r}: every event has it already")
        if self._events.closed:
            raise RecordError(f"{self.folder} is finished: event {event!r} came too late")
        line = {"t": round(time.monotonic() - self._clock, 3), "event": event, **plain(fields, event)}
        try:
            self._events.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._events.flush()
        except OSError as error:
            raise refused("write", self.folder / "events.jsonl", error) from error

    def accuracy(
        self,
        *,
        scenario: str,
        task_names: Sequence[str],
        class_names: Sequence[str],
        task_classes: Sequence[Sequence[int]],
        n_test: npt.ArrayLike,
        matrix: npt.ArrayLike,
        class_correct: npt.ArrayLike | None = None,
        class_total: npt.ArrayLike | None = None,
    ) -> Accuracy:
        """Write ``accuracy.json`` with its metrics; may be called after every task, the last call stays.

        Shapes as in `Accuracy`; counts of classes not seen yet are blanked. Returns what was written.

        Raises:
            RecordError: parts that do not fit together, or the disk refuses.
        """
        accuracy = Accuracy.of(
            scenario=scenario,
            task_names=task_names,
            class_names=class_names,
            task_classes=task_classes,
            n_test=n_test,
            matrix=matrix,
            class_correct=class_correct,
            class_total=class_total,
        )
        write_json(self.folder / "accuracy.json", accuracy.to_json())
        return accuracy

    def forecast(self, forecast: TaskForecast) -> None:
        """Write the forecast of one task; called before the task is learned, and again when the truth is known.

        Raises:
            RecordError: parts that do not fit together, or the disk refuses.
        """
        write_forecast(self.folder, forecast)

    def theory(self, theory: TaskTheory) -> None:
        """Write the theory report of one task; called before the task is learned, and again after it.

        Raises:
            RecordError: parts that are missing, or the disk refuses.
        """
        write_theory(self.folder, theory)

    def finish(self, status: str = "done", reason: str | None = None) -> None:
        """Close the record with ``done``, ``failed`` or ``interrupted``; ``reason`` says why it is not done.

        Raises:
            RecordError: an unknown status, or the disk refuses.
        """
        if status not in ENDS:
            raise RecordError(f"a record ends as {', '.join(ENDS)}, got {status!r}")
        self._write_status(status, reason)
        try:
            self._events.close()  # after the status: an unlocked record that says "running" counts as abandoned
        except OSError as error:
            raise refused("write", self.folder / "events.jsonl", error) from error

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._events.closed:
            return
        if error is None:
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted", "stopped by the user")
        else:
            self.finish("failed", f"{type(error).__name__}: {error}")

    def _write_status(self, status: str, reason: str | None) -> None:
        ended = None if status == "running" else datetime.now(timezone.utc).isoformat(timespec="seconds")
        content = {
            "status": status,
            "reason": reason,
            "started": self._started.isoformat(timespec="seconds"),
            "ended": ended,
        }
        atomic_write(self.folder / "status.json", json.dumps(content, indent=1) + "\n")

    def _refuse_to_overwrite(self) -> None:
        path = self.folder / "status.json"
        if path.exists():
            status = read_json(path).get("status")
            if status not in ("failed", "interrupted") and not is_abandoned(self.folder):
                raise RecordError(
                    f"{self.folder} already holds a record with status {status!r}. "
                    "Choose another label or output folder, or ask for it to be overwritten."
                )
        elif (self.folder / "config.toml").exists():
            raise RecordError(f"{self.folder} holds a config.toml but no run record; choose an empty output folder")


def is_abandoned(folder: str | Path) -> bool:
    """Whether a record says ``running`` although the process that wrote it is gone, as after a power cut.

    False where the file system has no locks, because it cannot be told there.

    Raises:
        RecordError: a damaged status.
    """
    folder = Path(folder)
    running = read_json(folder / "status.json").get("status") == "running"
    return running and is_held(folder / "events.jsonl") is False
