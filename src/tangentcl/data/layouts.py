"""Layouts: the ways in which the files of a preset may lie in its folder, how each is recognised and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tangentcl.data import image_lists
from tangentcl.data.image_folder import image_folder
from tangentcl.data.inputs import Chained
from tangentcl.data.parquet import parquet
from tangentcl.data.preset import Preset
from tangentcl.data.table import Source, Table
from tangentcl.data.text_files import TEXT_SUFFIXES, clinc150, text_files
from tangentcl.errors import DataError


@dataclass(frozen=True)
class Share:
    """What is held out, class by class, where there is no test split."""

    test_share: float
    test_seed: int


@dataclass(frozen=True)
class Layout:
    """One way in which files may lie.

    Args:
        place: folder of a data set -> what is to be read if the files lie this way, else None.
        read: that place, the preset and the share to hold out -> the source.
    """

    place: Callable[[Path], Path | None]
    read: Callable[[Path, Preset, Share], Source]


def read_as_laid_out(folder: Path, preset: Preset, share: Share) -> Source:
    """The data in a folder, by the first of the preset's layouts that is found there.

    Raises:
        DataError: none of the layouts, or what their readers refuse.
    """
    for name in preset.layouts:
        layout = LAYOUTS[name]
        place = layout.place(folder)
        if place is not None:
            return layout.read(place, preset, share)
    found = sorted(file.name for file in folder.iterdir())
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    raise DataError(f"{folder} holds {shown or 'nothing'}, which is none of the known layouts.")


def _by_file(name: str) -> Callable[[Path], Path | None]:
    """The folder itself or the only folder in it, whichever has this file: archives often unpack into a folder."""

    def place(folder: Path) -> Path | None:
        inner = [one for one in sorted(folder.iterdir()) if one.is_dir()]
        places = [folder, *(inner if len(inner) == 1 else [])]
        return next((one for one in places if any(one.glob(name))), None)

    return place


def _parquet_place(folder: Path) -> Path | None:
    return folder if any(folder.glob("*.parquet")) or any((folder / "data").glob("*.parquet")) else None


def _text_place(folder: Path) -> Path | None:
    return folder if any((folder / f"train{suffix}").exists() for suffix in TEXT_SUFFIXES) else None


def _image_place(folder: Path) -> Path | None:
    """The folder if it has folders, otherwise its zip file."""
    if any(one.is_dir() and not one.name.startswith(".") for one in folder.iterdir()):
        return folder
    archives = sorted(folder.glob("*.zip"))
    if len(archives) > 1:
        raise DataError(
            f"{folder} holds several zip files: {', '.join(one.name for one in archives[:5])}. "
            "Keep one, or give load the path of one."
        )
    return archives[0] if archives else None


def _read_parquet(place: Path, preset: Preset, share: Share) -> Source:
    return parquet(place, name=preset.name, test_share=share.test_share, test_seed=share.test_seed)


def _read_texts(place: Path, preset: Preset, share: Share) -> Source:
    return text_files(place, test_share=share.test_share, test_seed=share.test_seed)


def _read_images(place: Path, preset: Preset, share: Share) -> Source:
    return image_folder(place, name=preset.name, test_share=share.test_share, test_seed=share.test_seed)


def _listed(read: Callable[[Path], Source]) -> Callable[[Path, Preset, Share], Source]:
    """A reader of lists, which say themselves what the test split is."""

    def run(place: Path, preset: Preset, share: Share) -> Source:
        return read(place)

    return run


def _read_coda(place: Path, preset: Preset, share: Share) -> Source:
    note = "split by the lists imagenet-r_train.yaml and imagenet-r_test.yaml (CODA-Prompt)"
    return replace(image_lists.coda_lists(place), notes=(note,))


def _read_plain_lists(place: Path, preset: Preset, share: Share) -> Source:
    return replace(image_lists.lists(place), notes=("split by the lists train.txt and test.txt",))


def _parts_place(folder: Path) -> Path | None:
    return folder if any(one.is_dir() for one in folder.iterdir()) else None


def _read_parts(place: Path, preset: Preset, share: Share) -> Source:
    """Data sets in folders of their own, as one source whose classes are PART/CLASS and whose groups are the parts."""
    missing = [part.name for part in preset.parts if not (place / part.name).is_dir()]
    if missing:
        raise DataError(f"{place} lacks the folders {', '.join(missing)}.")
    sources = {}
    for part in preset.parts:
        inner = replace(preset, name=part.name, layouts=("parquet", "lists", "folder"))
        sources[part.name] = read_as_laid_out(place / part.name, inner, share)
    return _joined(sources, preset.name)


def _joined(sources: Mapping[str, Source], name: str) -> Source:
    with_validation = [part for part, source in sources.items() if source.validation is not None]
    if with_validation:
        raise DataError(
            f"{', '.join(with_validation)} in {name} has a validation split, which the others lack. "
            "Join it with its training split, or take it away."
        )
    groups = {part: tuple(f"{part}/{one}" for one in source.class_names) for part, source in sources.items()}
    starts = np.cumsum([0, *(len(classes) for classes in groups.values())])

    def table(split: str) -> Table:
        tables = {part: getattr(source, split) for part, source in sources.items()}
        return Table(
            Chained([one.inputs for one in tables.values()]),
            np.concatenate([one.labels + start for one, start in zip(tables.values(), starts)]),
            np.concatenate([[f"{part}/{i}" for i in one.ids.tolist()] for part, one in tables.items()]),
        )

    return Source(
        name=name,
        modality=next(iter(sources.values())).modality,
        class_names=tuple(one for classes in groups.values() for one in classes),
        train=table("train"),
        test=table("test"),
        groups=groups,
        notes=tuple(f"{part}: {note}" for part, source in sources.items() for note in source.notes),
    )


LAYOUTS: dict[str, Layout] = {
    "folder": Layout(_image_place, _read_images),
    "parquet": Layout(_parquet_place, _read_parquet),
    "texts": Layout(_text_place, _read_texts),
    "clinc150": Layout(_by_file("data_full.json"), _listed(clinc150)),
    "cub": Layout(_by_file("images.txt"), _listed(image_lists.cub)),
    "pets": Layout(_by_file("annotations/trainval.txt"), _listed(image_lists.pets)),
    "domain_lists": Layout(_by_file("*_train.txt"), _listed(image_lists.domain_lists)),
    "coda_lists": Layout(_by_file("imagenet-r_train.yaml"), _read_coda),
    "lists": Layout(_by_file("train.txt"), _read_plain_lists),
    "parts": Layout(_parts_place, _read_parts),
}
