"""What is run, in which order: every strength is chosen on the first tasks, then all tasks are learned with it.

After Chaudhry et al., "Efficient lifelong learning with A-GEM" (ICLR 2019): strengths are chosen on the first tasks
alone (here in the order of seed 0, by the accuracy on their validation samples after the last of them). Departure: the
tested stream holds those tasks too, in each seed's own order; the paper tests on the later tasks only. With five or ten
tasks few would be left. Test samples are never chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.protect.cells import Cell
from benchmarks.protect.methods import Entry
from benchmarks.protect.settings import Setting
from tangentcl.errors import RecordError
from tangentcl.methods import METHODS
from tangentcl.records import Record
from tangentcl.reports.selection import accuracies

TUNING_SEED = 0


@dataclass(frozen=True)
class Trial:
    """A value that was tried: its accuracy on validation samples, or why there is none."""

    value: float
    accuracy: float | None
    reason: str | None


def found(cell: Cell) -> Record | None:
    """The finished record of a cell; None where there is none of these settings."""
    try:
        return cell.record()
    except RecordError:
        return None


def is_available(entry: Entry) -> bool:
    """Whether the method is there, or not yet."""
    return entry.name in METHODS or ":" in entry.name


@dataclass
class Protocol:
    """Settings, entries and seeds, and the cells that they need.

    Attributes:
        settings, entries, seeds: what is compared. out: folder of the benchmark.
    """

    settings: Sequence[Setting]
    entries: Sequence[Entry]
    seeds: Sequence[int]
    out: Path
    _open: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # labels of trials that have not ended
    _expected: int = 0

    def placed(self, setting: Setting) -> list[Entry]:
        """The entries that have a place in a setting, those that are not available among them."""
        return [entry for entry in self.entries if entry.settings(setting) is not None]

    def begin(self) -> list[Cell]:
        """The cells that can be run at once; done ones are left out."""
        cells: list[Cell] = []
        self._expected = 0
        for setting in self.settings:
            for entry in filter(is_available, self.placed(setting)):
                left = [cell for cell in self.trial_cells(setting, entry) if found(cell) is None]
                if left:
                    self._open[setting.name, entry.label] = {cell.label for cell in left}
                    self._expected += len(left) + len(self.seeds)
                    cells += left
                else:
                    tests = self._tests_left(setting, entry)
                    self._expected += len(tests)
                    cells += tests
        return cells

    def follow(self, cell: Cell, done: bool) -> list[Cell]:
        """The tests that can be run now that a cell has ended: those of an entry after the last of its trials."""
        if not cell.tuning:
            return []
        trials = self._open[cell.setting.name, cell.entry.label]
        trials.discard(cell.label)
        if trials:
            return []
        tests = self._tests_left(cell.setting, cell.entry)
        self._expected += len(tests) - len(self.seeds)
        return tests

    def expected(self) -> int:
        """Cells to run in all, those that are run already among them."""
        return self._expected

    def trial_cells(self, setting: Setting, entry: Entry) -> list[Cell]:
        """The cells that an entry's strength is chosen by; none where there is at most one value."""
        values = entry.values(setting) if len(entry.values(setting)) > 1 else ()
        return [Cell(setting, entry, value, TUNING_SEED, True, self.out) for value in values]

    def trials(self, setting: Setting, entry: Entry) -> list[Trial]:
        """What came of them."""
        results = []
        for cell in self.trial_cells(setting, entry):
            record = found(cell)
            accuracy = None if record is None else accuracies(record).metrics["last_accuracy"]
            results.append(Trial(float(cell.value or 0.0), accuracy, failure(cell) if accuracy is None else None))
        return results

    def chosen(self, setting: Setting, entry: Entry) -> float | None:
        """The value of the best trial, or the only value there is; None without any."""
        if len(entry.values(setting)) < 2:
            return next(iter(entry.values(setting)), None)
        return best(self.trials(setting, entry))

    def tests(self, setting: Setting, entry: Entry) -> list[Cell]:
        """A cell for each seed with the chosen value; none as long as there is no choice."""
        value = self.chosen(setting, entry)
        if entry.values(setting) and value is None:
            return []
        return [Cell(setting, entry, value, seed, False, self.out) for seed in self.seeds]

    def _tests_left(self, setting: Setting, entry: Entry) -> list[Cell]:
        return [cell for cell in self.tests(setting, entry) if found(cell) is None]


def failure(cell: Cell) -> str:
    """Why a cell has no finished record of these settings."""
    try:
        cell.record()
    except RecordError as error:
        return str(error)
    return cell.reason or "not run"


def best(trials: Sequence[Trial]) -> float | None:
    """The value with the highest accuracy, the first of equal ones; None where no trial has one.

    >>> best([Trial(0.1, 0.5, None), Trial(1.0, 0.7, None), Trial(10.0, 0.7, None), Trial(100.0, None, "failed")])
    1.0
    """
    known = [trial for trial in trials if trial.accuracy is not None]
    return max(known, key=lambda trial: trial.accuracy or 0.0).value if known else None
