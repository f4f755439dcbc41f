"""The figures of the theory report, each from plain arrays to one SVG element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .axes import Series, axes, known_values
from .svg import Canvas, sequential, shorten, text_width, ticks

Array = npt.NDArray[np.float64]


def short(value: float) -> str:
    """A number in three digits, without an exponent where it is of ordinary size.

    >>> short(0.012345), short(1234.5), short(1e-7), short(0.0)
    ('0.0123', '1234', '1e-07', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.3g}"


def task_map(
    matrix: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_title: str,
    column_title: str,
    name: str,
    title: str,
    top_value: float | None = None,
) -> str:
    """A heat map of a quantity between tasks, [T, T], with its numbers in the cells; NaN is an empty cell.

    Args:
        rows, columns: names of the tasks; a row's name may say more.
        top_value: end of the colour scale, which begins at 0; None takes the largest value.
    """
    n = len(columns)
    cell, height, size = (58, 34, 12) if n <= 8 else (46, 28, 11) if n <= 20 else (15, 15, 0)
    known = matrix[np.isfinite(matrix)]
    most = top_value or (float(known.max()) if len(known) and known.max() > 0 else 1.0)
    left, top = min(max(text_width(r) for r in [*rows, row_title]) + 18, 230), 58.0
    bottom = top + len(rows) * height
    canvas = Canvas(left + max(n * cell, 250) + 12, bottom + 56)
    canvas.text(left, 18, column_title)
    canvas.text(8, top - 12, row_title)
    every = 1 if size else math.ceil(n / 15)
    for k in range(0, n, every):
        canvas.text(left + (k + 0.5) * cell, top - 12, str(k + 1), anchor="middle", hint=columns[k])
    for t, row in enumerate(rows):
        y = top + t * height
        if size or t % every == 0:
            canvas.text(8, y + height / 2 + 4, shorten(row, left - 16), hint=row)
        for k in range(n):
            value = float(matrix[t, k])
            x = left + k * cell
            if math.isnan(value):
                canvas.rect(x, y, cell - 1, height - 1, "currentColor", opacity=0.06)
                continue
            fill, ink = sequential(value / most)
            canvas.rect(x, y, cell - 1, height - 1, fill, hint=f"{row}; {columns[k]}: {short(value)}")
            if size:
                canvas.text(x + cell / 2, y + height / 2 + size / 3, short(value), size=size, anchor="middle", fill=ink)
    for i in range(50):
        canvas.rect(left + i * 4.8, bottom + 16, 5.3, 10, sequential((i + 0.5) / 50)[0])
    for share in (0.0, 0.5, 1.0):
        canvas.text(left + 240 * share, bottom + 41, short(share * most), size=11, anchor="middle")
    listed = "; ".join(
        f"{rows[t]}: " + ", ".join(short(v) if np.isfinite(v) else "none" for v in matrix[t]) for t in range(len(rows))
    )
    return canvas.finish(name, title, f"{title}. {listed}.", scale=False)


