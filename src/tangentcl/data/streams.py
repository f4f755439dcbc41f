"""Task streams: the samples of a source, in the order in which a learner meets them.

All functions take a ``Source`` (see ``tangentcl.data.load`` and ``from_arrays``) and return a checked ``TaskStream``
without transforms. Orders use numpy's legacy generator, ``RandomState(order_seed).permutation(n)``, so that the
field's order_seed 1993 gives the field's class order (iCaRL, Rebuffi et al. 2017, and most code after it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tangentcl.data.class_tasks import Groups, arrival_order, at_least, class_tasks
from tangentcl.data.domains import join_domains, permuted, rotated
from tangentcl.data.split_samples import SplitSamples
from tangentcl.data.table import Source
from tangentcl.data.task import Task, TaskStream
from tangentcl.errors import ConfigError, DataError


def class_incremental(
    source: Source,
    n_tasks: int | None = None,
    *,
    base: int | None = None,
    increment: int | None = None,
    groups: Groups | None = None,
    order_seed: int | None = None,
    validation: float = 0.0,
    split_seed: int = 0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    tuning_tasks: int | None = None,
) -> TaskStream:
    """New classes in every task; the learner is asked about all classes seen so far.

    Args:
        source: the data.
        n_tasks: tasks of equal size; if the classes do not divide, the first tasks get one class more.
        base: number of classes in the first task; needs ``increment`` or ``n_tasks``.
        increment: number of classes in each later task (in every task without ``base``); the last may be smaller.
        groups: one task per group of classes. True takes the source's own groups, a list of their names takes these,
            and a mapping or a list of lists of class names makes new ones. Classes in no group are left out.
        order_seed: seed of the order of classes, or of groups; None keeps the source's order.
        validation: share of each class's training samples held out; 0 takes the source's own validation split, if any.
        split_seed: seed of what is held out and of the limits.
        train_per_class, test_per_class: keep at most so many samples of each class, before validation is held out.
        tuning_tasks: a stream to choose settings on: only the first so many tasks, tested on their validation samples
            (Chaudhry et al., "Efficient lifelong learning with A-GEM", 2019). No test sample is looked at.

    Raises:
        ConfigError: settings that contradict each other or do not fit the number of classes.
        DataError: a class without training samples, or a stream that does not pass ``TaskStream.check``.

    >>> from tangentcl.data import load
    >>> stream = class_incremental(load("digits"), base=4, increment=4, order_seed=1993)
    >>> [task.classes for task in stream]
    [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    """
    names, tasks = class_tasks(source, n_tasks, base, increment, groups, order_seed)
    options = _given(n_tasks=n_tasks, base=base, increment=increment, groups=groups, validation=validation)
    options |= _given(split_seed=split_seed, train_per_class=train_per_class, test_per_class=test_per_class)
    options |= _given(tuning_tasks=tuning_tasks)
    tables = _split(source, validation, split_seed, train_per_class, test_per_class, tuning_tasks)
    kept = _kept(len(tasks), tuning_tasks)
    return _class_stream(source, "class", names[:kept], tasks[:kept], tables, order_seed, options)


def task_incremental(
    source: Source,
    n_tasks: int | None = None,
    *,
    base: int | None = None,
    increment: int | None = None,
    groups: Groups | None = None,
    order_seed: int | None = None,
    validation: float = 0.0,
    split_seed: int = 0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    tuning_tasks: int | None = None,
) -> TaskStream:
    """As ``class_incremental``, but at test time the learner is told the task, so only its classes compete.

    Args and Raises: see ``class_incremental``.

    >>> from tangentcl.data import load
    >>> task_incremental(load("digits"), 5).scenario
    'task'
    """
    names, tasks = class_tasks(source, n_tasks, base, increment, groups, order_seed)
    options = _given(n_tasks=n_tasks, base=base, increment=increment, groups=groups, validation=validation)
    options |= _given(split_seed=split_seed, train_per_class=train_per_class, test_per_class=test_per_class)
    options |= _given(tuning_tasks=tuning_tasks)
    tables = _split(source, validation, split_seed, train_per_class, test_per_class, tuning_tasks)
    kept = _kept(len(tasks), tuning_tasks)
    return _class_stream(source, "task", names[:kept], tasks[:kept], tables, order_seed, options)


def few_shot(
    source: Source,
    *,
    base_classes: int,
    n_way: int,
    k_shot: int,
    order_seed: int | None = None,
    split_seed: int = 0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> TaskStream:
    """Base classes with all their data, then sessions of ``n_way`` new classes with ``k_shot`` samples each.

    Few-shot class-incremental learning after Tao et al. 2020, "Few-shot class-incremental learning" (CIFAR-100 there:
    60 base classes, then 8 sessions of 5-way 5-shot). The shots are drawn once, by ``split_seed``.

    Args:
        source: the data; its own validation split is kept, nothing else is held out.
        base_classes: number of classes in the first task.
        n_way: new classes per session; must divide the rest of the classes.
        k_shot: training samples of each new class.
        order_seed: seed of the order of classes; None keeps the source's order.
        split_seed: seed of the shots and of the limits.
        train_per_class: keep at most so many training samples of each base class.
        test_per_class: keep at most so many test samples of every class.

    Raises:
        ConfigError: the sessions do not fit the number of classes.
        DataError: a class has fewer than ``k_shot`` training samples.

    >>> from tangentcl.data import load
    >>> stream = few_shot(load("digits"), base_classes=4, n_way=2, k_shot=5)
    >>> [len(task.train) for task in stream][1:]
    [10, 10, 10]
    """
    n_classes = len(source.class_names)
    at_least("n_way", n_way, 1)
    at_least("k_shot", k_shot, 1)
    if not 1 <= base_classes < n_classes:
        raise ConfigError(
            f"Expected base_classes between 1 and {n_classes - 1} for {n_classes} classes, got {base_classes}."
        )
    n_sessions, rest = divmod(n_classes - base_classes, n_way)
    if rest:
        raise ConfigError(
            f"{n_classes - base_classes} classes after the base do not divide into sessions of {n_way}. "
            f"Try base_classes={base_classes + rest}."
        )
    order = arrival_order(n_classes, order_seed)
    tasks = [order[:base_classes]]
    tasks += [order[base_classes + n_way * s : base_classes + n_way * (s + 1)] for s in range(n_sessions)]
    names = ["base"] + [f"session {s + 1}" for s in range(n_sessions)]
    shots = _shots(source, order[base_classes:], k_shot)
    options = _given(base_classes=base_classes, n_way=n_way, k_shot=k_shot, split_seed=split_seed)
    options |= _given(train_per_class=train_per_class, test_per_class=test_per_class)
    tables = SplitSamples(source, 0.0, split_seed, train_per_class, test_per_class, shots)
    return _class_stream(source, "few_shot", names, tasks, tables, order_seed, options)


def domain_incremental(
    source: Source | Mapping[str, Source] | Sequence[Source],
    *,
    rotations: Sequence[float] | None = None,
    permutations: Sequence[int] | None = None,
    order_seed: int | None = None,
    validation: float = 0.0,
    split_seed: int = 0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    tuning_tasks: int | None = None,
) -> TaskStream:
    """The same classes in every task, each time from another domain.

    Args:
        source: data with domains, or several sources with the same classes, one per domain.
        rotations: make the domains from an image source: all images turned by each of these angles, in degrees
            counter-clockwise.
        permutations: make the domains by a fixed permutation of the pixels for each of these seeds; 0 leaves them.
        order_seed: seed of the order of domains; None keeps the source's order.
        validation, split_seed: as in ``class_incremental``, for each class in each domain.
        train_per_class, test_per_class: keep at most so many samples of each class in each domain.
        tuning_tasks: as in ``class_incremental``.

    Raises:
        ConfigError: both rotations and permutations, or a validation share beside a validation split.
        DataError: no domains, a domain without training or test samples, or sources with different classes.

    >>> from tangentcl.data import load
    >>> stream = domain_incremental(load("digits"), rotations=[0, 20, 40])
    >>> [task.name for task in stream], stream[2].n_seen
    (['rotation 0', 'rotation 20', 'rotation 40'], 10)
    """
    source = _with_domains(source, rotations, permutations)
    options = _given(rotations=rotations, permutations=permutations, validation=validation, split_seed=split_seed)
    options |= _given(train_per_class=train_per_class, test_per_class=test_per_class, tuning_tasks=tuning_tasks)
    tables = _split(source, validation, split_seed, train_per_class, test_per_class, tuning_tasks)
    domains = source.domain_names or ()
    order = arrival_order(len(domains), order_seed)[: _kept(len(domains), tuning_tasks)]
    every = tuple(range(len(source.class_names)))
    tasks = []
    for index, domain in enumerate(order):
        train, test, held = tables.of_domain(int(domain))
        present = np.union1d(train.labels, test.labels).tolist()
        tasks.append(
            Task(
                index=index,
                name=domains[domain],
                classes=tuple(present),
                new_classes=every if index == 0 else (),
                n_seen=len(every),
                n_tasks=len(order),
                train=train,
                train_eval=train,
                test=test,
                validation=held if len(held) else None,
            )
        )
    names = source.class_names
    return TaskStream(source.name, "domain", tuple(tasks), names, every, order_seed, source, options).check()


STREAMS: dict[str, Callable[..., TaskStream]] = {
    "class_incremental": class_incremental,
    "domain_incremental": domain_incremental,
    "task_incremental": task_incremental,
    "few_shot": few_shot,
}


def _kept(n_tasks: int, tuning_tasks: int | None) -> int:
    """How many tasks stay."""
    if tuning_tasks is None:
        return n_tasks
    at_least("tuning_tasks", tuning_tasks, 1)
    if tuning_tasks > n_tasks:
        raise ConfigError(f"Expected tuning_tasks of at most {n_tasks}, the number of tasks, got {tuning_tasks}.")
    return tuning_tasks


def _split(
    source: Source, validation: float, seed: int, train: int | None, test: int | None, tuning_tasks: int | None
) -> SplitSamples:
    return SplitSamples(source, validation, seed, train, test, on_validation=tuning_tasks is not None)


def _shots(source: Source, labels: np.ndarray, k_shot: int) -> dict[int, int]:
    """Source label -> number of shots."""
    counts = np.bincount(source.train.labels, minlength=len(source.class_names))
    for label in labels:
        if counts[label] < k_shot:
            raise DataError(
                f"Class {source.class_names[label]} has {counts[label]} training samples, too few for k_shot={k_shot}."
            )
    return {int(label): k_shot for label in labels}


def _with_domains(
    source: Source | Mapping[str, Source] | Sequence[Source],
    rotations: Sequence[float] | None,
    permutations: Sequence[int] | None,
) -> Source:
    if not isinstance(source, Source):
        source = join_domains(source)
    if rotations is not None and permutations is not None:
        raise ConfigError("Expected rotations or permutations, got both. Leave one of them out.")
    if rotations is not None:
        source = rotated(source, rotations)
    if permutations is not None:
        source = permuted(source, permutations)
    if source.domain_names is None:
        raise DataError(
            f"{source.name} has no domains. Try load(..., domain_column=...), a dict of sources, "
            "or rotations=[0, 20, 40] for images."
        )
    return source


def _class_stream(
    source: Source,
    scenario: str,
    names: Sequence[str],
    tasks: Sequence[np.ndarray],
    tables: SplitSamples,
    order_seed: int | None,
    options: dict[str, Any],
) -> TaskStream:
    order = np.concatenate(tasks)
    counts = np.bincount(source.train.labels, minlength=len(source.class_names))
    empty = [source.class_names[label] for label in order if not counts[label]]
    if empty:
        raise DataError(f"Classes of {source.name} without training samples: {', '.join(empty[:5])}.")
    stream_label = np.full(len(source.class_names), -1)
    stream_label[order] = np.arange(len(order))
    made, n_seen = [], 0
    for index, (name, members) in enumerate(zip(names, tasks)):
        classes = tuple(range(n_seen, n_seen + len(members)))
        n_seen += len(members)
        train, test, held = tables.of_classes(members, stream_label)
        held_or_none = held if len(held) else None
        made.append(Task(index, name, classes, classes, n_seen, len(tasks), train, train, test, held_or_none))
    class_names = tuple(source.class_names[label] for label in order)
    class_order = tuple(int(label) for label in order)
    stream = TaskStream(source.name, scenario, tuple(made), class_names, class_order, order_seed, source, options)
    return stream.check()


def _given(**settings: Any) -> dict[str, Any]:
    """Settings that were given, as JSON values."""
    return {name: _plain(value) for name, value in settings.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, range, np.ndarray)):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
