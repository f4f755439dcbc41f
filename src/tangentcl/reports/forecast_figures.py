"""The figures of forecast and truth, each from plain arrays to one SVG element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axes import Series, axes, linear
from .figures import percent, percent_y
from .forecast_parts import ClassChange, Energy
from .svg import Canvas, shorten, ticks

Array = npt.NDArray[np.float64]
NOW, PREDICTED, REAL = 5, 0, 1  # slots: grey, blue circle, orange square
MARKS = (0.90, 0.95, 0.99)
FAINTEST = 1e-5  # share of the energy below which a mode is not drawn
DRAWN_RANKS = 240


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot; ``slot`` picks colour and shape."""

    x: float
    y: float
    slot: int
    hint: str


def scatter(
    dots: Sequence[Dot],
    *,
    x_name: str,
    y_name: str,
    heading: str,
    name: str,
    title: str,
    description: str,
    log: bool = False,
    size: float = 2.6,
) -> str:
    """Points on two equal axes with the diagonal, on which a forecast that is right lies.

    Points that are not finite, or not positive on logarithmic axes, are left out.
    """
    placed = _placed(dots, log)
    steps = _equal_ticks([v for x, y, _ in placed for v in (x, y)], log)
    left, top, side = 62.0, 30.0, 236.0
    right, bottom = left + side, top + side
    canvas = Canvas(right + 18, bottom + 46)
    x, y = linear(steps[0], steps[-1], left, right), linear(steps[0], steps[-1], bottom, top)
    canvas.text(left, 16, shorten(heading, side + 10, 13.5), bold=True, hint=heading)
    for step in steps:
        opacity = 0.45 if step == 0 and not log else 0.13
        written = f"{10**step:g}" if log else f"{step:g}"
        canvas.line(left, y(step), right, y(step), opacity)
        canvas.line(x(step), top, x(step), bottom, opacity)
        canvas.text(left - 6, y(step) + 4, written, size=11, anchor="end")
        canvas.text(x(step), bottom + 16, written, size=11, anchor="middle")
    canvas.line(left, bottom, right, top, 0.6, "5 4")
    for px, py, dot in placed:
        canvas.marker(x(px), y(py), dot.slot, size=size, hint=dot.hint)
    canvas.text(left + side / 2, bottom + 36, x_name, anchor="middle")
    canvas.text(13, top + side / 2, y_name, anchor="middle", turned=True)
    return canvas.finish(name, title, description, scale=False)


def _placed(dots: Sequence[Dot], log: bool) -> list[tuple[float, float, Dot]]:
    if log:
        positive = [d for d in dots if d.x > 0 and d.y > 0]
        return [(math.log10(d.x), math.log10(d.y), d) for d in positive if math.isfinite(d.x + d.y)]
    return [(d.x, d.y, d) for d in dots if math.isfinite(d.x + d.y)]


