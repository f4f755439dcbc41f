"""Labelled samples of one file or folder as they are, without being split: what a forecast from files reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tangentcl.data.assemble import Split, check_labels, named_labels, natural_order
from tangentcl.data.columns import Columns
from tangentcl.data.image_folder import image_splits
from tangentcl.data.inputs import Inputs
from tangentcl.data.listing import files_in
from tangentcl.data.naming import naming
from tangentcl.data.parquet import parquet_splits
from tangentcl.data.sources import kind_of, refuse_columns
from tangentcl.data.table import Table
from tangentcl.data.text_files import text_splits
from tangentcl.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class LabelledFile:
    """Raw samples with their labels as texts.

    Attributes:
        path: where they come from.
        modality: "text" or "image".
        inputs: raw samples.
        labels: as they are written there, [n].
        ids: unique name of each sample, [n].
    """

    path: Path
    modality: str
    inputs: Inputs
    labels: tuple[str, ...]
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> list[str]:
        """The labels that occur, numbers by value before texts by name."""
        return sorted(set(self.labels), key=natural_order)

    def table(self, numbers: Mapping[str, int]) -> Table:
        """The samples with the number of each label.

        Raises:
            DataError: a label without a number.
        """
        unknown = [label for label in self.classes if label not in numbers]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise DataError(
                f"{self.path} has the label {unknown[0]!r}{more}, none of the {len(numbers)} known classes."
                f"{_closest(unknown[0], numbers)}"
            )
        return Table(self.inputs, np.array([numbers[label] for label in self.labels], dtype=np.int64), self.ids)


def read_labelled(path: str | Path, columns: Columns, *, splits: Sequence[str] = ("train",)) -> LabelledFile:
    """All samples of a CSV, TSV, JSON, JSONL or Parquet file, or of a folder of images.

    Args:
        path: file or folder. Of a folder (or JSON object) with several splits one is read.
        columns: names of columns; None = the usual ones.
        splits: which split to read, by preference; "train" is also what files without splits are.

    Raises:
        DataError: nothing there, nothing in it, unreadable, or samples without text or label. ConfigError: no such
            column.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = file.write_text("text,label\\nhello,greet\\nbye,leave\\n")
    >>> found = read_labelled(file, Columns())
    >>> found.labels, found.table({"greet": 0, "leave": 1}).labels.tolist()
    (('greet', 'leave'), [0, 1])
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.{_beside(path)}")
    with naming(path):
        modality, read, names = _read(path, columns)
    chosen = next((read[split] for split in (*splits, "train", *read) if split in read), None)
    if chosen is None or not len(chosen.inputs):
        raise DataError(f"{path} has no sample.")
    if len(chosen.inputs) != len(chosen.labels):
        raise DataError(f"{path} has {len(chosen.inputs)} samples and {len(chosen.labels)} labels.")
    check_labels(chosen.labels, str(path))
    labels = chosen.labels if names is None else named_labels(chosen.labels, names, str(path))
    ids = np.array([f"{path.name}/{i + 1}" for i in range(len(labels))]) if chosen.ids is None else chosen.ids
    return LabelledFile(path, modality, chosen.inputs, tuple(map(str, labels)), ids)


def _read(path: Path, columns: Columns) -> tuple[str, Mapping[str, Split], Sequence[str] | None]:
    """Modality, splits, and the names of labels that are numbers."""
    kind = kind_of(path)
    if kind == "parquet":
        found = parquet_splits(path, columns)
        return found.modality, found.splits, found.class_names
    if kind == "text":
        if columns.image is not None:
            raise ConfigError(f"{path} holds texts and has no image column.")
        return "text", text_splits(path, columns)[0], None
    if kind == "hub":
        raise DataError(f"{path} is a saved Hugging Face data set. Write the split as Parquet: split.to_parquet(file).")
    refuse_columns(columns, str(path))
    return "image", image_splits(path), None


def _beside(path: Path) -> str:
    return _closest(path.name, [file.name for file in files_in(path.parent)] if path.parent.is_dir() else [])


def _closest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, and all of them only where they are few."""
    names = list(known)
    said = nearest(name, names)
    return said if len(names) <= 20 else said.split(" Known: ")[0]
