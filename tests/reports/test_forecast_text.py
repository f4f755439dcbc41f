"""Forecasts as text: one line before and after a task, a table with the truth beside them."""

from __future__ import annotations

from typing import Any

from tangentcl.records.forecasts import TaskForecast
from tangentcl.reports.forecast_text import after_line, before_line, side_by_side

SUMMARY: dict[str, Any] = {
    "status": "forecast",
    "exact": False,
    "sentence": "Believe it: off by 3 % of the drift.",
    "notes": [],
    "samples_note": "90 of 120 test samples of past tasks",
    "n_old": 90,
    "n_old_available": 90,
    "accuracy": {"now": 0.98, "predicted": 0.6, "real": 0.625, "low": 0.55, "high": 0.65},
    "flips": {"predicted": 34, "real": 32, "both": 31},
    "modes": {"rank95": 3, "n_spaces": 90},
    "classes": [
        {"name": "ant", "now": 1.0, "predicted": 0.9},
        {"name": "bee", "now": 0.96, "predicted": 0.2},
        {"name": "cat", "now": 0.5, "predicted": 0.6},
    ],
}
UNKNOWN = {
    "accuracy": {**SUMMARY["accuracy"], "real": None, "low": None, "high": None},
    "flips": {"predicted": 34, "real": None, "both": None},
}


def _forecast(task: int, name: str, **changes: Any) -> TaskForecast:
    return TaskForecast(task, name, {**SUMMARY, **changes}, {})


def test_a_line_before_and_one_after() -> None:
    assert before_line(SUMMARY) == (
        "forecast: old accuracy 98.0 % now, 60.0 % after it (between 55.0 and 65.0 by the errors so far); "
        "34 of 90 samples will be lost; worst: bee (96.0 to 20.0 %), ant (100.0 to 90.0 %)"
    )
    assert "between" not in before_line({**SUMMARY, **UNKNOWN})
    exact = {**SUMMARY, "accuracy": {**SUMMARY["accuracy"], "low": 0.6, "high": 0.6}, "classes": []}
    assert before_line(exact).endswith("60.0 % after it; 34 of 90 samples will be lost")
    assert after_line(SUMMARY) == (
        "came true: old accuracy 62.5 %, 60.0 % predicted; samples lost: 32, 34 predicted, 31 both"
    )


def test_forecast_and_truth_side_by_side() -> None:
    found = [
        _forecast(1, "dogs", n_old_available=120),
        _forecast(2, "a task with a long name indeed", sentence="Exact: it equals training up to rounding."),
        _forecast(3, "eels", **UNKNOWN, modes={}, classes=[]),
        TaskForecast(4, "x", {"status": "refused", "reason": "nothing trains"}, {}),
        TaskForecast(5, "y", {"status": "refused", "reason": "nothing trains"}, {}),
    ]
    lines = side_by_side(found).splitlines()
    assert len({line.index("real") for line in lines[:1]}) == 1
    cells = [line.split() for line in lines[1:4]]
    assert cells[0][2:-4] == ["98.0", "60.0", "62.5", "38.0", "35.5", "34", "32", "31", "3", "of", "90"]
    assert " ".join(cells[0][-4:]) == "bee (-76.0), ant (-10.0)"
    assert lines[2].startswith("3: a task with a long …  ")
    assert cells[2][2:] == ["98.0", "60.0", "-", "38.0", "-", "34", "-", "-", "-", "none"]
    widths = [line.index(part) + 4 for line, part in zip(lines[1:4], ("98.0", "98.0", "98.0"))]
    assert len(set(widths)) == 1, "columns are aligned"
    assert lines[4:] == [
        "samples: 90 of 120 test samples of past tasks, every class in proportion",
        "tasks 2, 4: Believe it: off by 3 % of the drift.",
        "task 3: Exact: it equals training up to rounding.",
        "tasks 5, 6: no forecast: nothing trains",
    ]


def test_everything_refused() -> None:
    only = [TaskForecast(1, "x", {"status": "refused", "reason": "nothing trains"}, {})]
    assert side_by_side(only) == "task 2: no forecast: nothing trains"
