"""A file of features of some samples, found by the samples' keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from tangentcl.errors import DataError
from tangentcl.files import Damaged, place_of, sealed, write_whole

KEY = 16  # bytes


class Segment:
    """Keys [m] and features [m, d] of one file, checked against its checksum when opened, and memory-mapped.

    Raises:
        Damaged: the file is not what was written. OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        places = place_of(content.data, ("keys", "features"))
        (start, end, shape), (first, last, size) = places["keys"], places["features"]
        if len(shape) != 2 or shape[1] != KEY or len(size) != 2 or size[0] != shape[0]:
            raise Damaged(f"its keys {shape} and features {size} do not fit")
        self.keys = [row.tobytes() for row in content[start:end].reshape(shape)]
        self.features: NDArray[np.float32] = content[first:last].view(np.float32).reshape(size)


def write_segment(folder: Path, keys: list[bytes], features: NDArray[np.float32]) -> Path:
    """Write a segment under a name that follows from its keys.

    Raises:
        DataError: the disk refuses; nothing that was there is lost.
    """
    path = folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.safetensors"
    rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY)
    content = sealed(save({"keys": rows, "features": np.ascontiguousarray(features, dtype=np.float32)}))
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(
            f"features cannot be kept in {folder} ({error.strerror or error}). Make room (tangentcl cache clear), name "
            "another folder in TANGENTCL_CACHE, or run with --no-cache."
        ) from error
    return path
