"""Texts in CSV, JSON and JSONL files, and CLINC150's own JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tangentcl.data.assemble import Split, assemble, split_of
from tangentcl.data.columns import LABEL_NAMES, NO_COLUMNS, TEXT_NAMES, Columns, choose_column, class_groups
from tangentcl.data.listing import files_in
from tangentcl.data.naming import naming
from tangentcl.data.table import Source
from tangentcl.documents import Malformed, parse_json
from tangentcl.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")

Rows = list[dict[str, Any]]


def text_files(path: Path, columns: Columns = NO_COLUMNS, *, test_share: float = 0.25, test_seed: int = 0) -> Source:
    """Texts with labels from one file, or from a folder with train, test and validation files.

    CSV and TSV need a header line. JSON holds a list of objects, or an object of splits, each a list of objects or of
    [text, label] pairs. JSONL holds one object per line.

    Raises:
        DataError: a file that cannot be read, an empty text, a missing value, no training split.
        ConfigError: a column that does not exist.
    """
    splits, groups = text_splits(path, columns)
    if "train" not in splits:
        raise DataError(
            f"{path} has no training split; expected a file or key named train. Found: {', '.join(splits)}."
        )
    return assemble(path.stem, "text", splits, groups=groups, test_share=test_share, test_seed=test_seed)


def text_splits(path: Path, columns: Columns = NO_COLUMNS) -> tuple[dict[str, Split], dict[str, list[str]] | None]:
    """The splits that `text_files` makes a source of, a single file being "train", and the groups of the classes.

    Raises:
        DataError, ConfigError: as `text_files`.
    """
    read: dict[str, tuple[Path, Rows]] = {}
    if path.is_dir():
        for file in files_in(path):
            split = split_of(file.stem)
            if file.suffix.lower() in TEXT_SUFFIXES and split is not None:
                if split in read:
                    raise DataError(f"{read[split][0].name} and {file.name} in {path} are both the {split} split.")
                read[split] = (file, _rows(file))
    elif path.suffix.lower() == ".json":
        content = _json(path)
        if isinstance(content, dict):
            parts = {split_of(name): part for name, part in content.items()}
            read = {split: (path, _objects(part, path)) for split, part in parts.items() if split is not None}
        else:
            read = {"train": (path, _objects(content, path))}
    else:
        read = {"train": (path, _rows(path))}
    return _splits(read, columns)


def clinc150(folder: Path) -> Source:
    """CLINC150 from ``data_full.json``: 150 intents; groups are its ten domains if ``domains.json`` lies beside it.

    Out-of-scope sentences are left out. Classes are in the order of ``domains.json``, domain by domain.

    Raises:
        DataError: files that are missing or not as published.
    """
    with naming(folder / "data_full.json"):
        return _clinc150(folder)


def _clinc150(folder: Path) -> Source:
    path = folder / "data_full.json"
    content = _json(path)
    if not isinstance(content, dict) or not {"train", "val", "test"} <= set(content):
        raise DataError(f"Expected the splits train, val and test in {path}.")
    splits = {}
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        pairs = _objects(content[name], path)
        splits[split] = Split([_string(pair, "text", path) for pair in pairs], [pair.get("label") for pair in pairs])
    domains = folder / "domains.json"
    groups: dict[str, list[str]] | None = _json(domains) if domains.exists() else None
    if groups is not None and not (isinstance(groups, dict) and all(isinstance(g, list) for g in groups.values())):
        raise DataError(f"Expected an object of lists of intents in {domains}.")
    return assemble(
        "clinc150",
        "text",
        splits,
        class_names=None if groups is None else [intent for intents in groups.values() for intent in intents],
        groups=groups,
    )


def text_rows(path: Path) -> Rows:
    """The rows of a CSV, TSV, JSON or JSONL file, with or without labels.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix.lower() != ".json":
        return _rows(path)
    content = _json(path)
    if isinstance(content, list) and content and all(isinstance(entry, str) for entry in content):
        return [{"text": entry} for entry in content]
    return _objects(content, path)


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, without an empty one at the end.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    lines = _read(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _splits(read: Mapping[str, tuple[Path, Rows]], columns: Columns) -> tuple[dict[str, Split], Any]:
    splits, classes, groups = {}, [], []
    for split, (file, rows) in read.items():
        where = str(file)
        if not rows:
            raise DataError(f"{where} has no sample in the {split} split.")
        found = list(rows[0])
        text_column = choose_column(found, columns.text, TEXT_NAMES, "text", where)
        label_column = choose_column(found, columns.label, LABEL_NAMES, "label", where)
        texts, labels = _values(rows, text_column, where), _values(rows, label_column, where)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"Sample {number + 1} of {where} has no text in column {text_column!r} but {text!r}.")
        domains = None
        if columns.domain is not None:
            choose_column(found, columns.domain, (), "domain", where)
            domains = [str(value) for value in _values(rows, columns.domain, where)]
        if columns.group is not None:
            choose_column(found, columns.group, (), "group", where)
            groups += _values(rows, columns.group, where)
            classes += labels
        ids = np.array([f"{file.name}:{split}/{i}" for i in range(len(texts))])
        splits[split] = Split(texts, labels, ids, domains)
    return splits, class_groups(classes, groups, str(next(iter(read.values()))[0])) if groups else None


def _string(row: dict[str, Any], key: str, path: Path) -> str:
    if not isinstance(row.get(key), str):
        raise DataError(f"A sample of {path} has no {key} but {row.get(key)!r:.80}.")
    return str(row[key])


def _values(rows: Rows, column: str, where: str) -> list[Any]:
    values = [row.get(column) for row in rows]
    for number, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"Sample {number + 1} of {where} has no value in column {column!r}.")
    return values


def _rows(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _objects(_json(path), path)
    text = _read(path)
    if suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(parse_json(line))
            except Malformed as error:
                raise DataError(f"Line {number} of {path} cannot be read: {error}.") from error
        return _objects(rows, path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        columns = list(reader.fieldnames or ())
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path} has two columns named {twice!r}. Rename one.")
        return _objects(list(reader), path)
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of {path} is not CSV ({error}).") from error


def _objects(content: Any, path: Path) -> Rows:
    if not isinstance(content, list):
        raise DataError(f"Expected a list of samples in {path}, got {type(content).__name__}.")
    rows = []
    for number, entry in enumerate(content, start=1):
        if isinstance(entry, list) and len(entry) == 2:
            entry = {"text": entry[0], "label": entry[1]}
        if not isinstance(entry, dict):
            raise DataError(f"Sample {number} of {path} is neither an object nor a [text, label] pair: {entry!r:.80}.")
        if None in entry:
            raise DataError(
                f"Sample {number} of {path} has more fields than the header. Quote fields that hold commas."
            )
        rows.append(entry)
    return rows


def _json(path: Path) -> Any:
    try:
        return parse_json(_read(path))
    except Malformed as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path} holds the character NUL in line {line}. Was it damaged, or is it no text?")
    return text
