"""Axes around a plot: scales, ticks, and the names of series at their right ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .svg import Canvas, spread, text_width, wrap

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line or row of bars: mean [T] over runs and, where there are several, the spread around it.

    ``slot`` picks colour and marker and is the same for a method in every figure. NaN is a gap.
    """

    label: str
    slot: int
    mean: Array
    low: Array | None = None
    high: Array | None = None


def known_values(series: Sequence[Series]) -> Array:
    """All finite values of the series and of their spreads, in one row."""
    values = np.concatenate([v for s in series for v in (s.mean, s.low, s.high) if v is not None])
    return values[np.isfinite(values)]


def linear(a: float, b: float, to_a: float, to_b: float) -> Callable[[float], float]:
    """The map that takes a to ``to_a`` and b to ``to_b``."""
    return lambda value: to_a + (value - a) / ((b - a) or 1.0) * (to_b - to_a)


def last_known(values: Array) -> float:
    """The last finite value; NaN where there is none."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


@dataclass(frozen=True)
class Axes:
    """Where a plot with axes lies on its canvas, and the maps from values to pixels."""

    canvas: Canvas
    left: float
    right: float
    top: float
    bottom: float
    x: Callable[[float], float]
    y: Callable[[float], float]

    def points(self, values: Array) -> list[tuple[float, float]]:
        """Pixels of values at 1, 2, ... on the first axis."""
        return [(self.x(t), self.y(v)) for t, v in enumerate(values, start=1)]

    def label_ends(self, series: Sequence[Series]) -> None:
        """Each series' name at its right end, moved apart where lines end close to each other."""
        wanted = [self.y(last_known(s.mean)) if np.isfinite(s.mean).any() else self.bottom for s in series]
        room = self.canvas.width - self.right - 34
        names = [wrap(s.label, room) for s in series]
        gap = 17 if all(len(lines) < 2 for lines in names) else 31
        for s, lines, at, y in zip(series, names, wanted, spread(wanted, gap, self.top, self.bottom)):
            self.canvas.line(self.right + 5, at, self.right + 14, y, 0.4)
            self.canvas.marker(self.right + 20, y, s.slot)
            for i, line in enumerate(lines):
                baseline = y + 4 + 14 * (i - (len(lines) - 1) / 2)
                self.canvas.text(self.right + 29, baseline, line, hint=s.label)


def axes(
    series: Sequence[Series],
    y_ticks: Sequence[float],
    x_range: tuple[float, float],
    y_name: str,
    x_name: str,
    written: Callable[[float], str],
    least_height: float = 300.0,
) -> Axes:
    """A canvas with axes: horizontal lines at the ticks, room on the right for the series' names.

    Args:
        x_range: values at the left and the right end. written: turns a tick into text.
    """
    width, left, top = 720.0, 66.0, 24.0
    right = width - min(max(text_width(s.label) for s in series) + 44, 210)
    height = max(least_height, (31.0 if width - right == 210 else 17.0) * len(series) + 20)
    bottom = top + height
    canvas = Canvas(width, bottom + 44)
    y = linear(y_ticks[0], y_ticks[-1], bottom, top)
    for tick in y_ticks:
        canvas.line(left, y(tick), right, y(tick), 0.15)
        canvas.text(left - 8, y(tick) + 4, written(tick), size=11, anchor="end")
    canvas.line(left, bottom, right, bottom, 0.6)
    canvas.text((left + right) / 2, bottom + 38, x_name, anchor="middle")
    canvas.text(16, (top + bottom) / 2, y_name, anchor="middle", turned=True)
    return Axes(canvas, left, right, top, bottom, linear(*x_range, left + 6, right - 6), y)
