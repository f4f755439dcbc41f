"""Hugging Face datasets, by hub name or from a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

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
from tangentcl.data.inputs import decode_image
from tangentcl.data.table import Source
from tangentcl.errors import ConfigError, DataError, import_extra

# Above this size neither duplicates nor the fingerprint are computed from the images themselves.
_MAX_BYTES_COMPARED = 1 << 30


def hub(
    name: str,
    columns: Columns = NO_COLUMNS,
    *,
    config: str | None = None,
    revision: str | None = None,
    test_share: float = 0.25,
    test_seed: int = 0,
) -> Source:
    """Images or texts with labels through the ``datasets`` package.

    Args:
        name: a name on the hub, a folder that ``save_to_disk`` wrote, or a local data set folder.
        columns: columns of samples, labels, domains and groups.
        config, revision: configuration and commit on the hub.
        test_share, test_seed: what is held out if there is neither a test nor a validation split.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        DataError: the data set is not there or the hub cannot be reached.
        ConfigError: a column that does not exist.
    """
    parts = _splits(name, config, revision)
    with _reading(name):
        for part in parts.values():
            part.data.validate(full=True)  # it lies in memory as in the file: a wrong offset would read anything
    read, modality, class_names, groups = {}, "", None, ([], [])  # type: ignore[var-annotated]
    for split, part in parts.items():
        features = part.features
        label = choose_column(list(features), columns.label, LABEL_NAMES, "label", name)
        modality, samples = _samples_column(features, columns, name)
        class_names = class_names or getattr(features[label], "names", None)
        with _reading(name):
            labels = part[label][:]
        if any(value is None for value in labels):
            raise DataError(f"A sample in the {split} split of {name} has no value in column {label!r}.")
        domains = None
        if columns.domain is not None:
            column = choose_column(list(features), columns.domain, (), "domain", name)
            with _reading(name):
                domains = [str(v) for v in part[column]]
        if columns.group is not None:
            groups[0].extend(labels if class_names is None else named_labels(labels, class_names, name))
            column = choose_column(list(features), columns.group, (), "group", name)
            with _reading(name):
                groups[1].extend(part[column][:])
        with _reading(name):
            inputs = HubImages(part, samples, name) if modality == "image" else part[samples][:]
        read[split] = Split(inputs, labels, None, domains)
    return assemble(
        Path(name).name,
        modality,
        read,
        class_names=class_names,
        groups=class_groups(*groups, name) if groups[0] else None,
        test_share=test_share,
        test_seed=test_seed,
        licence=getattr(next(iter(parts.values())).info, "license", "") or "",
        citation=getattr(next(iter(parts.values())).info, "citation", "") or "",
    )


class HubImages:
    """Images of a Hugging Face data set, left on disk and decoded when asked for."""

    def __init__(self, part: Any, column: str, name: str) -> None:
        image = import_extra("datasets", extra="data", purpose="reading Hugging Face datasets").Image
        self.part, self.column, self.name = part.cast_column(column, image(decode=False)), column, name

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Image.Image:
        where = f"number {index} of {self.name}"
        with _reading(self.name):
            stored = self.part[index][self.column]
        return decode_image(self._encoded(stored, where), where)

    def digest(self) -> bytes:
        keys = self.content_keys()
        return repr((self.part._fingerprint, len(self)) if keys is None else keys).encode()

    def content_keys(self) -> list[Hashable] | None:
        if self.part.data.nbytes > _MAX_BYTES_COMPARED:
            return None
        keys: list[Hashable] = []
        for batch in self.part.select_columns(self.column).iter(batch_size=1000):
            for stored in batch[self.column]:
                encoded = self._encoded(stored, f"number {len(keys)} of {self.name}")
                keys.append(hashlib.blake2b(encoded, digest_size=16).digest())
        return keys

    def _encoded(self, stored: dict[str, Any] | None, where: str) -> bytes:
        if stored is None:
            raise DataError(f"The sample {where} has no image in column {self.column!r}.")
        if stored["bytes"] is not None:
            return stored["bytes"]
        try:
            return Path(stored["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read the image {stored['path']} ({error.strerror or error}).") from error


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """What pyarrow raises of damaged files as DataError; it raises errors of Python's own, too."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"Cannot read the data set {name!r} ({type(error).__name__}: {_first_line(error)}).") from error


def _splits(name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    datasets = import_extra("datasets", extra="data", purpose="reading Hugging Face datasets")
    folder = Path(name).expanduser()
    saved = any((folder / file).exists() for file in ("dataset_dict.json", "state.json"))
    try:
        found = (
            datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(name, config, revision=revision)
        )
    except Exception as error:  # its many readers raise errors of their own packages, down to zipfile.BadZipFile
        where = "in that folder" if folder.exists() else "on the hub or in the local cache"
        raise DataError(
            f"Cannot load the data set {name!r} {where} ({type(error).__name__}: {_first_line(error)}). "
            "Without a connection, give a local folder: hf:PATH."
        ) from error
    if not isinstance(found, dict):
        return {"train": found}
    parts = {split_of(split): part for split, part in found.items()}
    parts.pop(None, None)
    if "train" not in parts:
        raise DataError(f"{name} has no training split; found: {', '.join(found)}.")
    return {str(split): part for split, part in parts.items()}


def _samples_column(features: Any, columns: Columns, name: str) -> tuple[str, str]:
    """Modality and column of the samples."""
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if columns.text is None and (columns.image is not None or images):
        usual = [column for column in (*IMAGE_NAMES, *images) if column in images]
        column = choose_column(list(features), columns.image, usual, "image", name)
        if column not in images:
            raise ConfigError(f"Column {column!r} of {name} has no images but {features[column]}.")
        return "image", column
    return "text", choose_column(list(features), columns.text, TEXT_NAMES, "text", name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