def _equal_ticks(values: Sequence[float], log: bool) -> list[float]:
    """Ticks from at most the smallest to at least the largest value; powers of ten on logarithmic axes."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if not log:
        apart = high - low > 1e-6 * max(abs(low), abs(high))
        around = 0.0 if apart else abs(low) / 2 or 1.0
        return ticks(low - around, high + around, 4)
    first, last = math.floor(low), math.ceil(high)
    every = math.ceil(max(last - first, 1) / 6)
    return [float(first + i * every) for i in range(math.ceil(max(last - first, 1) / every) + 1)]


def class_dots(classes: Sequence[ClassChange], *, heading: str, name: str, title: str) -> str:
    """A row per class: a bar where its accuracy is now, a circle where it is predicted, a square where it ended."""
    row, top, left = 20.0, 30.0, 140.0
    side = 200.0
    canvas = Canvas(left + side + 16, top + row * len(classes) + 44)
    x = linear(0, 1, left, left + side)
    bottom = top + row * len(classes)
    canvas.text(8, 16, shorten(heading, canvas.width - 16, 13.5), bold=True, hint=heading)
    for step in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(x(step), top, x(step), bottom, 0.13)
        canvas.text(x(step), bottom + 16, percent(step, 0), size=11, anchor="middle")
    for i, c in enumerate(classes):
        y = top + (i + 0.5) * row
        real = "not trained yet" if c.real is None else f"real {percent(c.real)} %"
        hint = f"{c.name}: {percent(c.now)} % now, predicted {percent(c.predicted)} %, {real}, of {c.n} samples"
        canvas.text(left - 10, y + 4, shorten(c.name, left - 16), anchor="end", hint=hint)
        known = [v for v in (c.now, c.predicted, c.real) if v is not None]
        canvas.line(x(min(known)), y, x(max(known)), y, 0.35)
        canvas.rect(x(c.now) - 1.5, y - 7, 3, 14, "currentColor", hint=hint)
        canvas.marker(x(c.predicted), y, PREDICTED, size=5, hint=hint)
        if c.real is not None:
            canvas.marker(x(c.real), y, REAL, size=3, hint=hint)
    canvas.text(left + side / 2, bottom + 36, "accuracy on the class (%)", anchor="middle")
    listed = "; ".join(
        f"{c.name} {percent(c.now)} now, {percent(c.predicted)} predicted"
        + ("" if c.real is None else f", {percent(c.real)} real")
        for c in classes[:5]
    )
    return canvas.finish(name, title, f"Worst first, in percent: {listed}.", scale=False)


def energy_by_eigenvalue(found: Sequence[Energy], *, name: str, title: str) -> str:
    """Share of the drift's energy in each eigenspace over its rank by eigenvalue, both logarithmic; a line per task.

    Beyond `DRAWN_RANKS` eigenspaces neighbouring ranks are averaged.
    """
    averaged = [_averaged(e.shares) for e in found]
    values = [np.log10(np.where(v >= FAINTEST, v, np.nan)) for _, v in averaged]
    drawn = [Series(_label(e), i, v) for i, (e, v) in enumerate(zip(found, values))]
    lowest = min((float(v) for line in values for v in line if np.isfinite(v)), default=-1.0)
    y_ticks = [float(p) for p in range(min(math.floor(lowest + 1e-9), -1), 1)]
    frame = axes(
        drawn, y_ticks, _decades(found), "share of the drift's energy (%)", "eigenspace by eigenvalue", _percent_power
    )
    _rank_ticks(frame.canvas, frame.x, frame.bottom, found)
    for s, (ranks, _) in zip(drawn, averaged):
        points = [(frame.x(math.log10(r)), frame.y(v)) for r, v in zip(ranks, s.mean)]
        frame.canvas.curve(points, s.slot, width=1.4)
        for (px, py), r, v in list(zip(points, ranks, s.mean))[:12]:
            if math.isfinite(py):
                frame.canvas.marker(px, py, s.slot, size=2.8, hint=f"{s.label}, mode {r:g}: {100 * 10**v:.3g} %")
    frame.label_ends(drawn)
    most = "; ".join(
        f"{e.name}: {percent(float(e.shares.max()))} % in mode {int(e.shares.argmax()) + 1}" for e in found
    )
    return frame.canvas.finish(name, title, f"The mode that holds most, by rank of its eigenvalue. {most}.")


def energy_cumulative(found: Sequence[Energy], *, name: str, title: str) -> str:
    """Share of the energy in the eigenspaces that hold the most, over their number; marks at 90, 95 and 99 %."""
    ranks = [_some_ranks(len(e.shares)) for e in found]
    drawn = [Series(_label(e), i, e.cumulative[r - 1].round(6)) for i, (e, r) in enumerate(zip(found, ranks))]
    y_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    what = "share of the drift's energy (%)"
    frame = axes(drawn, y_ticks, _decades(found), what, "eigenspaces, most energy first", percent_y)
    _rank_ticks(frame.canvas, frame.x, frame.bottom, found)
    for share in MARKS:
        frame.canvas.line(frame.left, frame.y(share), frame.right, frame.y(share), 0.4, "3 3")
        frame.canvas.text(frame.right - 3, frame.y(share) + 11, f"{100 * share:g} %", size=10, anchor="end")
    for s, e, r in zip(drawn, found, ranks):
        frame.canvas.curve([(frame.x(math.log10(k)), frame.y(v)) for k, v in zip(r, s.mean)], s.slot, width=1.8)
        if len(r) == 1:
            frame.canvas.marker(frame.x(0), frame.y(s.mean[0]), s.slot)
        for share in MARKS:
            k = e.rank(share)
            if k is not None:
                hint = f"{s.label}: {100 * share:g} % of the energy in {k} of {len(e.shares)} eigenspaces"
                frame.canvas.marker(frame.x(math.log10(k)), frame.y(e.cumulative[k - 1]), s.slot, size=4, hint=hint)
    frame.label_ends(drawn)
    counts = "; ".join(f"{e.name}: {', '.join(_count(e, share) for share in MARKS)}" for e in found)
    return frame.canvas.finish(name, title, f"Eigenspaces that hold 90, 95 and 99 % of the energy. {counts}.")


def _count(e: Energy, share: float) -> str:
    k = e.rank(share)
    return "not reached" if k is None else str(k)


def _label(e: Energy) -> str:
    return f"before task {e.task + 1}"


def _some_ranks(m: int) -> npt.NDArray[np.int64]:
    """Ranks 1 to m, or about `DRAWN_RANKS` of them that are evenly spread on a logarithmic axis."""
    if m <= DRAWN_RANKS:
        return np.arange(1, m + 1)
    return np.unique(np.geomspace(1, m, DRAWN_RANKS).round().astype(np.int64))


def _averaged(shares: Array) -> tuple[Array, Array]:
    """Ranks and shares, means over neighbours where there are too many to draw."""
    starts = _some_ranks(len(shares)) - 1
    counts = np.diff([*starts, len(shares)])
    return starts + 1 + (counts - 1) / 2, np.add.reduceat(shares, starts) / counts


def _decades(found: Sequence[Energy]) -> tuple[float, float]:
    return 0.0, math.log10(max(2, *(len(e.shares) for e in found)))


def _rank_ticks(canvas: Canvas, x: Callable[[float], float], bottom: float, found: Sequence[Energy]) -> None:
    most = max(2, *(len(e.shares) for e in found))
    for rank in (step * 10**power for power in range(math.floor(math.log10(most)) + 1) for step in (1, 2, 5)):
        if rank <= most:
            canvas.text(x(math.log10(rank)), bottom + 18, str(rank), size=11, anchor="middle")


def _percent_power(power: float) -> str:
    return f"{100 * 10**power:g}"


def accuracy_calibration(
    tasks: Sequence[int],
    now: Array,
    predicted: Array,
    real: Array,
    low: Array,
    high: Array,
    *,
    name: str,
    title: str,
) -> str:
    """Old accuracy before each task, as predicted after it and as it came, [k] each; NaN where not known.

    Args:
        tasks: number of each task, from 1.
        low, high: band calibrated on earlier tasks, drawn as a whisker at the prediction.
    """
    series = [Series("before the task", NOW, now), Series("predicted", PREDICTED, predicted)]
    if np.isfinite(real).any():
        series.append(Series("real", REAL, real))
    known = np.concatenate([now, predicted, real, low, high])
    known = known[np.isfinite(known)]
    y_ticks = [t for t in ticks(float(known.min()), float(known.max())) if -1e-9 <= t <= 1 + 1e-9]
    if len(y_ticks) < 2:
        y_ticks = [0.0, 0.5, 1.0]
    span = (min(tasks), max(*tasks, min(tasks) + 1))
    frame = axes(
        series, y_ticks, span, "accuracy on old samples (%)", "task learned", lambda v: f"{100 * v:.10g}", 220.0
    )
    for i in range(0, len(tasks), math.ceil(len(tasks) / 20)):
        frame.canvas.text(frame.x(tasks[i]), frame.bottom + 18, str(tasks[i]), size=11, anchor="middle")
    for t, a, b in zip(tasks, low, high):
        if np.isfinite(a) and np.isfinite(b):
            place = frame.x(t)
            frame.canvas.line(place, frame.y(a), place, frame.y(b), 0.7)
            for end in (a, b):
                frame.canvas.line(place - 5, frame.y(end), place + 5, frame.y(end), 0.7)
    for s, dot in zip(series, (3.0, 5.5, 3.0)):
        places = [(frame.x(t), frame.y(v)) for t, v in zip(tasks, s.mean)]
        frame.canvas.curve(places, s.slot, width=1.4)
        for (px, py), t, v in zip(places, tasks, s.mean):
            if math.isfinite(py):
                frame.canvas.marker(px, py, s.slot, size=dot, hint=f"{s.label}, task {t}: {percent(v, 2)} %")
    frame.label_ends(series)
    listed = "; ".join(
        f"task {t}: {percent(p)} predicted" + (f", {percent(r)} real" if np.isfinite(r) else ", not trained yet")
        for t, p, r in zip(tasks, predicted, real)
    )
    return frame.canvas.finish(name, title, f"Old accuracy in percent. {listed}.")
