"""Which classes arrive with which task: sizes, groups and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tangentcl.data.table import Source, check_seed
from tangentcl.errors import ConfigError, nearest

Groups = bool | Mapping[str, Sequence[str]] | Sequence[str] | Sequence[Sequence[str]]


def arrival_order(n: int, seed: int | None) -> np.ndarray:
    """Order in which n classes, groups or domains arrive, int64 [n]; None = 0, 1, 2, ...

    >>> arrival_order(10, 1993).tolist()
    [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    """
    if seed is None:
        return np.arange(n)
    check_seed(seed)
    return np.random.RandomState(seed).permutation(n)


def at_least(name: str, value: int, smallest: int) -> None:
    """Refuse a count that is no integer or too small."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
        raise ConfigError(f"Expected {name} as an integer of at least {smallest}, got {value!r}.")


def class_tasks(
    source: Source,
    n_tasks: int | None,
    base: int | None,
    increment: int | None,
    groups: Groups | None,
    order_seed: int | None,
) -> tuple[list[str], list[np.ndarray]]:
    """Names of the tasks and the source labels of each."""
    if groups is not None and groups is not False:
        if base is not None or increment is not None:
            raise ConfigError("Groups of classes leave no room for base or increment. Give one or the other.")
        named = _groups(source, groups)
        if n_tasks is not None and n_tasks != len(named):
            raise ConfigError(f"{len(named)} groups make {len(named)} tasks, but n_tasks is {n_tasks}. Leave it out.")
        chosen = [list(named)[g] for g in arrival_order(len(named), order_seed)]
        return chosen, [np.array(named[name]) for name in chosen]
    sizes = _task_sizes(len(source.class_names), n_tasks, base, increment)
    order = arrival_order(len(source.class_names), order_seed)
    return [f"T{i + 1}" for i in range(len(sizes))], np.split(order, np.cumsum(sizes)[:-1])


def _task_sizes(n_classes: int, n_tasks: int | None, base: int | None, increment: int | None) -> list[int]:
    """Classes per task.

    >>> _task_sizes(10, 4, None, None), _task_sizes(10, None, 5, 2), _task_sizes(10, 3, 6, None)
    ([3, 3, 2, 2], [5, 2, 2, 1], [6, 2, 2])
    """
    for name, value in (("n_tasks", n_tasks), ("base", base), ("increment", increment)):
        if value is not None:
            at_least(name, value, 1)
            if value > n_classes:
                raise ConfigError(f"Expected {name} of at most {n_classes}, the number of classes, got {value}.")
    if increment is not None:
        first = increment if base is None else base
        n_more, last = divmod(n_classes - first, increment)
        sizes = [first] + [increment] * n_more + [last] * (last > 0)
        if n_tasks is not None and n_tasks != len(sizes):
            raise ConfigError(
                f"base={base} and increment={increment} make {len(sizes)} tasks of {n_classes} classes, "
                f"but n_tasks is {n_tasks}. Leave one of the three out."
            )
        return sizes
    if n_tasks is None:
        raise ConfigError("How to divide the classes is open. Give n_tasks, base and increment, increment, or groups.")
    if base is None:
        return _equal(n_classes, n_tasks)
    if n_tasks - 1 > n_classes - base or (n_tasks == 1 and base != n_classes):
        raise ConfigError(
            f"{n_classes - base} classes are left after base={base}, which do not make {n_tasks - 1} further tasks."
        )
    return [base, *(_equal(n_classes - base, n_tasks - 1) if n_tasks > 1 else [])]


def _equal(n: int, parts: int) -> list[int]:
    return [n // parts + (part < n % parts) for part in range(parts)]


def _groups(source: Source, groups: Groups) -> dict[str, list[int]]:
    """Group name -> source labels, for each of the forms that ``groups`` may have."""
    own = source.groups or {}
    number = {name: label for label, name in enumerate(source.class_names)}
    if groups is True or (not isinstance(groups, (bool, Mapping)) and all(isinstance(g, str) for g in groups)):
        if not own:
            raise ConfigError(f"{source.name} has no groups of classes. List them: groups=[['a', 'b'], ['c']].")
        wanted = list(own) if groups is True else list(groups)
        for name in wanted:
            if name not in own:
                raise ConfigError(f"Unknown group {name!r}.{nearest(str(name), own)}")
        members: dict[str, Sequence[str]] = {str(name): own[str(name)] for name in wanted}
        if len(members) != len(wanted):
            raise ConfigError(f"A group is named twice in {wanted}.")
    elif isinstance(groups, Mapping):
        members = dict(groups)
    else:
        members = {f"T{i + 1}": list(group) for i, group in enumerate(groups)}  # type: ignore[arg-type]
    labels: dict[str, list[int]] = {}
    taken: dict[str, str] = {}
    for name, classes in members.items():
        for one in map(str, classes):
            if one not in number:
                raise ConfigError(f"Unknown class {one!r} in group {name}.{nearest(one, number)}")
            if one in taken:
                raise ConfigError(f"Class {one!r} is in the groups {taken[one]} and {name}; it must be in one only.")
            taken[one] = name
        if not classes:
            raise ConfigError(f"Group {name} has no class.")
        labels[name] = [number[str(one)] for one in classes]
    if not labels:
        raise ConfigError("Expected at least one group of classes, got none.")
    return labels
