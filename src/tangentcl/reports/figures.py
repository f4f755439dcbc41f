"""The figures of a report, each from plain arrays to one SVG element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .axes import Series, axes, known_values, last_known, linear
from .svg import Canvas, colour, sequential, shorten, text_width, ticks

Array = npt.NDArray[np.float64]


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a percentage without the sign.

    >>> percent(0.91666)
    '91.7'
    """
    return f"{round(100 * value, digits) + 0.0:.{digits}f}"


def heat_map(matrix: Array, task_names: Sequence[str], *, name: str, title: str) -> str:
    """Accuracy matrix [T, T]: row = after a task, column = evaluated task; rows never evaluated are left out."""
    n_tasks = len(matrix)
    cell, height, size = (54, 38, 13) if n_tasks <= 8 else (42, 28, 11.5) if n_tasks <= 20 else (15, 15, 0)
    names = [f"{t}: {task}" for t, task in enumerate(task_names, start=1)]
    rows = [t for t in range(n_tasks) if np.isfinite(matrix[t]).any()]
    if n_tasks > 1 and rows == [n_tasks - 1]:
        names[-1] = "all tasks"
    left, top = min(max(text_width(n) for n in [*names, "after training on"]) + 18, 170), 58
    width = left + max(n_tasks * cell, 250) + 12
    canvas = Canvas(width, top + len(rows) * height + 58)
    canvas.text(left, 18, "accuracy on task (%)", size=12)
    canvas.text(8, top - 12, "after training on", size=12)
    every = 1 if size else math.ceil(n_tasks / 15)
    for k in range(0, n_tasks, every):
        canvas.text(left + (k + 0.5) * cell, top - 12, str(k + 1), anchor="middle", hint=task_names[k])
    for i, t in enumerate(rows):
        y = top + i * height
        if size or t % every == 0:
            canvas.text(8, y + height / 2 + 4, shorten(names[t], left - 16), hint=task_names[t])
        for k in range(n_tasks):
            value = matrix[t, k]
            if math.isnan(value):
                canvas.rect(left + k * cell, y, cell - 1, height - 1, "currentColor", opacity=0.06)
                continue
            fill, ink = sequential(value)
            hint = f"after {task_names[t]}, on {task_names[k]}: {percent(value, 2)} %"
            canvas.rect(left + k * cell, y, cell - 1, height - 1, fill, hint=hint)
            if size:
                x = left + (k + 0.5) * cell - 0.5
                canvas.text(x, y + height / 2 + size / 3, percent(value), size=size, anchor="middle", fill=ink)
    _colour_bar(canvas, left, top + len(rows) * height + 18)
    last = ", ".join(percent(v) if np.isfinite(v) else "not evaluated" for v in matrix[-1])
    return canvas.finish(name, title, f"Accuracy in percent on each task after the last one: {last}.", scale=False)


def _colour_bar(canvas: Canvas, x: float, y: float) -> None:
    steps = 50
    for i in range(steps):
        canvas.rect(x + i * 240 / steps, y, 240 / steps + 0.5, 10, sequential((i + 0.5) / steps)[0])
    for value in (0, 0.25, 0.5, 0.75, 1):
        canvas.text(x + 240 * value, y + 25, percent(value, 0), size=11, anchor="middle")


