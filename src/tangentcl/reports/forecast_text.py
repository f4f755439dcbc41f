"""Forecasts of a run as plain text: a line before and after each task, and a table with the truth beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .forecasts import spans

if TYPE_CHECKING:
    from ..records.forecasts import TaskForecast

WORST = 2  # classes named per task
Summary = Mapping[str, Any]


def before_line(summary: Summary) -> str:
    """What will be forgotten, in one line.

    Args:
        summary: of a forecast, or the fields of the event ``forecast``.

    >>> before_line({"status": "refused", "reason": "nothing trains"})
    'no forecast: nothing trains'
    """
    if summary["status"] == "refused":
        return f"no forecast: {summary['reason']}"
    found, flips = summary["accuracy"], summary["flips"]
    band = ""
    if found.get("low") is not None and found["low"] < found["high"]:
        band = f" (between {_percent(found['low'])} and {_percent(found['high'])} by the errors so far)"
    line = (
        f"forecast: old accuracy {_percent(found['now'])} % now, {_percent(found['predicted'])} % after it{band}; "
        f"{flips['predicted']} of {summary['n_old']} samples will be lost"
    )
    worst = [f"{c['name']} ({_percent(c['now'])} to {_percent(c['predicted'])} %)" for c in _worst(summary)]
    return f"{line}; worst: {', '.join(worst)}" if worst else line


def after_line(summary: Summary) -> str:
    """What was forgotten beside what was predicted, in one line."""
    found, flips = summary["accuracy"], summary["flips"]
    return (
        f"came true: old accuracy {_percent(found['real'])} %, {_percent(found['predicted'])} % predicted; "
        f"samples lost: {flips['real']}, {flips['predicted']} predicted, {flips['both']} both"
    )


def side_by_side(forecasts: Sequence[TaskForecast]) -> str:
    """Forecast and truth of every task as a table with aligned columns; then how far to believe it.

    Percentages of the old test samples; "lost" are samples that were right before the task. Modes are eigenspaces of
    the old kernel that hold 95 % of the drift's energy, of how many there are.
    """
    made = [f for f in forecasts if f.summary["status"] == "forecast"]
    lines = []
    if made:
        lines += _aligned(HEAD, [_row(f) for f in made])
    drawn = [f.summary for f in made if f.summary["n_old"] < f.summary["n_old_available"]]
    if drawn:
        counts = dict.fromkeys(f"{s['n_old']} of {s['n_old_available']}" for s in drawn)
        lines.append(f"samples: {', '.join(counts)} test samples of past tasks, every class in proportion")
    said: dict[str, list[int]] = {}
    for f in forecasts:
        refused = f.summary["status"] == "refused"
        sentence = f"no forecast: {f.summary['reason']}" if refused else str(f.summary["sentence"])
        said.setdefault(sentence, []).append(f.task + 1)
    return "\n".join([*lines, *(f"{_tasks(spans(tasks))}: {sentence}" for sentence, tasks in said.items())])


HEAD = (
    "before task",
    "now",
    "predicted",
    "real",
    "forgotten pred.",
    "real",
    "lost pred.",
    "real",
    "both",
    "modes",
    "worst predicted",
)


def _row(forecast: TaskForecast) -> list[str]:
    summary = forecast.summary
    found, flips, modes = summary["accuracy"], summary["flips"], summary["modes"]
    forgotten = [None if found[key] is None else found["now"] - found[key] for key in ("predicted", "real")]
    spaces = "-" if modes.get("rank95") is None else f"{modes['rank95']} of {modes['n_spaces']}"
    worst = ", ".join(f"{c['name']} (-{_percent(c['now'] - c['predicted'])})" for c in _worst(summary))
    return [
        f"{forecast.task + 1}: {_short(forecast.name)}",
        *(_percent(found[key]) for key in ("now", "predicted", "real")),
        *map(_percent, forgotten),
        *("-" if flips[key] is None else str(flips[key]) for key in ("predicted", "real", "both")),
        spaces,
        worst or "none",
    ]


def _worst(summary: Summary) -> list[Summary]:
    """Classes that lose most by the forecast, worst first; none that loses nothing."""
    classes = sorted(summary.get("classes") or [], key=lambda c: float(c["predicted"] - c["now"]))
    return [c for c in classes if c["predicted"] < c["now"]][:WORST]


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """First and last column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    last = len(head) - 1
    return [
        "  ".join(
            cell.ljust(w) if i in (0, last) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (head, *rows)
    ]


def _tasks(tasks: str) -> str:
    return f"task {tasks}" if tasks.isdigit() else f"tasks {tasks}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _short(name: str, width: int = 20) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
