"""From splits as they were read to a source: class numbers, missing splits, names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tangentcl.data.inputs import Inputs
from tangentcl.data.table import Source, Table, choose_per_class
from tangentcl.documents import shortened
from tangentcl.errors import ConfigError, DataError, nearest

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

_WHOLE = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, eq=False)
class Split:
    """One split as it was read: inputs, labels (class names or numbers), perhaps ids and names of domains."""

    inputs: Inputs
    labels: Sequence[Any] | np.ndarray
    ids: np.ndarray | None = None
    domains: Sequence[str] | None = None


def split_of(name: str) -> str | None:
    """Which split a folder, file or hub split of this name is; None if it is none.

    >>> split_of("val"), split_of("Training"), split_of("cats")
    ('validation', 'train', None)
    """
    return next((split for split, names in _SPLIT_NAMES.items() if name.lower() in names), None)


def assemble(
    name: str,
    modality: str,
    splits: Mapping[str, Split],
    *,
    class_names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    test_share: float = 0.25,
    test_seed: int = 0,
    licence: str = "",
    citation: str = "",
) -> Source:
    """Make a source of splits called "train", "test" and "validation".

    Without a test split the validation split takes its place; without both, a stratified share of the training samples
    does. The source's ``notes`` say which happened. Without ``class_names`` the classes are the sorted
    training labels.

    Raises:
        DataError: no or empty training data, lengths that differ, or a label that is unknown.
        ConfigError: ``test_share`` outside (0, 1).
    """
    if "train" not in splits:
        raise DataError(f"{name} has no training split; found: {', '.join(splits) or 'nothing'}.")
    for split, read in splits.items():
        if len(read.inputs) != len(read.labels):
            raise DataError(
                f"Expected one label per sample in the {split} split of {name}, "
                f"got {len(read.inputs)} samples and {len(read.labels)} labels."
            )
        if not len(read.inputs):
            raise DataError(f"The {split} split of {name} is empty.")
        check_labels(read.labels, f"the {split} split of {name}")
    names, numbers = _class_numbers(splits["train"].labels, class_names)
    domains = _domain_names(splits)
    tables = {}
    for split, read in splits.items():
        labels = _encode(read.labels, numbers, class_names is not None, f"the {split} split of {name}")
        ids = np.array([f"{split}/{i}" for i in range(len(labels))]) if read.ids is None else read.ids
        domain = None if domains is None else np.array([domains[str(d)] for d in read.domains or ()], dtype=np.int64)
        tables[split] = Table(read.inputs, labels, ids, domain)
    tables, notes = _with_test(tables, name, names, test_share, test_seed)
    return Source(
        name=name,
        modality=modality,
        class_names=names,
        train=tables["train"],
        test=tables["test"],
        validation=tables.get("validation"),
        domain_names=None if domains is None else tuple(domains),
        groups=None if groups is None else {str(key): tuple(map(str, value)) for key, value in groups.items()},
        licence=licence,
        citation=citation,
        notes=notes,
    )


def _with_test(
    tables: dict[str, Table], name: str, names: Sequence[str], share: float, seed: int
) -> tuple[dict[str, Table], tuple[str, ...]]:
    if "test" in tables:
        return tables, ()
    if "validation" in tables:
        note = "no test split found; the validation split is used as the test split"
        return {"train": tables["train"], "test": tables["validation"]}, (note,)
    if not 0 < share < 1:
        raise ConfigError(f"{name} has no test split, so test_share must be between 0 and 1, got {share}.")
    train = tables["train"]
    counts = np.bincount(train.labels, minlength=len(names))
    if (counts == 1).any():
        alone = [names[label] for label in np.flatnonzero(counts == 1).tolist()]
        raise DataError(
            f"{name} has no test split, and a share of each class cannot be held out because these classes have a "
            f"single sample: {', '.join(alone[:5])}. Add samples or a test split."
        )
    strata = train.labels if train.domains is None else train.labels + len(names) * train.domains
    chosen = choose_per_class(strata, seed, share=share)
    rest = np.delete(np.arange(len(train)), chosen)
    note = f"no test split found; {share:g} of each class was held out as the test split with seed {seed}"
    return {"train": train.take(rest), "test": train.take(chosen)}, (note,)


def _class_numbers(labels: Any, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Class names in order, and the number of each label as it occurs in the data."""
    if class_names is not None:
        names = tuple(map(str, class_names))
        return names, {name: number for number, name in enumerate(names)}
    values = sorted(set(np.asarray(labels).tolist()), key=natural_order)
    return tuple(map(str, values)), {value: number for number, value in enumerate(values)}


def check_labels(labels: Any, where: str) -> None:
    """Raise DataError unless there is one label per sample, each a text or an integer."""
    if isinstance(labels, np.ndarray):
        if labels.ndim != 1:
            raise DataError(f"Expected one label per sample in {where}, got labels of shape {list(labels.shape)}.")
        if labels.dtype.kind in "iuUb":
            return
    odd = next((value for value in labels if not isinstance(value, (str, int, np.integer))), None)
    if odd is None:
        odd = next((value for value in labels if isinstance(value, int) and not -(2**63) <= value < 2**63), None)
    if odd is not None:
        raise DataError(f"Expected labels that are texts or integers in {where}, got {_short(odd)}.")


def _short(value: Any) -> str:
    return shortened(value) if isinstance(value, int) else f"{value!r:.80}"


def named_labels(labels: Sequence[Any] | np.ndarray, names: Sequence[str], where: str) -> list[str]:
    """The name of each label, which is its number.

    Raises:
        DataError: a label that is no number from 0 to the last name's.

    >>> named_labels([1, 0], ["cat", "dog"], "a.parquet")
    ['dog', 'cat']
    """
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < len(names):
            raise DataError(
                f"Unknown label {label!r:.80} in {where}. Expected 0 to {len(names) - 1}, the named classes."
            )
    return [names[label] for label in labels]


def natural_order(value: Any) -> tuple[int, float, str]:
    """Whole numbers by value, also when written as texts, before everything else by name."""
    text = str(value)
    return (0, float(text), "") if _WHOLE.fullmatch(text) else (1, 0.0, text)


def _encode(labels: Any, numbers: Mapping[Any, int], named: bool, where: str) -> np.ndarray:
    array = np.asarray(labels)
    if named and array.dtype.kind in "iu":
        if array.min() < 0 or array.max() >= len(numbers):
            bad = array[(array < 0) | (array >= len(numbers))][0]
            raise DataError(
                f"Unknown label {bad} in {where}. Expected 0 to {len(numbers) - 1}, as many as class names."
            )
        return array.astype(np.int64)
    values, inverse = np.unique(array, return_inverse=True)
    codes = np.zeros(len(values), dtype=np.int64)
    for i, value in enumerate(values.tolist()):
        if value not in numbers:
            raise DataError(f"Unknown label {value!r} in {where}.{nearest(str(value), numbers)}")
        codes[i] = numbers[value]
    return codes[inverse.reshape(-1)]


def _domain_names(splits: Mapping[str, Split]) -> dict[str, int] | None:
    if all(read.domains is None for read in splits.values()):
        return None
    if any(read.domains is None for read in splits.values()):
        raise DataError("Either every split names the domains of its samples or none does.")
    found = sorted({str(d) for read in splits.values() for d in read.domains or ()}, key=natural_order)
    return {name: number for number, name in enumerate(found)}
