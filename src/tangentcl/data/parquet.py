"""Parquet files with images in the Hugging Face schema ({bytes, path} and a label), or with texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tangentcl.data.assemble import Split, assemble, named_labels, split_of
from tangentcl.data.columns import (
    IMAGE_NAMES,
    LABEL_NAMES,
    NO_COLUMNS,
    TEXT_NAMES,
    Columns,
    choose_column,
    class_groups,
)
from tangentcl.data.inputs import EncodedImages
from tangentcl.data.listing import files_in
from tangentcl.data.table import Source
from tangentcl.documents import Malformed, parse_json
from tangentcl.errors import ConfigError, DataError, import_extra


def parquet(
    path: Path,
    columns: Columns = NO_COLUMNS,
    *,
    name: str | None = None,
    test_share: float = 0.25,
    test_seed: int = 0,
    licence: str = "",
    citation: str = "",
) -> Source:
    """Images or texts with labels from one Parquet file, or from a folder of train, test and validation files.

    Files may come in shards as on the Hugging Face hub (``data/train-00000-of-00002.parquet``). Images stay encoded in
    memory and are decoded when they are used. Class names are taken from the Hugging Face metadata if they are there.

    Raises:
        MissingExtra: pyarrow is not installed.
        DataError: a file that cannot be read, a sample without image, text or label.
        ConfigError: a column that does not exist.
    """
    found = parquet_splits(path, columns)
    return assemble(
        name or path.stem,
        found.modality,
        found.splits,
        class_names=found.class_names,
        groups=found.groups,
        test_share=test_share,
        test_seed=test_seed,
        licence=licence,
        citation=citation,
    )


@dataclass(frozen=True)
class ParquetSplits:
    """What Parquet files hold: "image" or "text" samples by split, class names and groups where they are known."""

    modality: str
    splits: dict[str, Split]
    class_names: list[str] | None
    groups: Mapping[str, list[str]] | None


def parquet_splits(path: Path, columns: Columns = NO_COLUMNS) -> ParquetSplits:
    """The splits that `parquet` makes a source of; a single file is "train".

    Raises:
        MissingExtra, DataError, ConfigError: as `parquet`.
    """
    files = _files(path)
    read, modality, class_names, groups = {}, "", None, ([], [])  # type: ignore[var-annotated]
    for split, shards in files.items():
        table = _table(shards, path)
        modality, column, label = _roles(table, columns, str(shards[0]))
        names = _class_names(table, label, shards[0])
        class_names = class_names or names
        inputs = _images(table, column, shards) if modality == "image" else _values(table, column, shards)
        labels = _values(table, label, shards)
        domains = None
        if columns.domain is not None:
            choose_column(table.column_names, columns.domain, (), "domain", str(shards[0]))
            domains = [str(value) for value in _values(table, columns.domain, shards)]
        if columns.group is not None:
            choose_column(table.column_names, columns.group, (), "group", str(shards[0]))
            groups[0].extend(labels if names is None else named_labels(labels, names, str(shards[0])))
            groups[1].extend(_values(table, columns.group, shards))
        read[split] = Split(inputs, labels, None, domains)
    return ParquetSplits(modality, read, class_names, class_groups(*groups, str(path)) if groups[0] else None)


def parquet_table(path: Path) -> Any:
    """A Parquet file as an arrow table.

    Raises:
        MissingExtra: pyarrow is not installed. DataError: it cannot be read.
    """
    return _table([path], path)


def encoded_columns(table: Any) -> list[str]:
    """Columns that hold encoded images."""
    types = {column: str(table.schema.field(column).type) for column in table.column_names}
    return [column for column, kind in types.items() if "bytes: binary" in kind or kind.endswith("binary")]


def encoded_column(table: Any, column: str, path: Path) -> EncodedImages:
    """The images of one of `encoded_columns`.

    Raises:
        DataError: a sample without bytes.
    """
    return _images(table, column, [path])


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    folder = path if any(file.suffix == ".parquet" for file in files_in(path)) else path / "data"
    files: dict[str, list[Path]] = {}
    for file in (file for file in files_in(folder) if file.suffix == ".parquet"):
        split = split_of(re.split(r"[-_.]", file.stem)[0])
        if split is None:
            raise DataError(
                f"Which split {file} belongs to is unclear; expected a name that begins with train, val or test."
            )
        files.setdefault(split, []).append(file)
    if "train" not in files:
        raise DataError(
            f"{folder} has no training split; expected train.parquet. Found: {', '.join(files) or 'nothing'}."
        )
    return files


def _table(shards: Sequence[Path], path: Path) -> Any:
    purpose = f"reading {path.name}"
    arrow = import_extra("pyarrow", extra="data", purpose=purpose)
    reader = import_extra("pyarrow.parquet", extra="data", purpose=purpose)
    tables = []
    for shard in shards:
        with _reading(shard):
            tables.append(reader.read_table(shard, page_checksum_verification=True))
        if tables[-1].column_names != tables[0].column_names:
            raise DataError(f"{shard} has other columns than {shards[0]}: {', '.join(tables[-1].column_names)}.")
    with _reading(path):
        return arrow.concat_tables(tables)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of pyarrow as DataError; of damaged files it raises those of Python, too, such as UnicodeDecodeError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"Cannot read {path} ({type(error).__name__}: {error}).") from error


def _roles(table: Any, columns: Columns, where: str) -> tuple[str, str, str]:
    """Modality, column of the samples, column of the labels."""
    found = table.column_names
    label = choose_column(found, columns.label, LABEL_NAMES, "label", where)
    if columns.text is not None:
        return "text", choose_column(found, columns.text, TEXT_NAMES, "text", where), label
    encoded = encoded_columns(table)
    if columns.image is not None or encoded:
        usual = (*IMAGE_NAMES, *encoded)
        column = choose_column(found, columns.image, [one for one in usual if one in encoded], "image", where)
        if column not in encoded:
            raise ConfigError(
                f"Column {column!r} of {where} has no encoded images but {table.schema.field(column).type}."
            )
        return "image", column, label
    return "text", choose_column(found, None, TEXT_NAMES, "text", where), label


def _images(table: Any, column: str, shards: Sequence[Path]) -> EncodedImages:
    offsets, buffers = [np.zeros(1, dtype=np.int64)], []
    arrow = import_extra("pyarrow", extra="data", purpose="reading images")
    total = 0
    for chunk in table.column(column).chunks:
        with _reading(shards[0]):
            values = chunk.field("bytes") if arrow.types.is_struct(chunk.type) else chunk
            encoded = [value.as_py() for value in values]
        if values.null_count or chunk.null_count or not all(isinstance(one, bytes) for one in encoded):
            raise DataError(f"{values.null_count} samples in {shards[0]} have no image bytes in column {column!r}.")
        buffers.append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        offsets.append(total + np.cumsum([len(one) for one in encoded], dtype=np.int64))
        total += len(buffers[-1])
    buffer = np.concatenate(buffers) if buffers else np.zeros(0, dtype=np.uint8)
    return EncodedImages(buffer, np.concatenate(offsets), str(shards[0]))


def _values(table: Any, column: str, shards: Sequence[Path]) -> list[Any]:
    with _reading(shards[0]):
        found, missing = table.column(column), table.column(column).null_count
        values = found.to_pylist() if not missing else []
    if missing:
        raise DataError(f"{missing} samples in {shards[0]} have no value in column {column!r}.")
    return values


def _class_names(table: Any, label: str, path: Path) -> list[str] | None:
    """Class names from the metadata that Hugging Face datasets writes into the schema."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        feature = parse_json(metadata)["info"]["features"][label]
    except Malformed as error:
        raise DataError(f"Cannot read the Hugging Face metadata of {path}: {error}.") from error
    except (KeyError, TypeError):  # metadata that say nothing of this column
        return None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"The Hugging Face metadata of {path} should list the names of classes, got {names!r:.80}.")
    return names
