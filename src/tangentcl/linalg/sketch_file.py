"""Tensors with a JSON header in one safetensors file, and sketches as such files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tangentcl.documents import Malformed, parse_json
from tangentcl.errors import DataError
from tangentcl.files import Damaged, metadata, sealed, write_whole
from tangentcl.linalg.sketch import Sketch
from tangentcl.linalg.sketch_kinds import restored

HEADER = "header"


def write_tensors(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file so that a reader sees the old one or all of the new one, never a part. Makes its folder.

    Raises:
        OSError: the file system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({key: value.contiguous() for key, value in tensors.items()}, {HEADER: json.dumps(header)})
    write_whole(path, sealed(content))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file that `write_tensors` made.

    Raises:
        DataError: no such file, or one that is damaged or of another kind.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        header = parse_json(metadata(content)[HEADER])
        tensors = load(content)
    except (Damaged, Malformed) as error:
        raise DataError(f"{path} is damaged: {error}. Take it from a copy, or make it again.") from error
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{path} is damaged or was written by something else: {error!r}") from error
    if not isinstance(header, dict):
        raise DataError(f"{path} is damaged: its header is a {type(header).__name__}, not an object")
    return header, tensors


def save_sketch(sketch: Sketch, path: str | Path) -> None:
    """Write a sketch to a safetensors file, in one piece or not at all.

    >>> import tempfile, torch
    >>> from tangentcl.linalg import LowRankDiagonal
    >>> sketch = LowRankDiagonal(3, k=2)
    >>> sketch.update(torch.eye(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sketch(sketch, f"{folder}/sketch.safetensors")
    ...     load_sketch(f"{folder}/sketch.safetensors").energy(torch.ones(3, 1))
    tensor([3.], dtype=torch.float64)
    """
    tensors = sketch.tensors()
    write_tensors(Path(path), sketch.header, tensors)


def load_sketch(path: str | Path) -> Sketch:
    """Read what `save_sketch` wrote.

    Raises:
        DataError: a file that is missing, damaged or does not hold a sketch.
    """
    header, tensors = read_tensors(Path(path))
    return restored(header, tensors)
