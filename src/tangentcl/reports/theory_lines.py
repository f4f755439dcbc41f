"""Quantities of the theory report over tasks, and risk over the strength of the ridge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ..records.theory import TaskTheory
from .axes import Series
from .theory_figures import over_tasks, risk_lines
from .theory_text import light, lowest, value

Array = npt.NDArray[np.float64]
CURVES = 8  # tasks whose risk curves are drawn
LIMITS = ((0.25, "✓ below"), (0.6, "✗ above"))  # of the light, `tangentcl.theory.Laziness`
LEAST = 1e-3
FIRST, SECOND, THIRD = 0, 1, 2  # slots

GAUGES = "Validity (Q9): relative changes of kernels and relative error of the linearisation; ✓ up to 0.25, ✗ above 0.6"
DIMENSIONS = "Effective dimension and participation ratio (Q8)"
RADII = "Capacity radius (Q5): how far a task moves parameters"
SPACE = "Share of a task's features in the space of past tasks (Q12), around their mean"
ANGLES = "Principal angles (Q4) with the past task that is nearest, around the means"
STALE = "Staleness of class means (Q11): lowest cosine with where they were stored"
WORTH = "What all views of a sample together are worth (Q10)"
MOVES = "Relative move of what trains, and what weight decay leaves of an anchor (Q13)"
CERTIFICATE = "PAC-Bayes certificate (Q15): error of the classifier with noise; above 1 it says nothing"
RISK = "Risk on new samples (Q7) over the strength of the ridge, leave-one-out"

Figure = tuple[str, Markup]


def lines(prefix: str, made: Sequence[TaskTheory]) -> list[Figure]:
    """Gauges of validity, dimensions and radii: (caption, figure)."""
    gauges = [
        _series("features' kernel", FIRST, made, "after", "laziness", "feature_change"),
        _series("tangent kernel", SECOND, made, "after", "laziness", "tangent_change"),
        _series("linearisation", THIRD, made, "after", "laziness", "linearisation_error"),
    ]
    dimensions = [
        _series("effective, before", FIRST, made, "before", "dimension", "effective"),
        _series("effective, after", SECOND, made, "after", "dimension", "effective"),
        _series("participation, after", THIRD, made, "after", "dimension", "participation"),
    ]
    radii = [
        _series("ridge, predicted", FIRST, made, "before", "radius"),
        _series("head", SECOND, made, "after", "radius", "head"),
        _series("all that trains", THIRD, made, "after", "radius", "all"),
    ]
    drawn = [(DIMENSIONS, "directions", dimensions), (RADII, "radius", radii)]
    return [*_gauges(f"{prefix}g", made, gauges), *_figures(f"{prefix}l", made, drawn)]


def more(prefix: str, made: Sequence[TaskTheory]) -> list[Figure]:
    """Risk curves, old space, angles, staleness, views, moves and certificates: (caption, figure)."""
    space = [
        _series("before", FIRST, made, "before", "old_energy", "energy"),
        _series("after", SECOND, made, "after", "old_energy", "energy"),
    ]
    angles = [
        Series("largest cosine", FIRST, _cosines(made, max)),
        Series("mean square", SECOND, _cosines(made, lambda c: float(np.mean(np.square(c))))),
    ]
    stale = [
        Series(label, slot, _array([lowest(t.after, which) for t in made]))
        for label, slot, which in (("old, predicted", FIRST, "old"), ("own classes", SECOND, "own"))
    ]
    worth = [_series("all views", FIRST, made, "before", "views", "times")]
    moves = [
        _series("relative move", FIRST, made, "after", "move"),
        _series("kept of the anchor", SECOND, made, "after", "anchor", "efficiency"),
    ]
    certificate = [
        _series("bound on new samples", FIRST, made, "after", "certificate", "bound"),
        _series("on learned samples", SECOND, made, "after", "certificate", "error"),
    ]
    drawn = [
        (SPACE, "share", space),
        (ANGLES, "cosine", angles),
        (STALE, "cosine", stale),
        (WORTH, "samples", worth),
        (MOVES, "share", moves),
        (CERTIFICATE, "error", certificate),
    ]
    return [*_risk(f"{prefix}r", made), *_figures(f"{prefix}o", made, drawn)]


def _gauges(name: str, made: Sequence[TaskTheory], gauges: Sequence[Series]) -> list[Figure]:
    """With the limits of the light; logarithmic, and not below a thousandth, where one is far above them."""
    known = [s for s in gauges if np.isfinite(s.mean).any()]
    if not known:
        return []
    log = max(float(np.nanmax(s.mean)) for s in known) > 3.0
    drawn = [Series(s.label, s.slot, np.maximum(s.mean, LEAST)) for s in known] if log else known
    svg = over_tasks(
        drawn, [light(t) for t in made], "relative change", name=name, title=GAUGES, log=log, limits=LIMITS
    )
    return [(GAUGES, Markup(svg))]


def _risk(name: str, made: Sequence[TaskTheory]) -> list[Figure]:
    curves = []
    for i, t in enumerate(made):
        risk = (t.before or {})["risk"]
        ridges, loo = (_array(risk[key]) for key in ("ridges", "loo"))
        if (np.isfinite(loo) & (loo > 0)).any():
            curves.append((f"task {t.task + 1} {light(t).split(' ')[0]}", i, ridges, loo))
    if not curves:
        return []
    caption = RISK + (f"; the first {CURVES} tasks" if len(curves) > CURVES else "")
    return [(caption, Markup(risk_lines(curves[:CURVES], name=name, title=caption)))]


def _series(label: str, slot: int, made: Sequence[TaskTheory], when: str, *path: str) -> Series:
    return Series(label, slot, _array([value(t.before if when == "before" else t.after, *path) for t in made]))


def _array(numbers: Sequence[float | None]) -> Array:
    return np.array([np.nan if v is None else v for v in numbers], dtype=float)


def _cosines(made: Sequence[TaskTheory], of: Callable[[Sequence[float]], float]) -> Array:
    """A number made of the cosines with each past task; the largest over past tasks, [T]."""
    found: list[float | None] = []
    for t in made:
        rows = [row["cosines"] for row in (t.after or {}).get("past") or () if row.get("cosines")]
        found.append(max((of(c) for c in rows), default=None))
    return _array(found)


def _figures(
    prefix: str, made: Sequence[TaskTheory], drawn: Sequence[tuple[str, str, Sequence[Series]]]
) -> list[Figure]:
    """Figures of those series that are known somewhere; logarithmic where they span more than a factor of 50."""
    found = []
    for i, (caption, y_name, series) in enumerate(drawn):
        known = [s for s in series if np.isfinite(s.mean).any()]
        if not known:
            continue
        numbers = np.concatenate([s.mean[np.isfinite(s.mean)] for s in known])
        log = bool(numbers.min() > 0 and numbers.max() > 50 * numbers.min())
        lights = [light(t) for t in made]
        svg = over_tasks(known, lights, y_name, name=f"{prefix}{i}", title=caption, log=log)
        found.append((caption, Markup(svg)))
    return found
