"""Table: one split of a data set. Source: the splits together with their class names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tangentcl.data.inputs import Inputs, Picked, content_keys, digest
from tangentcl.errors import ConfigError, DataError

MODALITIES = ("image", "text", "array")


@dataclass(frozen=True, eq=False)
class Table:
    """One split of a source; never changed after it is made.

    Args:
        inputs: ``inputs[i]`` is one raw sample: np.uint8 [H, W] or [H, W, 3], a PIL image, a str, or a float array.
        labels: class of each sample in the source's own numbering, int64 [n].
        ids: unique name of each sample, str or int, [n].
        domains: domain of each sample, int64 [n], or None.

    Raises:
        DataError: lengths differ, labels are no integers, an id occurs twice, or float inputs contain NaN or infinity.

    >>> table = Table(["yes", "no"], np.array([1, 0]), np.array(["a", "b"]))
    >>> len(table), table.inputs[0], table.take(np.array([1])).inputs[0]
    (2, 'yes', 'no')
    """

    inputs: Inputs
    labels: np.ndarray
    ids: np.ndarray
    domains: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in ("labels", "domains"):
            values = getattr(self, field)
            if values is None:
                continue
            values = np.asarray(values)
            if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
                raise DataError(
                    f"Expected {field} as a vector of integers, got shape {values.shape} and type {values.dtype}."
                )
            object.__setattr__(self, field, values.astype(np.int64))
        object.__setattr__(self, "ids", np.asarray(self.ids))
        for field in ("labels", "ids", "domains"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.inputs):
                raise DataError(
                    f"Expected as many {field} as inputs, got {len(self.inputs)} inputs and {len(values)} {field}."
                )
        _refuse_non_finite(self.inputs)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> Table:
        """The samples at these positions, in this order; inputs are not copied."""
        positions = np.asarray(positions, dtype=np.int64)
        return Table(
            Picked(self.inputs, positions),
            self.labels[positions],
            self.ids[positions],
            None if self.domains is None else self.domains[positions],
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: training and test split, perhaps a validation split, and the names of its classes.

    Args:
        name: short name, e.g. ``"digits"``.
        modality: ``"image"``, ``"text"`` or ``"array"``.
        class_names: name of class 0, 1, ... in the source's own order.
        train, test, validation: the splits.
        domain_names: name of domain 0, 1, ... or None.
        groups: group name -> names of its classes (alphabets, topics), or None.
        licence, citation: what to state when results are published.
        notes: remarks about the splits that belong into a record.

    Raises:
        DataError: an empty split, or a label or domain without a name.
    """

    name: str
    modality: str
    class_names: tuple[str, ...]
    train: Table
    test: Table
    validation: Table | None = None
    domain_names: tuple[str, ...] | None = None
    groups: dict[str, tuple[str, ...]] | None = None
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise DataError(f"Expected one of the modalities {', '.join(MODALITIES)}, got {self.modality!r}.")
        if len(set(self.class_names)) != len(self.class_names):
            twice = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
            raise DataError(f"Class names must differ, but these occur more than once: {', '.join(twice[:5])}.")
        for split, table in self.splits():
            if not len(table):
                raise DataError(f"The {split} split of {self.name} is empty.")
            _check_range(table.labels, len(self.class_names), f"label in the {split} split of {self.name}")
            if table.domains is not None:
                _check_range(table.domains, len(self.domain_names or ()), f"domain in the {split} split of {self.name}")

    def splits(self) -> Iterator[tuple[str, Table]]:
        """The splits that exist with their names: train, test, validation."""
        yield "train", self.train
        yield "test", self.test
        if self.validation is not None:
            yield "validation", self.validation

    @cached_property
    def fingerprint(self) -> str:
        """Hash of contents, labels and class names, 16 hex digits; files count by name and size."""
        state = hashlib.blake2b(repr((self.class_names, self.domain_names)).encode(), digest_size=8)
        for split, table in self.splits():
            state.update(split.encode() + digest(table.inputs) + table.labels.tobytes())
            if table.domains is not None:
                state.update(table.domains.tobytes())
        return state.hexdigest()

    @cached_property
    def n_duplicates(self) -> int | None:
        """Test samples whose content also occurs in the training split; None where it was too costly to count."""
        train, test = content_keys(self.train.inputs), content_keys(self.test.inputs)
        if train is None or test is None:
            return None
        known = set(train)
        return sum(key in known for key in test)

    def describe(self) -> dict[str, Any]:
        """What a record keeps of the source, as JSON values."""
        return {
            "name": self.name,
            "modality": self.modality,
            "n_classes": len(self.class_names),
            "n_domains": len(self.domain_names) if self.domain_names else None,
            **{f"n_{split}": len(table) for split, table in self.splits()},
            "fingerprint": self.fingerprint,
            "test_samples_also_in_train": self.n_duplicates,
            "licence": self.licence,
            "citation": self.citation,
            "notes": list(self.notes),
        }


def check_seed(seed: int) -> None:
    """Refuse what numpy's legacy generator does not take as a seed."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ConfigError(f"Expected a seed as an integer from 0 to 2**32 - 1, got {seed!r}.")


def choose_per_class(
    strata: np.ndarray, seed: int, *, count: int | None = None, share: float | None = None
) -> np.ndarray:
    """Positions of ``count`` samples, or a ``share``, of every stratum, drawn with a seed and returned in order.

    The draw of one stratum does not depend on which other strata there are, so a class keeps its samples when the
    order of the classes changes. A share is rounded, but takes at least one sample of each stratum and leaves one.

    Args:
        strata: class (or class and domain, coded as one integer) of each sample, int64 [n].

    Returns:
        Sorted positions, int64 [m]; a stratum with fewer than ``count`` samples is taken whole.

    Raises:
        ConfigError: a seed that is no integer from 0 to 2**32 - 1.
        DataError: a share is asked of a stratum with a single sample.

    >>> choose_per_class(np.array([0, 0, 0, 1, 1, 1]), seed=0, count=2).tolist()
    [0, 2, 4, 5]
    """
    check_seed(seed)
    chosen = []
    order = np.argsort(strata, kind="stable")
    values, starts = np.unique(strata[order], return_index=True)
    for value, members in zip(values, np.split(order, starts[1:])):
        n = count
        if share is not None:
            if len(members) < 2:
                raise DataError(
                    f"A share of {share} cannot be held out of every class: a class (in one domain) has a single "
                    f"training sample, at position {int(members[0])}. Add samples or bring a split of your own."
                )
            n = min(max(1, round(share * len(members))), len(members) - 1)
        # The legacy generator: numpy guarantees its numbers for good, so splits and shots stay what they were.
        rng = np.random.RandomState([seed, int(value)])
        chosen.append(members[rng.permutation(len(members))[:n]])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def _check_range(values: np.ndarray, n: int, what: str) -> None:
    if values.min() < 0 or values.max() >= n:
        bad = values[(values < 0) | (values >= n)][0]
        raise DataError(f"Unknown {what}: {bad}. Expected 0 to {n - 1}, because {n} names are known.")


def _refuse_non_finite(inputs: Inputs) -> None:
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f" and len(inputs):
        bad = ~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
    elif isinstance(inputs, list) and inputs and isinstance(inputs[0], np.ndarray):
        bad = np.array([row.dtype.kind == "f" and not np.isfinite(row).all() for row in inputs])
    else:
        return
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(inputs)} inputs contain NaN or infinity, the first at position "
            f"{int(bad.argmax())}. Remove or repair them."
        )
