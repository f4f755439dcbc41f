"""preset_source: the data of a preset, found under $TANGENTCL_DATA, read, and checked against what is known of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from tangentcl.data.layouts import Share, read_as_laid_out
from tangentcl.data.preset import Part, Preset
from tangentcl.data.table import Source, Table
from tangentcl.errors import DataError


def preset_folder(preset: Preset) -> Path | None:
    """The folder under ``$TANGENTCL_DATA`` that holds a preset's data; None if variable or folder is missing."""
    root = os.environ.get("TANGENTCL_DATA")
    places = [Path(root, name) for name in preset.folders] if root else []
    return next((place for place in places if place.is_dir()), None)


def preset_source(preset: Preset, *, test_share: float = 0.25, test_seed: int = 0) -> Source:
    """Load the data of a preset.

    Another number of classes than the preset knows is an error: labels and tasks would mean something else. Other
    numbers of samples are a note, which the record keeps: published copies differ by a few files, and smaller runs are
    legitimate. Where the numbers are those of a published split, the note names it.

    Raises:
        DataError: no such folder, files in no known layout, or other classes or another modality than the preset's.
            The message names source and licence of the data.
    """
    folder = preset_folder(preset)
    if folder is None:
        raise DataError(f"{_absent(preset)} {preset.how_to_get()}")
    try:
        source = read_as_laid_out(folder, preset, Share(test_share, test_seed))
    except DataError as error:
        raise DataError(f"{error} {preset.how_to_get()}") from error
    _check_classes(source, preset, folder)
    return replace(
        source,
        name=preset.name,
        licence=preset.licence,
        citation=f"{preset.citation} {preset.source}",
        notes=(*source.notes, _size_note(source, preset), *_part_notes(source, preset)),
    )


def _absent(preset: Preset) -> str:
    folders = " or ".join(preset.folders)
    root = os.environ.get("TANGENTCL_DATA")
    if not root:
        return (
            f"Where {preset.name} lies is unknown: set the environment variable TANGENTCL_DATA to the folder that "
            f"contains the folder {folders}, or give load the path itself."
        )
    return f"No folder {folders} in {root}, the folder that TANGENTCL_DATA names."


def _check_classes(source: Source, preset: Preset, folder: Path) -> None:
    if source.modality != preset.modality:
        raise DataError(f"{preset.title} has the modality {preset.modality}, but {folder} holds {source.modality}.")
    known = sorted({split.n_classes for split in preset.splits})
    found = len(source.class_names)
    if found in known or (preset.subsets and found < known[-1]):
        return
    raise DataError(
        f"{preset.title} has {' or '.join(map(str, known))} classes, but {folder} holds {found}: "
        f"{', '.join(source.class_names[:3])}, ... Compare its folders with the layout, or give load the path itself, "
        f"which checks no counts. {preset.how_to_get()}"
    )


def _size_note(source: Source, preset: Preset) -> str:
    same = [split.name for split in preset.splits if split.has_size_of(source)]
    if same:
        return f"as many classes and samples as: {'; '.join(same)}"
    found = f"{len(source.class_names)} classes, {len(source.train)} training and {len(source.test)} test samples"
    known = "; ".join(f"{split.name}, {split.counts()}" for split in preset.splits if split.counts())
    return f"found {found}; known: {known or f'{preset.n_classes} classes'}"


def _part_notes(source: Source, preset: Preset) -> tuple[str, ...]:
    """Parts whose samples are not as many as known; all known parts where nothing tells them apart."""
    notes = []
    names = source.domain_names or tuple(source.groups or ())
    for part in preset.parts if names else ():
        if part.name not in names:
            notes.append(f"without the part {part.name}")
            continue
        found = tuple(int(_in_part(table, source, part).sum()) for table in (source.train, source.test))
        if part.train is not None and found != (part.train, part.test):
            notes.append(f"{part.name}: found {found[0]} and {found[1]} samples; known: {part.train} and {part.test}")
    return tuple(notes)


def _in_part(table: Table, source: Source, part: Part) -> np.ndarray:
    """Which samples belong to a domain or group, bool [n]."""
    if source.domain_names is not None and table.domains is not None:
        return table.domains == source.domain_names.index(part.name)
    classes = set((source.groups or {})[part.name])
    return np.isin(table.labels, [i for i, name in enumerate(source.class_names) if name in classes])
