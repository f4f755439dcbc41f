"""Samples of one file or folder without labels: what is to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tangentcl.data.columns import IMAGE_NAMES, TEXT_NAMES, choose_column
from tangentcl.data.image_folder import IMAGE_SUFFIXES, ImageFiles, encoded_images, image_entry
from tangentcl.data.inputs import Chained, Inputs, Picked
from tangentcl.data.parquet import encoded_column, encoded_columns, parquet_table
from tangentcl.data.text_files import TEXT_SUFFIXES, text_lines, text_rows
from tangentcl.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class UnlabelledFile:
    """Raw samples in the order of their file.

    Attributes:
        inputs: raw samples; "" where ``bad`` says that there is none.
        ids: path and place of each, unique within a file: ``photos/a.png``, ``texts.txt:3`` (line), ``a.csv:3``
            (sample, counted from 1).
        bad: position and reason of each sample that cannot be used, as far as it is known without decoding images.
    """

    inputs: Inputs
    ids: tuple[str, ...]
    bad: dict[int, str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: np.ndarray) -> Inputs:
        """The raw samples at these positions."""
        return Picked(self.inputs, positions)

    @staticmethod
    def joined(parts: Sequence[UnlabelledFile]) -> UnlabelledFile:
        """All samples of several files, one file after the other."""
        if len(parts) == 1:
            return parts[0]
        starts = [sum(map(len, parts[:i])) for i in range(len(parts))]
        bad = {start + i: reason for start, part in zip(starts, parts) for i, reason in part.bad.items()}
        return UnlabelledFile(Chained([part.inputs for part in parts]), sum((part.ids for part in parts), ()), bad)


def read_unlabelled(path: str | Path, modality: str, *, column: str | None = None) -> UnlabelledFile:
    """All samples of a file or folder; labels that are there too are not looked at.

    Images: a file, a folder of files at any depth, a zip file of them, a Parquet file. Texts: ``.txt`` with a text in
    each line, CSV, TSV, JSON, JSONL or Parquet with a column of texts.

    Args:
        path: file or folder.
        modality: "image" or "text".
        column: of the samples, where the file has columns; None = by its usual name.

    Raises:
        DataError: nothing there, nothing in it, unreadable. ConfigError: no such column, or a file without columns.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = file.write_text("one\\n\\nthree\\n")
    >>> found = read_unlabelled(file, "text")
    >>> found.inputs[2], found.bad
    ('three', {1: 'the text is empty'})
    """
    path = Path(path).expanduser()
    if not path.exists():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file or folder {path}.{nearest(path.name, beside) if len(beside) <= 20 else ''}")
    if modality not in ("image", "text"):
        raise DataError(f"Files hold images or texts; samples of modality {modality!r} are predicted from Python.")
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix == ".parquet":
        found = _parquet(path, modality, column)
    elif modality == "text":
        found = _texts(path, suffix, column)
    else:
        if column is not None:
            raise ConfigError(f"{path} has no columns to choose; leave out the column {column!r}.")
        found = _images(path, suffix)
    if not len(found):
        raise DataError(f"{path} has no sample.")
    return found


def _images(path: Path, suffix: str) -> UnlabelledFile:
    if suffix in IMAGE_SUFFIXES:
        return UnlabelledFile(ImageFiles(path.parent, [image_entry(path)]), (str(path),), {})
    if suffix not in ("", ".zip"):
        raise DataError(
            f"Cannot predict from {path}: expected images as a file ({', '.join(IMAGE_SUFFIXES[:4])}, ...), a folder, "
            "a .zip or a .parquet file."
        )
    inputs, names = encoded_images(path)
    return UnlabelledFile(inputs, tuple(f"{path}/{name}" for name in names), {})


def _texts(path: Path, suffix: str, column: str | None) -> UnlabelledFile:
    if suffix == ".txt":
        if column is not None:
            raise ConfigError(f"{path} has one text per line and no columns; leave out the column {column!r}.")
        return _checked(path, text_lines(path))
    if suffix not in TEXT_SUFFIXES:
        raise DataError(
            f"Cannot predict from {path}: expected texts as a .txt file, one per line, or as a file with a column of "
            f"texts: {', '.join(TEXT_SUFFIXES)}, .parquet."
        )
    rows = text_rows(path)
    if not rows:
        return UnlabelledFile([], (), {})
    name = choose_column(list(rows[0]), column, TEXT_NAMES, "text", str(path))
    return _checked(path, [row.get(name) for row in rows])


def _parquet(path: Path, modality: str, column: str | None) -> UnlabelledFile:
    table = parquet_table(path)
    if modality == "text":
        name = choose_column(table.column_names, column, TEXT_NAMES, "text", str(path))
        return _checked(path, table.column(name).to_pylist())
    encoded = encoded_columns(table)
    usual = [one for one in (*IMAGE_NAMES, *encoded) if one in encoded]
    name = choose_column(table.column_names, column, usual, "image", str(path))
    if name not in encoded:
        raise ConfigError(f"Column {name!r} of {path} has no encoded images.")
    inputs = encoded_column(table, name, path)
    return UnlabelledFile(inputs, tuple(f"{path}:{i + 1}" for i in range(len(inputs))), {})


def _checked(path: Path, texts: Sequence[Any]) -> UnlabelledFile:
    """Texts, with what is none of them put aside."""
    bad: dict[int, str] = {}
    for i, text in enumerate(texts):
        if text is None or (isinstance(text, str) and not text.strip()):
            bad[i] = "the text is empty"
        elif not isinstance(text, str):
            bad[i] = f"expected a text, got {text!r:.60}"
    kept = ["" if i in bad else text for i, text in enumerate(texts)]
    return UnlabelledFile(kept, tuple(f"{path}:{i + 1}" for i in range(len(kept))), bad)
