"""Columns of a table file: which one holds the samples, the labels, the domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tangentcl.errors import ConfigError, DataError, nearest

TEXT_NAMES = ("text", "sentence", "utterance", "query", "content", "title")
IMAGE_NAMES = ("image", "img", "picture")
LABEL_NAMES = ("label", "labels", "class", "intent", "category", "target", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Names of columns; None = by their usual names, and no domains or groups."""

    text: str | None = None
    image: str | None = None
    label: str | None = None
    domain: str | None = None
    group: str | None = None

    def given(self) -> dict[str, str]:
        """The columns that were named, by the keyword of ``load`` that names them."""
        return {f"{role}_column": name for role, name in vars(self).items() if name is not None}


NO_COLUMNS = Columns()


def choose_column(found: Sequence[str], wanted: str | None, usual: Sequence[str], role: str, where: str) -> str:
    """The column with this role: the one that was named, or the first with a usual name.

    Raises:
        ConfigError: the named column does not exist (the nearest is proposed), or no column has a usual name.

    >>> choose_column(["utterance", "intent"], None, TEXT_NAMES, "text", "a.csv")
    'utterance'
    """
    if wanted is not None:
        if wanted not in found:
            raise ConfigError(f"{where} has no column {wanted!r}.{nearest(wanted, found)}")
        return wanted
    for name in usual:
        if name in found:
            return name
    raise ConfigError(
        f"{where} has no {role} column with a usual name ({', '.join(usual)}). "
        f"Name it: {role}_column=... Its columns: {', '.join(found)}."
    )


def class_groups(classes: Sequence[str], groups: Sequence[str], where: str) -> Mapping[str, list[str]]:
    """Group of each sample -> group name to class names; every class must lie in one group.

    Raises:
        DataError: a class with samples in two groups.

    >>> class_groups(["a", "b", "a"], ["x", "y", "x"], "a.csv")
    {'x': ['a'], 'y': ['b']}
    """
    of_class: dict[str, str] = {}
    for one, group in zip(map(str, classes), map(str, groups)):
        if of_class.setdefault(one, group) != group:
            raise DataError(f"Class {one!r} of {where} has samples in the groups {of_class[one]!r} and {group!r}.")
    members: dict[str, list[str]] = {}
    for one, group in of_class.items():
        members.setdefault(group, []).append(one)
    return members