def over_tasks(
    series: Sequence[Series],
    lights: Sequence[str],
    y_name: str,
    *,
    name: str,
    title: str,
    log: bool = False,
    limits: Sequence[tuple[float, str]] = (),
) -> str:
    """Quantities over tasks; below each task stands how far the theory holds there, in words or by a sign.

    Args:
        series: means [T]. lights: one text a task.
        log: logarithmic axis; values that are not positive are left out.
        limits: values with their names, drawn as dashed lines.
    """
    drawn, y_ticks, written = _scaled(series, log, [v for v, _ in limits])
    n = len(lights)
    frame = axes(drawn, y_ticks, (1, max(n, 2)), y_name, "", written, 190.0)
    room = (frame.right - frame.left) / max(n, 1)
    every = math.ceil(n / 20)
    for t in range(1, n + 1, every):
        frame.canvas.text(frame.x(t), frame.bottom + 16, str(t), size=11, anchor="middle")
        said = lights[t - 1] if text_width(lights[t - 1], 11) < room * every - 4 else lights[t - 1].split(" ")[0]
        frame.canvas.text(frame.x(t), frame.bottom + 32, said, size=11, anchor="middle", hint=lights[t - 1])
    for limit, text in limits:
        y = frame.y(math.log10(limit) if log else limit)
        frame.canvas.line(frame.left, y, frame.right, y, 0.6, "5 4")
        frame.canvas.text(frame.left + 4, y - 4, text, size=11)
    for s, original in zip(drawn, series):
        points = frame.points(s.mean)
        frame.canvas.curve(points, s.slot, width=1.6)
        for t, (x, y) in enumerate(points):
            if not math.isnan(y):
                hint = f"{s.label}, task {t + 1}: {short(float(original.mean[t]))} ({lights[t]})"
                frame.canvas.marker(x, y, s.slot, hint=hint)
    frame.label_ends(drawn)
    listed = "; ".join(f"{s.label}: {', '.join(short(float(v)) for v in s.mean)}" for s in series)
    return frame.canvas.finish(name, title, f"{title}, task by task. {listed}.")


def risk_lines(curves: Sequence[tuple[str, int, Array, Array]], *, name: str, title: str) -> str:
    """Leave-one-out risk over the strength of the ridge, both logarithmic; a mark at the lowest point of each task.

    Args:
        curves: label, slot, strengths [m] and risks [m] of each task.
    """
    series = [Series(label, slot, np.log10(np.where(risks > 0, risks, np.nan))) for label, slot, _, risks in curves]
    known = known_values(series)
    low, high = math.floor(float(known.min())), math.ceil(float(known.max()))
    y_ticks = [float(p) for p in range(low, max(high, low + 1) + 1)]
    strengths = np.log10(np.concatenate([x for _, _, x, _ in curves]))
    span = (float(strengths.min()), float(strengths.max()))
    frame = axes(series, y_ticks, span, "leave-one-out risk", "strength of the ridge", lambda v: f"{10**v:g}", 220.0)
    for power in range(math.ceil(span[0]), math.floor(span[1]) + 1):
        frame.canvas.text(frame.x(power), frame.bottom + 18, f"{10.0**power:g}", size=11, anchor="middle")
    said = []
    for s, (label, _, x, risks) in zip(series, curves):
        frame.canvas.curve([(frame.x(math.log10(a)), frame.y(b)) for a, b in zip(x, s.mean)], s.slot, width=1.6)
        best = int(np.nanargmin(risks))
        hint = f"{label}: lowest at {short(float(x[best]))}, {short(float(risks[best]))}"
        frame.canvas.marker(frame.x(math.log10(x[best])), frame.y(float(s.mean[best])), s.slot, hint=hint)
        said.append(hint)
    frame.label_ends(series)
    return frame.canvas.finish(name, title, f"{title}. {'; '.join(said)}.")


def _scaled(
    series: Sequence[Series], log: bool, also: Sequence[float]
) -> tuple[list[Series], list[float], Callable[[float], str]]:
    """What is drawn, the ticks, and how they are written; ``also`` are values that must be on the axis."""
    if not log:
        known = np.concatenate([known_values(series), also])
        y_ticks = ticks(min(0.0, float(known.min())), float(known.max()) or 1.0, 4)
        return list(series), y_ticks, lambda v: f"{v:g}"
    drawn = [Series(s.label, s.slot, np.log10(np.where(s.mean > 0, s.mean, np.nan))) for s in series]
    known = np.concatenate([known_values(drawn), np.log10(np.array(also, dtype=float))])
    low, high = (math.floor(known.min()), math.ceil(known.max())) if len(known) else (0, 1)
    every = math.ceil(max(high - low, 1) / 6)
    return drawn, [float(p) for p in range(low, max(high, low + 1) + every, every)], lambda v: f"{10**v:g}"
