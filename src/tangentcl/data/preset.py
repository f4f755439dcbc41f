"""Preset: what is known of a published data set, read from a file of ``tangentcl/data/presets``.

One TOML file per data set; its name is the name that ``load`` takes. A preset holds facts only: counts, classes,
licence, where the data come from and how they have to lie on disk. How each layout is read is in ``layouts.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tangentcl.data.table import Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class KnownSplit:
    """A published division of the data: number of classes, and of samples where they are known.

    Args:
        name: who published it, or which edition it is.
        n_classes: number of classes.
        train, test, validation: samples of each split; None = unknown (validation: there is none).
        total: all samples, where no split is published and a share of each class is held out.
    """

    name: str
    n_classes: int
    train: int | None = None
    test: int | None = None
    validation: int | None = None
    total: int | None = None

    def has_size_of(self, source: Source) -> bool:
        """Whether classes and samples of a source are as many as here; unknown counts fit nothing."""
        train, test = len(source.train), len(source.test)
        validation = 0 if source.validation is None else len(source.validation)
        if len(source.class_names) != self.n_classes:
            return False
        if self.total is not None:
            return train + test + validation == self.total
        return (train, test, validation) == (self.train, self.test, self.validation or 0)

    def counts(self) -> str:
        """The samples in words, "" where they are unknown.

        >>> KnownSplit("published", 10, train=50, test=10).counts(), KnownSplit("all", 10, total=60).counts()
        ('50 training and 10 test samples', '60 samples')
        """
        if self.total is not None:
            return f"{self.total} samples"
        if self.train is None:
            return ""
        held = f", {self.validation} validation" if self.validation else ""
        return f"{self.train} training{held} and {self.test} test samples"


@dataclass(frozen=True)
class Part:
    """A domain, or a data set within the data set, and its samples where they are known."""

    name: str
    train: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Preset:
    """What is known of a data set.

    Args:
        name: for ``load``.
        title: for people.
        modality: "image" or "text".
        folders: names of folders under ``$TANGENTCL_DATA`` that may hold it; none = inside the package.
        layouts: how the files may lie, in the order in which they are tried; see ``layouts.py``.
        layout: the same in words.
        licence: of the data, or that it could not be confirmed.
        source: address where the data, or the word about them, come from.
        hub: name on the Hugging Face hub, or "".
        citation: what to cite.
        protocol: the usual streams.
        notes: traps.
        splits: published divisions, the usual one first.
        parts: domains or data sets within it.
        subsets: fewer classes than known are a note, not an error.
    """

    name: str
    title: str
    modality: str
    folders: tuple[str, ...]
    layouts: tuple[str, ...]
    layout: str
    licence: str
    source: str
    hub: str
    citation: str
    protocol: str
    notes: tuple[str, ...]
    splits: tuple[KnownSplit, ...]
    parts: tuple[Part, ...] = ()
    subsets: bool = False

    @property
    def n_classes(self) -> int:
        """Classes of the usual edition."""
        return self.splits[0].n_classes

    def how_to_get(self) -> str:
        """One or two sentences: where the data come from, under which licence, and how to put them there."""
        hub = f" or hf:{self.hub}" if self.hub else ""
        return f"{self.title} comes from {self.source}{hub} (licence: {self.licence}). Expected there: {self.layout}."


def preset_from(name: str, content: Mapping[str, Any]) -> Preset:
    """A preset of the content of its file; a missing or unknown key raises KeyError or TypeError.

    >>> PRESETS["cub200"].n_classes, PRESETS["cub200"].splits[0].counts()
    (200, '5994 training and 5794 test samples')
    """
    values = dict(content)
    splits = tuple(KnownSplit(**split) for split in values.pop("split"))
    parts = tuple(Part(**part) for part in values.pop("part", ()))
    for key in ("folders", "layouts", "notes"):
        values[key] = tuple(values[key])
    return Preset(name=name, splits=splits, parts=parts, **values)


def _read() -> Iterator[Preset]:
    files = resources.files("tangentcl.data").joinpath("presets").iterdir()
    for file in sorted(files, key=lambda one: one.name):
        if file.name.endswith(".toml"):
            yield preset_from(file.name.removesuffix(".toml"), tomllib.loads(file.read_text(encoding="utf-8")))


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _read()}
