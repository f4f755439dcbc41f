"""Checksums of the files of a record that has ended: the content of ``checksums.json``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecordError
from .files import listed, read_bytes, read_json, write_json

CHECKSUMS = "checksums.json"
SCHEMA = 1

_NAMES = ("config.toml", "environment.json", "events.jsonl", "accuracy.json", "status.json")
_FOLDERS = {"forecasts": re.compile(r"task-\d{3,}\.(json|safetensors)"), "theory": re.compile(r"task-\d{3,}\.json")}
_ADVICE = "Take the folder from a copy, or run it again with --overwrite."


@dataclass(frozen=True)
class Checksums:
    """SHA-256 of each file of a record, by its name inside the folder.

    Learners and moments are not among them: their files hold a checksum of their own.
    """

    folder: Path
    digests: Mapping[str, str]

    @staticmethod
    def read(folder: Path) -> Checksums:
        """Those that were written when the record ended.

        Raises:
            RecordError: the file is missing or damaged.
        """
        path = folder / CHECKSUMS
        content = read_json(path)
        digests = content.get("sha256")
        if content.get("schema") != SCHEMA or not isinstance(digests, dict):
            raise RecordError(f"{path} is damaged: expected schema {SCHEMA} and 'sha256', got {sorted(content)[:5]}")
        if content.get("of_this_list") != _of_list(digests):
            raise RecordError(f"{path} is damaged: the list in it is not what was written. {_ADVICE}")
        return Checksums(folder, digests)

    def check(self, part: str | None = None) -> None:
        """Compare the files of the record itself, or those in its folder ``part``, with what was written.

        Raises:
            RecordError: a file that is another, missing, or was not there when the record ended.
        """
        here = {name for name in covered(self.folder) if _part(name) == part}
        written = {name for name in self.digests if _part(name) == part}
        for name in sorted(here | written):
            path = self.folder / name
            if name not in written:
                raise RecordError(
                    f"{path} was not there when the record ended: {CHECKSUMS} does not list it. {_ADVICE}"
                )
            if _digest(read_bytes(path)) != self.digests[name]:
                raise RecordError(f"{path} is damaged: it is not what was written, as {CHECKSUMS} tells. {_ADVICE}")


def write_checksums(folder: str | Path, *, status: bytes | None = None) -> Path:
    """Write ``checksums.json`` for the files that lie in a record; its path is returned.

    A run does it when it ends. Whoever changes a file of a record on purpose does it again.

    Args:
        folder: of the record.
        status: what ``status.json`` is about to hold; None = what it holds.

    Raises:
        RecordError: a file cannot be read, or the disk refuses.
    """
    folder = Path(folder)
    digests = {name: _digest(read_bytes(folder / name)) for name in covered(folder)}
    if status is not None:
        digests["status.json"] = _digest(status)
    write_json(folder / CHECKSUMS, {"schema": SCHEMA, "sha256": digests, "of_this_list": _of_list(digests)})
    return folder / CHECKSUMS


def covered(folder: Path) -> list[str]:
    """Names of the files of a record that have checksums, of those that are there.

    Raises:
        RecordError: a folder cannot be listed.
    """
    found = [name for name in _NAMES if (folder / name).exists()]
    for inside, pattern in _FOLDERS.items():
        found += [f"{inside}/{path.name}" for path in listed(folder / inside) if pattern.fullmatch(path.name)]
    return found


def _part(name: str) -> str | None:
    return name.split("/")[0] if "/" in name else None


def _of_list(digests: Mapping[str, object]) -> str:
    return _digest(json.dumps(digests, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
