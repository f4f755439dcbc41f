"""Reading and atomic writing of the JSON and TOML files of a record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import tomli_w

from ..documents import Malformed, parse_json, parse_toml
from ..errors import RecordError
from ..files import write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def plain(value: Any, where: str = "value") -> Any:
    """The value in JSON's own types: numpy numbers and arrays unpacked, paths as text, NaN and infinity as None.

    Raises:
        RecordError: something JSON cannot hold, with its place.

    >>> import numpy as np
    >>> plain({"loss": np.float32("nan"), "counts": np.array([1, 2]), "ok": (True, None)})
    {'loss': None, 'counts': [1, 2], 'ok': [True, None]}
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # names of files may hold what is no text
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return plain(str(value), where)
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise RecordError(f"{where} is a {type(value).__name__}, which a record cannot hold; give numbers, text or lists")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or all of the new one, never a part.

    Raises:
        RecordError: the file system refuses; the reason is kept.
    """
    try:
        write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise refused("write", path, error) from error


def refused(action: str, path: Path, error: OSError) -> RecordError:
    """The error for a file the system does not let us read or write, with the system's own reason."""
    return RecordError(f"cannot {action} {path}: {error.strerror or error}")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; see `plain` for what is converted."""
    atomic_write(path, json.dumps(plain(value, path.name), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Write a TOML table, atomically. TOML has no null: keys whose value is None are left out."""
    try:
        text = tomli_w.dumps(_without_none(plain(table, path.name)))
    except (TypeError, ValueError) as error:
        raise RecordError(f"cannot write {path.name} as TOML: {error}") from error
    atomic_write(path, text)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value if v is not None]
    return value


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of a record.

    Raises:
        RecordError: it is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(f"{path} is missing; a record needs it. Was it copied completely?") from error
    except OSError as error:
        raise refused("read", path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RecordError: it is missing, damaged or holds something else than an object.
    """
    try:
        value = parse_json(read_bytes(path))
    except Malformed as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML table from a file.

    Raises:
        RecordError: it is missing or damaged.
    """
    try:
        return parse_toml(read_bytes(path))
    except Malformed as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def listed(folder: Path) -> list[Path]:
    """What lies in a folder of a record; nothing where there is no such folder.

    Raises:
        RecordError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise refused("list", folder, error) from error


def hold(file: IO[Any], path: Path) -> None:
    """Lock an open file until it is closed or this process is gone, however it ends; see `is_held`.

    Where the file system has no locks nothing is locked.

    Raises:
        RecordError: another process, or another writer in this one, holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordError(f"{path.parent} is being written by a run that goes on. Wait for it, or stop it.") from error
    except OSError:  # a network file system without locks: `is_held` answers None there
        return


def is_held(path: Path) -> bool | None:
    """Whether someone holds a lock on a file; None where that cannot be told.

    Raises:
        RecordError: the file cannot be opened.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return False
    except OSError as error:
        raise refused("read", path, error) from error
    with file:
        if fcntl is None:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        return False
