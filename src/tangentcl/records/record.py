"""Reading run records."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..documents import Malformed, parse_json
from ..errors import ConfigError, RecordError
from .accuracy import Accuracy
from .checksums import Checksums
from .files import read_bytes, read_json, read_toml, refused
from .forecasts import TaskForecast, read_forecasts
from .published import Published, published_from
from .theory import TaskTheory, read_theory

Found = TypeVar("Found")

STATUSES = ("running", "done", "failed", "interrupted")


@dataclass(frozen=True)
class Status:
    """How a run ended: status "running", "done", "failed" or "interrupted", why, and when (ISO 8601, UTC)."""

    status: str
    reason: str | None
    started: str | None
    ended: str | None


@dataclass(frozen=True)
class Record:
    """One run, read back and checked.

    Attributes:
        folder: where it lies.
        config: resolved experiment file. environment: versions, device, stream, protocol.
        events: in the order written, each with "t" (seconds since the start) and "event".
        truncated_events: 1 when the last line of ``events.jsonl`` was cut off (a run that was killed), else 0.
        accuracy: None when an unfinished run has not evaluated yet.
        status: see `Status`.
        checksums: of its files, None while it is running.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]
    truncated_events: int
    accuracy: Accuracy | None
    status: Status
    checksums: Checksums | None = None

    @staticmethod
    def read(folder: str | Path) -> Record:
        """Read a record folder.

        A last line of ``events.jsonl`` that was cut off, as when a run is killed, is dropped and counted; anything else
        damaged is refused. Once the run has ended the files must be those of ``checksums.json``, bit by bit; forecasts
        and theory are compared when they are first asked for.

        Raises:
            RecordError: a missing or damaged file, by name, and what is wrong with it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RecordError(f"{folder} is not a folder; a record is a folder with status.json")
        status = _status(folder / "status.json")
        config = read_toml(folder / "config.toml")
        _check_config(config, folder / "config.toml")
        environment = read_json(folder / "environment.json")
        events, truncated = _events(folder / "events.jsonl")
        path = folder / "accuracy.json"
        accuracy = None
        if status.status == "done" or path.exists():
            accuracy = Accuracy.from_json(read_json(path), str(path))
        checksums = None
        if status.status != "running":  # until then the files change
            checksums = Checksums.read(folder)
            checksums.check()
        return Record(folder, config, environment, events, truncated, accuracy, status, checksums)

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self.config["name"])

    @property
    def label(self) -> str:
        """Label of the run within its experiment; the method's name where none was given."""
        return str(self.config.get("label") or self.method)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    @property
    def method(self) -> str:
        """Name of the method, e.g. "joint"; the label where the configuration names none."""
        table = self.config.get("method")
        named = table.get("name") if isinstance(table, Mapping) else table
        return str(named or self.config.get("label") or "unnamed")

    @cached_property
    def published(self) -> list[Published]:
        """What the experiment's file says that others published; empty where it says nothing.

        Raises:
            RecordError: the list is damaged.
        """
        tables, path = self.environment.get("published", []), self.folder / "environment.json"
        try:
            return [published_from(table, str(path)) for table in tables]
        except (ConfigError, TypeError) as error:
            raise RecordError(f"{path} is damaged: {error}") from error

    @cached_property
    def forecasts(self) -> list[TaskForecast]:
        """What was forecast before each task, and what came true; read when first asked for, empty where none was.

        Raises:
            RecordError: a missing or damaged file, by name.
        """
        return self._unchanged("forecasts", read_forecasts(self.folder))

    @cached_property
    def theory(self) -> list[TaskTheory]:
        """The quantities of the theory report, task by task; read when first asked for, empty where there are none.

        Raises:
            RecordError: a damaged file, by name.
        """
        return self._unchanged("theory", read_theory(self.folder))

    def _unchanged(self, part: str, found: list[Found]) -> list[Found]:
        if self.checksums is not None:
            self.checksums.check(part)
        return found

    def events_named(self, event: str) -> list[Mapping[str, Any]]:
        """The events of one kind, in order."""
        return [e for e in self.events if e["event"] == event]


def find_records(paths: Iterable[str | Path]) -> list[Path]:
    """Folders of run records at or below the given folders, each once, seeds in numeric order.

    Args:
        paths: folders or glob patterns such as ``runs/*``.

    Raises:
        RecordError: a path that does not exist, or no record under any of them.
    """
    given = [Path(p) for p in paths]
    found: dict[Path, Path] = {}
    for path in given:
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise RecordError(f"{path} does not exist; give folders with run records, e.g. runs/")
        for match in matches:
            for folder in _below(match):
                found.setdefault(folder.resolve(), folder)
    if not found:
        under = ", ".join(map(str, given)) or "no folder"
        raise RecordError(
            f"no run record under {under}: none of the folders there holds a status.json. Make one: tangentcl run"
        )
    return sorted(found.values(), key=_natural)


def _below(path: Path) -> list[Path]:
    folders = []

    def refuse(error: OSError) -> None:
        if isinstance(error, (NotADirectoryError, FileNotFoundError)):  # a file, or gone since it was listed
            return
        raise refused("list", Path(error.filename), error) from error

    for folder, inside, files in os.walk(path, onerror=refuse):
        if "status.json" in files or "events.jsonl" in files:
            folders.append(Path(folder))
            inside.clear()
    return folders


def _natural(path: Path) -> list[list[tuple[int, int, str]]]:
    return [
        [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]
        for part in path.parts
    ]


def _status(path: Path) -> Status:
    content = read_json(path)
    status = content.get("status")
    if status not in STATUSES:
        raise RecordError(f"{path} is damaged: status must be one of {', '.join(STATUSES)}, got {status!r}")
    for key in ("reason", "started", "ended"):
        if not isinstance(content.get(key), (str, type(None))):
            raise RecordError(f"{path} is damaged: {key!r} must be text or null, got {content[key]!r}")
    return Status(status, content.get("reason"), content.get("started"), content.get("ended"))


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    if not isinstance(config.get("name"), str):
        raise RecordError(f"{path} is damaged: 'name' must be text, got {config.get('name')!r}")
    seed = config.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RecordError(f"{path} is damaged: 'seed' must be a whole number, got {seed!r}")


def _events(path: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    *lines, tail = read_bytes(path).split(b"\n")
    truncated = 0
    if tail:
        try:
            parse_json(tail)
        except Malformed:
            truncated = 1
        else:
            lines.append(tail)
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = parse_json(line)
        except Malformed as error:
            raise RecordError(f"{path} is damaged: line {number}: {error}") from error
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise RecordError(f"{path} is damaged: line {number} must be an object with a text 'event'")
        if isinstance(event.get("t"), bool) or not isinstance(event.get("t"), (int, float)):
            raise RecordError(f"{path} is damaged: line {number} has no time 't' in seconds")
        events.append(event)
    return tuple(events), truncated
