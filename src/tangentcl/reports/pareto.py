"""Accuracy on old tasks against accuracy on new ones: who is on the front, and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import linear
from .figures import percent
from .paired import Interval
from .svg import Canvas, shorten, ticks


@dataclass(frozen=True)
class Place:
    """A method's accuracy on old and on new tasks: fractions, mean and interval over seeds."""

    label: str
    old: Interval
    new: Interval


def front(places: Sequence[Place]) -> list[int]:
    """Numbers of the places that none beats: by mean, at least as good on both and better on one; best old ones first.

    >>> def at(old, new): return Place("", Interval(old, None, None, 1), Interval(new, None, None, 1))
    >>> front([at(0.9, 0.5), at(0.8, 0.8), at(0.7, 0.8), at(0.2, 0.9)])
    [0, 1, 3]
    """
    found = [i for i, p in enumerate(places) if not any(_beats(q, p) for q in places)]
    return sorted(found, key=lambda i: -places[i].old.mean)


def front_within_intervals(places: Sequence[Place]) -> list[int]:
    """Those and the ones that seeds do not tell from the front.

    A place is off it only if another beats it by mean and lies above it on old or on new accuracy with intervals that
    do not meet. With one seed there are no intervals, and means decide.
    """
    return [i for i, p in enumerate(places) if not any(_beats(q, p) and _apart(q, p) for q in places)]


def _beats(q: Place, p: Place) -> bool:
    return (
        q.old.mean >= p.old.mean and q.new.mean >= p.new.mean and (q.old.mean, q.new.mean) != (p.old.mean, p.new.mean)
    )


def _apart(q: Place, p: Place) -> bool:
    return any(_low(a) > _high(b) for a, b in ((q.old, p.old), (q.new, p.new)))


def _low(interval: Interval) -> float:
    return interval.mean if interval.low is None else interval.low


def _high(interval: Interval) -> float:
    return interval.mean if interval.high is None else interval.high


def pareto_figure(places: Sequence[Place], *, name: str, title: str) -> str:
    """New accuracy over old accuracy of every method in per cent, intervals as crosses, the front as a line, as SVG.

    Args:
        places: at least one. name: unique on the page. title: of the figure.
    """
    old = [100 * edge for p in places for edge in (_low(p.old), _high(p.old))]
    new = [100 * edge for p in places for edge in (_low(p.new), _high(p.new))]
    across, up = (ticks(max(0.0, min(v)), min(100.0, max(v))) for v in (old, new))
    bottom = max(404.0, 24.0 + 17 * len(places))
    canvas = Canvas(900, bottom + 56)
    x, y = linear(across[0], across[-1], 72, 560), linear(up[0], up[-1], bottom, 24)
    for tick in up:
        canvas.line(66, y(tick), 566, y(tick), 0.15)
        canvas.text(58, y(tick) + 4, f"{tick:g}", size=11, anchor="end")
    for tick in across:
        canvas.text(x(tick), bottom + 18, f"{tick:g}", size=11, anchor="middle")
    canvas.line(66, bottom, 566, bottom, 0.6)
    canvas.text(316, bottom + 42, "accuracy on old tasks after the last one (%)", anchor="middle")
    canvas.text(16, bottom / 2, "accuracy on new tasks when learned (%)", anchor="middle", turned=True)
    best = front(places)
    canvas.curve([(x(100 * places[i].old.mean), y(100 * places[i].new.mean)) for i in best], 5, width=1.2)
    for slot, p in enumerate(places):
        at = x(100 * p.old.mean), y(100 * p.new.mean)
        low, high = ([min(max(100 * f(i), 0.0), 100.0) for i in (p.old, p.new)] for f in (_low, _high))
        canvas.line(x(low[0]), at[1], x(high[0]), at[1], 0.35)
        canvas.line(at[0], y(low[1]), at[0], y(high[1]), 0.35)
        hint = f"{p.label}: old {percent(p.old.mean)}, new {percent(p.new.mean)} %"
        canvas.marker(*at, slot, size=5.0 if slot in best else 3.6, hint=hint)
    order = sorted(range(len(places)), key=lambda i: (-places[i].old.mean, i))
    for line, i in enumerate(order):
        height = 30.0 + 17 * line
        canvas.marker(588, height, i)
        label = shorten(places[i].label + (" (front)" if i in best else ""), 292)
        canvas.text(598, height + 4, label, bold=i in best, hint=places[i].label)
    listed = "; ".join(f"{places[i].label} {percent(places[i].old.mean)} / {percent(places[i].new.mean)}" for i in best)
    return canvas.finish(name, title, f"On the front, old and new accuracy in percent: {listed}.")
