"""The results of a setting: rows over seeds, tests against the reference, the front of old and new accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.protect.methods import REFERENCE, Entry
from benchmarks.protect.numbers import ACCURACIES, COSTS, Numbers, numbers
from benchmarks.protect.protocol import Protocol, Trial, failure, found, is_available
from benchmarks.protect.settings import Setting
from tangentcl.reports.paired import Interval, Paired, holm, paired
from tangentcl.reports.pareto import Place, front, front_within_intervals

COLUMNS = (*ACCURACIES, *COSTS)
EQUAL = 1.5  # times the reference's memory: what still counts as no more than it
TESTED = ("last_accuracy", "old_accuracy", "new_accuracy")


@dataclass(frozen=True)
class Row:
    """A method in a setting.

    Attributes:
        value: of its strength, None where it has none or none could be chosen.
        seeds: seed -> numbers of its run. failures: what is missing, and why.
    """

    entry: Entry
    value: float | None
    trials: Sequence[Trial]
    seeds: Mapping[int, Numbers]
    failures: Sequence[str]

    def interval(self, name: str) -> Interval | None:
        """Mean and 95 % interval over seeds; None unless every seed that is done tells it."""
        values = [n[name] for n in self.seeds.values()]
        known = [v for v in values if v is not None]
        return Interval.of(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Test:
    """A row less the reference in one number, over the seeds that both have; ``holm_*`` over all rows."""

    found: Paired
    holm_t: float | None
    holm_sign_flip: float


@dataclass(frozen=True)
class Results:
    """All of a setting; ``tests`` by name of the number and label, the fronts by label.

    Attributes:
        front: of old and new accuracy, among all; near: what seeds do not tell from it.
        equal: the front among methods that keep no more than the reference; equal_near: likewise.
    """

    setting: Setting
    rows: Sequence[Row]
    tests: Mapping[str, Mapping[str, Test]]
    front: Sequence[str]
    near: Sequence[str]
    equal: Sequence[str]
    equal_near: Sequence[str]
    places: Sequence[Place] = field(repr=False)


def results(protocol: Protocol, setting: Setting, reasons: Mapping[str, str]) -> Results:
    """From the records that are there. ``reasons``: why cells failed that left no record, by their title."""
    rows = [_row(protocol, setting, entry, reasons) for entry in protocol.placed(setting)]
    reference = next((row for row in rows if row.entry.label == REFERENCE and row.seeds), None)
    tests = {name: {} if reference is None else _tests(rows, reference, name) for name in TESTED}
    places = []
    for row in rows:
        old, new = row.interval("old_accuracy"), row.interval("new_accuracy")
        if old is not None and new is not None:
            places.append(Place(row.entry.label, old, new))
    small = _no_larger(rows, reference)
    fronts = [
        [chosen[i].label for i in choose(chosen)]
        for chosen in (places, [place for place in places if place.label in small])
        for choose in (front, front_within_intervals)
    ]
    return Results(setting, rows, tests, *fronts, places)


def _no_larger(rows: Sequence[Row], reference: Row | None) -> set[str]:
    """Labels of what keeps no more than `EQUAL` times the reference's memory."""
    most = None if reference is None else reference.interval("memory_bytes")
    sizes = {row.entry.label: row.interval("memory_bytes") for row in rows}
    return {
        label
        for label, size in sizes.items()
        if most is not None and size is not None and size.mean <= EQUAL * most.mean
    }


def _row(protocol: Protocol, setting: Setting, entry: Entry, reasons: Mapping[str, str]) -> Row:
    if not is_available(entry):
        return Row(entry, None, [], {}, ["not available"])
    trials = protocol.trials(setting, entry)
    seeds, failures = {}, []
    for trial, cell in zip(trials, protocol.trial_cells(setting, entry)):
        if trial.accuracy is None:
            failures.append(f"{cell.label}: {reasons.get(cell.title, trial.reason)}")
    for cell in protocol.tests(setting, entry):
        record = found(cell)
        if record is None:
            failures.append(f"seed {cell.seed}: {reasons.get(cell.title) or failure(cell)}")
        else:
            seeds[cell.seed] = numbers(cell, record)
    return Row(entry, protocol.chosen(setting, entry), trials, seeds, failures)


def _tests(rows: Sequence[Row], reference: Row, name: str) -> dict[str, Test]:
    pairs: dict[str, Paired] = {}
    for row in rows:
        both = [seed for seed in row.seeds if seed in reference.seeds]
        values = [(row.seeds[seed][name], reference.seeds[seed][name]) for seed in both]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        if row is not reference and known and len(known) == len(values):
            pairs[row.entry.label] = paired([a for a, _ in known], [b for _, b in known])
    flips = dict(zip(pairs, holm([p.p_sign_flip for p in pairs.values()])))
    with_t = {label: p.p_t for label, p in pairs.items() if p.p_t is not None}
    ts = dict(zip(with_t, holm(list(with_t.values()))))
    return {label: Test(p, ts.get(label), flips[label]) for label, p in pairs.items()}