def accuracy_lines(series: Sequence[Series], *, name: str, title: str) -> str:
    """Accuracy over all seen classes after each task; a line per method, its spread over seeds as a band."""
    known = known_values(series)
    y_ticks = [t for t in ticks(float(known.min()), float(known.max())) if -1e-9 <= t <= 1 + 1e-9]
    if len(y_ticks) < 2:
        y_ticks = [0.0, 0.5, 1.0]
    n_tasks = max(len(s.mean) for s in series)
    frame = axes(series, y_ticks, (1, max(n_tasks, 2)), "accuracy on all seen classes (%)", "tasks learned", percent_y)
    every = math.ceil(n_tasks / 15)
    for t in range(1, n_tasks + 1, every):
        frame.canvas.text(frame.x(t), frame.bottom + 18, str(t), anchor="middle")
    for s in series:
        if s.low is not None and s.high is not None:
            low, high = (frame.points(np.clip(edge, 0, 1)) for edge in (s.low, s.high))  # no accuracy lies outside
            frame.canvas.band(low, high, s.slot)
    for s in series:
        points = frame.points(s.mean)
        frame.canvas.curve(points, s.slot)
        for t, (x, y) in enumerate(points, start=1):
            if not math.isnan(y):
                frame.canvas.marker(x, y, s.slot, hint=f"{s.label}, task {t}: {percent(s.mean[t - 1], 2)} %")
    frame.label_ends(series)
    ends = "; ".join(f"{s.label} {percent(s.mean[-1])}" for s in series if np.isfinite(s.mean[-1]))
    return frame.canvas.finish(name, title, f"Accuracy in percent after the last task: {ends}.")


def forgetting_bars(series: Sequence[Series], *, name: str, title: str) -> str:
    """Forgetting of each task: one strip of bars per method, all on one scale, the spread over seeds as a whisker."""
    known = known_values(series)
    lowest = min(float(known.min()), 0.0)
    y_ticks = [t for t in ticks(lowest, max(float(known.max()), 0.05), 3) if t >= lowest]
    n_tasks = max(int(np.flatnonzero(np.isfinite(s.mean))[-1]) + 1 for s in series)
    left, width, strip, head = 62, 720, 96, 26
    canvas = Canvas(width, len(series) * (strip + head) + 44)
    step = (width - left - 16) / n_tasks
    for i, s in enumerate(series):
        top = i * (strip + head) + head
        place = linear(lowest, y_ticks[-1], top + strip, top)
        canvas.marker(left + 6, top - 13, s.slot)
        canvas.text(left + 16, top - 9, shorten(s.label, width - left - 40), bold=True, hint=s.label)
        for tick in y_ticks:
            canvas.line(left, place(tick), width - 16, place(tick), 0.5 if tick == 0 else 0.15)
            canvas.text(left - 8, place(tick) + 4, percent_y(tick), size=11, anchor="end")
        for t, value in enumerate(s.mean[:n_tasks]):
            if not np.isfinite(value):
                continue
            x, y = left + (t + 0.5) * step, place(value)
            bar = min(0.6 * step, 46)
            hint = f"{s.label}, task {t + 1}: {percent(value, 2)} points forgotten"
            canvas.rect(x - bar / 2, min(y, place(0)), bar, abs(y - place(0)), colour(s.slot), hint=hint)
            if s.low is not None and s.high is not None and np.isfinite(s.high[t]):
                canvas.line(x, place(s.low[t]), x, place(s.high[t]))
    bottom = canvas.height - 44
    for t in range(0, n_tasks, math.ceil(n_tasks / 20)):
        canvas.text(left + (t + 0.5) * step, bottom + 18, str(t + 1), size=11, anchor="middle")
    canvas.text(left + (width - left - 16) / 2, bottom + 36, "task", anchor="middle")
    canvas.text(14, bottom / 2 + 8, "forgetting (percentage points)", anchor="middle", turned=True)
    means = [(s.label, s.mean[np.isfinite(s.mean)]) for s in series]
    worst = "; ".join(f"{label} {percent(v.max())}" for label, v in means if len(v))
    return canvas.finish(name, title, f"Most forgotten task, in percentage points: {worst}.")


