"""Forecasts and what came true in words and numbers: a table with a line per task, and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records.forecasts import TaskForecast
from .tables import Cell, percent
from .units import duration

NOT_TRAINED = "not trained yet"
HEADING = (
    "before task",
    "old samples",
    "now (%)",
    "predicted (%)",
    "real (%)",
    "forgotten, predicted",
    "forgotten, real",
    "trust",
    "lost: predicted / real / both",
    "cosine",
    "R²",
    "Spearman",
    "relative error",
    "modes for 95 %",
    "forecast took",
    "training took",
)


@dataclass(frozen=True)
class Run:
    """The forecasts of one run, in the order of its tasks."""

    seed: int
    forecasts: Sequence[TaskForecast]

    @property
    def made(self) -> list[TaskForecast]:
        """Those that were not refused."""
        return [f for f in self.forecasts if f.summary["status"] != "refused"]


def value(forecast: TaskForecast, *path: str) -> float | None:
    """A number of the summary by its path; None where it is absent, null or not known yet."""
    found: Any = forecast.summary
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def forgotten(forecast: TaskForecast, which: str) -> float | None:
    """Old accuracy now minus the "predicted" or "real" one after the task; None before the truth is known."""
    now, after = value(forecast, "accuracy", "now"), value(forecast, "accuracy", which)
    return None if now is None or after is None else now - after


def table(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Heading and body: one line per task that a forecast was made for, means over seeds."""
    tasks = sorted({f.task for run in runs for f in run.made})
    return HEADING, [_line(task, [f for run in runs for f in run.made if f.task == task], len(runs)) for task in tasks]


def _line(task: int, found: Sequence[TaskForecast], n_seeds: int) -> list[str]:
    def cell(*path: str) -> Cell | None:
        return Cell.of(value(f, *path) for f in found)

    def mean(text: Callable[[float], str], *path: str) -> str:
        known = cell(*path)
        return "–" if known is None else text(known.mean)

    names = dict.fromkeys(f.name for f in found)
    real = cell("accuracy", "real")
    lost = [Cell.of(forgotten(f, which) for f in found) for which in ("predicted", "real")]
    spaces = mean(lambda v: f" of {v:.3g}", "modes", "n_spaces").strip("–")
    return [
        f"{task + 1}: {next(iter(names))}" if len(names) == 1 else f"{task + 1}",
        _samples(found),
        percent(cell("accuracy", "now"), n_seeds, 1),
        percent(cell("accuracy", "predicted"), n_seeds, 1) + _band(found),
        NOT_TRAINED if real is None else percent(real, n_seeds, 1),
        *(percent(c, n_seeds, 1) for c in lost),
        _trust(found),
        " / ".join(mean(lambda v: f"{v:.4g}", "flips", which) for which in ("predicted", "real", "both")),
        *(mean(lambda v: f"{v:.3f}", "quality", name) for name in ("cosine", "r2", "spearman")),
        mean(lambda v: f"{v:.2g}", "quality", "relative_error"),
        mean(lambda v: f"{v:.3g}", "modes", "rank95") + spaces,
        mean(duration, "cost", "forecast_seconds"),
        mean(duration, "cost", "training_seconds"),
    ]


def _samples(found: Sequence[TaskForecast]) -> str:
    used, all_of_them = (Cell.of(value(f, name) for f in found) for name in ("n_old", "n_old_available"))
    if used is None:
        return "–"
    part = "" if all_of_them is None or all_of_them.mean == used.mean else f" of {all_of_them.mean:,.0f}"
    return f"{used.mean:,.0f}{part}"


def _band(found: Sequence[TaskForecast]) -> str:
    """The band around a prediction; an exact one needs none."""
    local = [f for f in found if not f.summary.get("exact")]
    low, high = (Cell.of(value(f, "accuracy", side) for f in local) for side in ("low", "high"))
    return "" if low is None or high is None else f" [{100 * low.mean:.1f} to {100 * high.mean:.1f}]"


def trust_level(forecast: TaskForecast) -> str:
    """ "exact", "high", "medium" or "low"; "not exact" where nothing was measured."""
    if forecast.summary.get("exact"):
        return "exact"
    trust = forecast.summary.get("trust")
    return str(trust["level"]) if trust else "not exact"


