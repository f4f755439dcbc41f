"""Files in one piece, and safetensors files that know their own checksum."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEAL = "sha256"
HEADER = 8  # bytes that hold the length of a safetensors header


class Damaged(ValueError):
    """The content of a file is not what was written."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or the next start after a crash, sees the old content or all of the new one.

    Written aside, synced to the disk, renamed; then the folder is synced, too, so that the name is not lost either.

    Raises:
        OSError: the file system refuses; what was there before stays as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder as durable as their files; nothing where the system cannot (Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Remove what `write_whole` left unfinished, here and below, when its process was killed.

    Only where no one else writes in ``folder``.
    """
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)


def sealed(content: bytes) -> bytes:
    """A safetensors file with the SHA-256 of its header and data among its metadata. It stays one for any reader.

    >>> from safetensors.numpy import load, save
    >>> import numpy as np
    >>> content = sealed(save({"w": np.ones(2)}, metadata={"method": "NCM"}))
    >>> metadata(content), load(content)["w"].tolist()
    ({'method': 'NCM'}, [1.0, 1.0])
    >>> metadata(content[:-1] + b"x")
    Traceback (most recent call last):
        ...
    tangentcl.files.Damaged: its content does not have the checksum it was written with
    """
    header, data = _parts(content)
    about = {**header.get("__metadata__", {}), SEAL: _digest(header, data)}
    header["__metadata__"] = dict(sorted(about.items()))  # safetensors writes them in any order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER)  # as safetensors aligns it
    return len(text).to_bytes(HEADER, "little") + text + data


def metadata(content: bytes | memoryview) -> dict[str, str]:
    """The metadata of a `sealed` file, after its checksum is checked.

    Raises:
        Damaged: no safetensors file, no checksum, or another one.
    """
    header, data = _parts(content)
    about = header.get("__metadata__", {})
    if not isinstance(about, dict) or SEAL not in about:
        raise Damaged("it has no checksum; was it written by another program?")
    digest = about.pop(SEAL)
    if digest != _digest(header, data):
        raise Damaged("its content does not have the checksum it was written with")
    return about


def place_of(content: memoryview, names: Sequence[str]) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """First byte, end and shape of some tensors in a `sealed` file, after its checksum is checked.

    Raises:
        Damaged: as `metadata`, or a tensor is not there.
    """
    metadata(content)
    header, data = _parts(content)
    if missing := [name for name in names if name not in header]:
        raise Damaged(f"it holds no {missing[0]}")
    start, places = len(content) - len(data), {}
    for name in names:
        first, end = header[name]["data_offsets"]
        places[name] = (start + first, start + end, tuple(header[name]["shape"]))
    return places


def _parts(content: bytes | memoryview) -> tuple[dict[str, Any], memoryview]:
    size = int.from_bytes(content[:HEADER], "little")
    if len(content) < HEADER or len(content) - HEADER < size:
        raise Damaged(f"it ends after {len(content)} bytes, within its header")
    try:
        header = json.loads(bytes(content[HEADER : HEADER + size]))
    except ValueError as error:  # of the text or of JSON
        raise Damaged(f"its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise Damaged("its header is no table")
    return header, memoryview(content)[HEADER + size :]


def _digest(header: dict[str, Any], data: memoryview) -> str:
    """Of the header in one fixed form, without an empty table of metadata, and the data."""
    plain = {key: value for key, value in header.items() if key != "__metadata__" or value}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    digest.update(data)
    return digest.hexdigest()
