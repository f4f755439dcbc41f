"""Domains: several sources as one, and ready-made domains of turned or permuted images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from tangentcl.data.inputs import Chained, Inputs, content_keys, digest
from tangentcl.data.table import Source, Table
from tangentcl.data.transforms import to_image
from tangentcl.errors import ConfigError, DataError


def join_domains(sources: Mapping[str, Source] | Sequence[Source]) -> Source:
    """One source whose domains are these sources; the keys of a mapping, or the sources' names, name the domains.

    Raises:
        DataError: fewer than two sources, or sources that differ in modality, class names or kind of splits.

    >>> from tangentcl.data import load
    >>> join_domains({"a": load("digits"), "b": load("digits")}).domain_names
    ('a', 'b')
    """
    named = dict(sources) if isinstance(sources, Mapping) else {one.name: one for one in sources}
    if len(named) < 2 or len(named) != len(sources):
        raise DataError(
            f"Expected at least two sources with different names, got {[getattr(s, 'name', s) for s in sources]}. "
            'Try a dict that names the domains: {"photo": ..., "sketch": ...}.'
        )
    first = next(iter(named.values()))
    for name, source in named.items():
        if source.modality != first.modality or set(source.class_names) != set(first.class_names):
            odd = sorted(set(source.class_names) ^ set(first.class_names))
            raise DataError(
                f"Domain {name} does not have the modality and classes of the first one; "
                f"classes in only one of them: {', '.join(odd[:5]) or 'none'}."
            )
        if (source.validation is None) != (first.validation is None):
            raise DataError(
                "Either every domain brings a validation split or none. Give the share to the stream instead."
            )
    return replace(
        first,
        name="+".join(named) if len(named) <= 4 else f"{len(named)} domains",
        train=_joined({name: (source, source.train) for name, source in named.items()}, first),
        test=_joined({name: (source, source.test) for name, source in named.items()}, first),
        validation=None
        if first.validation is None
        else _joined({n: (s, s.validation) for n, s in named.items() if s.validation is not None}, first),
        domain_names=tuple(named),
        licence="; ".join(dict.fromkeys(source.licence for source in named.values() if source.licence)),
        citation="; ".join(dict.fromkeys(source.citation for source in named.values() if source.citation)),
        notes=tuple(dict.fromkeys(note for source in named.values() for note in source.notes)),
    )


def rotated(source: Source, angles: Sequence[float]) -> Source:
    """Domains of images turned by these angles (degrees, counter-clockwise); corners are filled with the corners' grey.

    Every domain has all images of the source, as in Rotated MNIST (Lopez-Paz and Ranzato 2017, "Gradient episodic
    memory"), so a training image of one domain is a turned training image of the others.

    Raises:
        ConfigError: no angles, or an angle twice.
        DataError: the source has no images, or domains already.
    """
    return _copies(source, "rotation", [float(a) for a in angles], RotatedImages)


def permuted(source: Source, seeds: Sequence[int]) -> Source:
    """Domains of images whose pixels are permuted, one fixed permutation per seed; seed 0 leaves them in place.

    Permuted MNIST (Goodfellow et al. 2013, "An empirical investigation of catastrophic forgetting").

    Raises:
        ConfigError: no seeds, or a seed twice.
        DataError: the source has no images, or domains already.
    """
    return _copies(source, "permutation", [int(s) for s in seeds], PermutedImages)


class RotatedImages:
    """Images turned by an angle."""

    def __init__(self, inputs: Inputs, angle: float) -> None:
        self.inputs, self.angle = inputs, angle

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        raw = self.inputs[index]
        if self.angle == 0:
            return raw
        image = to_image(raw)
        corners = np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]]  # [4] or [4, 3]
        fill = np.median(corners, axis=0).astype(int)
        colour = tuple(fill.tolist()) if image.mode == "RGB" else int(fill)
        return image.rotate(self.angle, resample=Image.Resampling.BICUBIC, fillcolor=colour)

    def digest(self) -> bytes:
        return digest(self.inputs) + repr(self.angle).encode()

    def content_keys(self) -> list[Hashable] | None:
        keys = content_keys(self.inputs)
        return None if keys is None else [(self.angle, key) for key in keys]


class PermutedImages:
    """Images whose pixels are permuted; every image size has its own permutation."""

    def __init__(self, inputs: Inputs, seed: int) -> None:
        self.inputs, self.seed = inputs, seed

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        raw = self.inputs[index]
        if self.seed == 0:
            return raw
        pixels = np.asarray(to_image(raw))
        height, width = pixels.shape[:2]
        order = np.random.RandomState(self.seed).permutation(height * width)
        return pixels.reshape(height * width, -1)[order].reshape(pixels.shape)

    def digest(self) -> bytes:
        return digest(self.inputs) + repr(("permutation", self.seed)).encode()

    def content_keys(self) -> list[Hashable] | None:
        keys = content_keys(self.inputs)
        return None if keys is None else [("permutation", self.seed, key) for key in keys]


def _copies(source: Source, kind: str, values: Sequence[Any], wrap: Any) -> Source:
    if source.modality != "image":
        raise DataError(f"Only images can get {kind}s as domains; {source.name} has the modality {source.modality}.")
    if source.domain_names is not None:
        raise DataError(f"{source.name} has domains already: {', '.join(source.domain_names[:5])}.")
    if not values or len(set(values)) != len(values):
        raise ConfigError(f"Expected one or more different {kind}s, got {list(values)}.")
    names = [f"{kind} {value:g}" for value in values]

    def copies(table: Table) -> Table:
        parts = [Table(wrap(table.inputs, v), table.labels, _prefixed(n, table.ids)) for n, v in zip(names, values)]
        return _chained(parts)

    return replace(
        source,
        name=f"{source.name}, {kind}s",
        train=copies(source.train),
        test=copies(source.test),
        validation=None if source.validation is None else copies(source.validation),
        domain_names=tuple(names),
    )


def _joined(parts: Mapping[str, tuple[Source, Table]], first: Source) -> Table:
    number = {name: label for label, name in enumerate(first.class_names)}
    tables = []
    for name, (source, table) in parts.items():
        labels = np.array([number[one] for one in source.class_names])[table.labels]
        tables.append(Table(table.inputs, labels, _prefixed(name, table.ids)))
    return _chained(tables)


def _chained(tables: Sequence[Table]) -> Table:
    return Table(
        Chained([table.inputs for table in tables]),
        np.concatenate([table.labels for table in tables]),
        np.concatenate([table.ids for table in tables]),
        np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
    )


def _prefixed(name: str, ids: np.ndarray) -> np.ndarray:
    return np.array([f"{name}/{one}" for one in ids.tolist()])