def loss_lines(
    terms: Sequence[Series], steps: Array, starts: Sequence[tuple[int, float]], *, name: str, title: str
) -> str:
    """Loss terms over optimiser steps [n]; logarithmic when all are positive and span more than a factor of 50.

    ``starts``: each task, counted from 0, and the step at which it begins; lines are interrupted there.
    """
    known = np.concatenate([s.mean[np.isfinite(s.mean)] for s in terms])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    log = low > 0 and high / low > 50
    drawn = [Series(s.label, s.slot, np.log10(s.mean) if log else s.mean) for s in terms]
    if log:
        y_ticks = [float(p) for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    else:
        y_ticks = ticks(min(low, 0.0) if low < 0.3 * high else low, high)
    axis = "loss (log scale)" if log else "loss"
    written = (lambda v: f"{10**v:g}") if log else (lambda v: f"{v:g}")
    first, last = (float(steps[0]), float(steps[-1])) if len(steps) else (0.0, 1.0)
    x_range = (min([first, *(s for _, s in starts)]), max(last, first + 1))
    frame = axes(drawn, y_ticks, x_range, axis, "optimiser step", written, 200.0)
    free = -math.inf
    for task, start in starts if len(starts) > 1 else []:
        x, label = frame.x(start), str(task + 1) if free > 0 else f"task {task + 1}"
        frame.canvas.line(x, frame.top, x, frame.bottom, 0.3, "3 3")
        if x >= free:
            frame.canvas.text(x + 2, frame.top - 6, label, size=11)
            free = x + text_width(label, 11) + 5
    for tick in ticks(*x_range, 6):
        if x_range[0] <= tick <= x_range[1]:
            frame.canvas.text(frame.x(tick), frame.bottom + 18, f"{tick:g}", size=11, anchor="middle")
    for s in drawn:
        points = [(x, frame.y(v)) for x, v in zip(steps, s.mean)] + [(x, math.nan) for _, x in starts]
        points.sort(key=lambda p: (p[0], math.isnan(p[1])))
        frame.canvas.curve([(frame.x(x), y) for x, y in points], s.slot, width=1.5)
        gaps = [True, *(math.isnan(y) for _, y in points), True]
        for i, (x, y) in enumerate(points):
            if gaps[i] and gaps[i + 2] and not gaps[i + 1]:  # alone between gaps, so no line shows it
                frame.canvas.marker(frame.x(x), y, s.slot, size=2.8)
    frame.label_ends(drawn)
    ends = "; ".join(f"{s.label} {last_known(s.mean):.4g}" for s in terms)
    return frame.canvas.finish(name, title, f"Last value of each term: {ends}.")


def bars(
    labels: Sequence[str],
    parts: Sequence[tuple[str, Array]],
    written: Callable[[float], str],
    *,
    name: str,
    title: str,
) -> str:
    """One horizontal bar per label, stacked from named parts [n labels]; ``written`` turns the total into text."""
    left, width, row = min(max(text_width(label) for label in labels) + 20, 280), 720, 26
    top = 30 if len(parts) > 1 else 8
    canvas = Canvas(width, top + row * len(labels) + 6)
    totals = np.sum([np.nan_to_num(values) for _, values in parts], axis=0)
    longest = max(text_width(written(float(t))) for t in totals)
    place = linear(0, float(totals.max()) or 1.0, left, width - longest - 20)
    x = float(left)
    for slot, (part, _) in enumerate(parts if len(parts) > 1 else []):
        canvas.rect(x, 6, 12, 12, colour(slot))
        canvas.text(x + 17, 16, part)
        x += 40 + text_width(part)
    for i, label in enumerate(labels):
        y, start = top + i * row, 0.0
        canvas.text(left - 10, y + 16, shorten(label, left - 16), anchor="end", hint=label)
        for slot, (part, values) in enumerate(parts):
            end = start + float(np.nan_to_num(values[i]))
            hint = f"{label}, {part}: {written(end - start)}"
            canvas.rect(place(start), y + 3, place(end) - place(start), row - 8, colour(slot), hint=hint)
            start = end
        measured = any(np.isfinite(values[i]) for _, values in parts)
        canvas.text(place(start) + 7, y + 16, written(start) if measured else "not measured")
    listed = "; ".join(f"{label} {written(float(t))}" for label, t in zip(labels, totals))
    return canvas.finish(name, title, f"{listed}.")


def percent_y(value: float) -> str:
    """An axis tick in percent.

    >>> percent_y(0.25), percent_y(0.125)
    ('25', '12.5')
    """
    return f"{100 * value:.10g}"