def _trust(found: Sequence[TaskForecast]) -> str:
    levels = Counter(map(trust_level, found))
    if len(levels) == 1:
        return next(iter(levels))
    return ", ".join(f"{level} ({count})" for level, count in levels.items())


def overview(runs: Sequence[Run]) -> list[str]:
    """What came of the forecasts in a few sentences: how far off they were, the band, their cost, what is missing."""
    made = [(run.seed, f) for run in runs for f in run.made]
    if not made:
        return ["Every forecast was refused."]
    sentences = []
    errors = [(abs(e), f.task, seed) for seed, f in made if (e := value(f, "quality", "accuracy_error")) is not None]
    if errors:
        worst, task, seed = max(errors)
        where = f"before task {task + 1}" + (f", seed {seed}" if len(runs) > 1 else "")
        text = f"Predicted and real old accuracy differ by {100 * float(np.mean([e for e, _, _ in errors])):.1f} points"
        if len(errors) > 1:
            text += f" on average over {len(errors)} forecasts, by {100 * worst:.1f} at most ({where})"
        if worst < 0.0005:
            text = "Predicted and real old accuracy are the same to a tenth of a point"
            text += f" in all {len(errors)} forecasts" if len(errors) > 1 else ""
        sentences.append(f"{text}.")
    banded = [
        low <= real <= high
        for _, f in made
        if not f.summary.get("exact")
        and (low := value(f, "accuracy", "low")) is not None
        and (high := value(f, "accuracy", "high")) is not None
        and (real := value(f, "accuracy", "real")) is not None
    ]
    if banded:
        inside = "in the one case that has a band" if banded == [True] else f"in {sum(banded)} of {len(banded)} cases"
        sentences.append(f"The real accuracy lay inside the band calibrated on earlier tasks {inside}.")
    costs = [(value(f, "cost", "forecast_seconds"), value(f, "cost", "training_seconds")) for _, f in made]
    pairs = [(a, b) for a, b in costs if a is not None and b]
    if pairs:
        spent, trained = (float(np.mean(part)) for part in zip(*pairs))
        on_average = " on average" if len(pairs) > 1 else ""
        text = f"A forecast took {duration(spent)}{on_average}, {_times(spent / trained)} the {duration(trained)}"
        sentences.append(f"{text} of the training that it foresees.")
    waiting = spans(f.task + 1 for _, f in made if value(f, "accuracy", "real") is None)
    if waiting:
        sentences.append(f"What became of task {waiting} is not known: {NOT_TRAINED}.")
    return sentences


def _times(ratio: float) -> str:
    return (
        f"{100 * ratio:.2g} % of" if ratio < 0.995 else f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:,.0f} times"
    )


def beliefs(forecasts: Iterable[TaskForecast]) -> list[tuple[str, str]]:
    """How far to believe each forecast and what it does not cover, equal sentences together: (tasks, sentence)."""
    found: dict[str, list[int]] = {}
    for f in forecasts:
        said = [f.summary.get("sentence"), *(f.summary.get("notes") or ())]
        if value(f, "n_old") != value(f, "n_old_available"):
            said.append(f.summary.get("samples_note"))
        for sentence in dict.fromkeys(s for s in said if s):
            found.setdefault(sentence, []).append(f.task + 1)
    return [(spans(tasks), sentence) for sentence, tasks in found.items()]


def refusals(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Forecasts that were refused, equal reasons together: (tasks and seeds, reason)."""
    found: dict[str, list[tuple[int, int]]] = {}
    for run in runs:
        for f in run.forecasts:
            if f.summary["status"] == "refused":
                found.setdefault(str(f.summary.get("reason") or "no reason given"), []).append((f.task + 1, run.seed))
    return [
        (
            f"{spans(task for task, _ in where)}"
            + (f" (seed {spans(seed for _, seed in where)})" if len(runs) > 1 else ""),
            reason,
        )
        for reason, where in found.items()
    ]


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in words, neighbours as a range.

    >>> spans([2, 3, 4, 7, 3])
    '2 to 4, 7'
    """
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs)
