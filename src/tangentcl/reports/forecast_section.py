"""The section "Forecast and truth" of a page: tables, sentences and figures, ready for the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..records.forecasts import TaskForecast
from . import forecast_figures as figures
from .forecast_figures import Dot
from .forecast_parts import Points, class_changes, energy, points
from .forecasts import Run, beliefs, forgotten, overview, refusals, table, trust_level, value
from .svg import legend_mark

CLASSES = 20
CLASS_MARKS = ((figures.PREDICTED, "predicted"), (figures.REAL, "real"))
LINES = ((figures.NOW, "before the task"), *CLASS_MARKS)
POINTS_IN_PANEL = (100, 400)
POINTS_IN_FIGURE = 2400


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of one method on one stream: its runs, those with the lowest seed first."""

    label: str
    slot: int
    runs: Sequence[Run]


def section(prefix: str, methods: Sequence[Forecasts], unreadable: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Everything the template shows of these methods' forecasts; those with nothing but refusals come last.

    Args:
        prefix: keeps ids on the page apart.
        unreadable: folders whose forecasts are damaged, and why.
    """
    shown = [m for m in methods if any(run.forecasts for run in m.runs)]
    shown.sort(key=lambda m: not any(run.made for run in m.runs))
    return {
        "methods": [_method(f"{prefix}-f{m.slot}", m) for m in shown],
        "legend": _marks((m.slot, m.label) for m in shown if any(run.made for run in m.runs)),
        "forgetting": _forgetting(f"{prefix}-fp", shown),
        "gap": _gap(f"{prefix}-fg", shown),
        "unreadable": list(unreadable),
    }


def _method(prefix: str, method: Forecasts) -> dict[str, Any]:
    first = next((run for run in method.runs if run.made), method.runs[0])
    made, several = first.made, len(method.runs) > 1
    seen = f", seed {first.seed}" if several else ""
    return {
        "label": method.label,
        "seeds": [run.seed for run in method.runs],
        "figures_of": f"seed {first.seed}" if several else "",
        "overview": overview(method.runs),
        "table": table(method.runs) if made else None,
        "beliefs": beliefs(made),
        "refusals": refusals(method.runs),
        "calibration": _calibration(f"{prefix}-cal", made, f"Old accuracy, {method.label}{seen}"),
        **_samples(f"{prefix}-s", made, f"{method.label}{seen}"),
        "class_marks": _marks(CLASS_MARKS),
        "line_marks": _marks(LINES),
        "classes": _classes(f"{prefix}-c", made, f"{method.label}{seen}"),
        **_energies(f"{prefix}-e", made, f"{method.label}{seen}"),
        "modes": [m for f in made for m in _modes(f)],
        "risk": [(_heading(f), rows) for f in made if (rows := _at_risk(f))],
    }


def _marks(slots: Iterable[tuple[int, str]]) -> list[tuple[Markup, str]]:
    return [(Markup(legend_mark(slot)), text) for slot, text in slots]


def _heading(f: TaskForecast) -> str:
    return f"before task {f.task + 1}: {f.name}"


def _calibration(name: str, made: Sequence[TaskForecast], title: str) -> Markup | None:
    """Old accuracy over tasks; None for a single task, whose numbers are in the table."""
    known = [f for f in made if value(f, "accuracy", "predicted") is not None]
    if len(known) < 2:
        return None
    columns = {
        key: np.array([np.nan if (v := value(f, "accuracy", key)) is None else v for f in known])
        for key in ("now", "predicted", "real", "low", "high")
    }
    tasks = [f.task + 1 for f in known]
    return Markup(figures.accuracy_calibration(tasks, **columns, name=name, title=title))


def _samples(prefix: str, made: Sequence[TaskForecast], label: str) -> dict[str, Any]:
    """Panels of margins and of sizes of the drift, one per task that has its truth, and what the colours mean."""
    fewest, most = POINTS_IN_PANEL
    limit = min(max(POINTS_IN_FIGURE // max(len(made), 1), fewest), most)
    found = [(f, p) for f in made if (p := points(f, limit)) is not None]
    past = {int(t["task"]): str(t["name"]) for f, _ in found for t in f.summary.get("tasks") or ()}
    drawn = sorted({int(t) for _, p in found for t in p.tasks})
    with_margin = [(f, p) for f, p in found if np.isfinite(p.margin).any()]
    cut = [p for _, p in found if len(p.position) < p.n]
    return {
        "margins": [_panel(f"{prefix}m{f.task}", f, p, label, margin=True) for f, p in with_margin],
        "sizes": [_panel(f"{prefix}d{f.task}", f, p, label, margin=False) for f, p in found],
        "past": _marks((t, f"{t + 1}: {past.get(t, '')}".rstrip(": ")) for t in drawn),
        "drawn": f"At most {limit} samples per panel, drawn at random (seed 0), of up to {max(p.n for p in cut):,}."
        if cut
        else "",
    }


def _panel(name: str, f: TaskForecast, p: Points, label: str, *, margin: bool) -> Markup:
    predicted, real = p.margin if margin else p.rms
    classes = {int(c["class"]): str(c["name"]) for c in f.summary.get("classes") or ()}
    dots = [
        Dot(float(a), float(b), int(task), f"sample {i}, class {classes.get(int(y), y)}, task {task + 1}")
        for a, b, i, y, task in zip(predicted, real, p.position, p.labels, p.tasks)
    ]
    what = "change of margin" if margin else "size of drift"
    agreement = value(f, "quality", "spearman")
    said = f"{len(dots)} old samples. " + ("" if agreement is None else f"Spearman of the sizes {agreement:.3f}. ")
    svg = figures.scatter(
        dots,
        x_name=f"predicted {what}",
        y_name=f"real {what}",
        heading=_heading(f),
        name=name,
        title=f"Real against predicted {what}, {label}, {_heading(f)}",
        description=f"{said}Trust: {trust_level(f)}.",
    )
    return Markup(svg)


def _classes(prefix: str, made: Sequence[TaskForecast], label: str) -> list[tuple[Markup, str]]:
    """A panel per task and how many classes it leaves out."""
    panels = []
    for f in made:
        changes = class_changes(f)
        if not changes:
            continue
        svg = figures.class_dots(
            changes[:CLASSES],
            heading=_heading(f),
            name=f"{prefix}{f.task}",
            title=f"Accuracy per class, {label}, {_heading(f)}",
        )
        rest = changes[CLASSES:]
        more = ""
        if rest:
            more = f"{len(rest)} more class{'es' if len(rest) > 1 else ''}, each losing at most "
            more += f"{100 * max(rest[0].loss, 0):.1f} points, predicted and real"
        panels.append((Markup(svg), more))
    return panels


def _energies(prefix: str, made: Sequence[TaskForecast], label: str) -> dict[str, Any]:
    found = [e for f in made if (e := energy(f)) is not None]
    outside = [(e.task + 1, e.outside) for e in found if e.outside > 0.005]
    if not found:
        return {"energy": None, "cumulative": None, "outside": [], "energy_marks": []}
    return {
        "energy": Markup(
            figures.energy_by_eigenvalue(found, name=f"{prefix}v", title=f"Energy of the predicted drift, {label}")
        ),
        "cumulative": Markup(
            figures.energy_cumulative(found, name=f"{prefix}c", title=f"Cumulative energy of the drift, {label}")
        ),
        "energy_marks": _marks((i, f"before task {e.task + 1}") for i, e in enumerate(found)),
        "outside": [f"task {task}: {100 * share:.1f} %" for task, share in outside],
    }


def _modes(f: TaskForecast) -> list[tuple[str, str, str, str, str]]:
    """The modes that hold most: task, share of the drift, eigenvalue, classes and samples they load on."""
    table = f.summary.get("modes") or {}
    return [
        (
            f"{f.task + 1}: {f.name}",
            f"{100 * mode['share']:.3g} %",
            f"{mode['eigenvalue']:,.0f}" if mode["eigenvalue"] >= 1000 else f"{mode['eigenvalue']:.4g}",
            ", ".join(f"{c['name']} ({100 * c['share']:.0f} %)" for c in mode.get("classes") or ()) or "–",
            ", ".join(f"{s['id']} ({s['name']})" for s in mode.get("samples") or ()) or "–",
        )
        for mode in table.get("top") or ()
    ]


def _at_risk(f: TaskForecast) -> list[tuple[str, str, str, str, str]]:
    """The samples most at risk: id, class, margins now, predicted and real."""

    def margin(row: Any, name: str) -> str:
        number = row.get(name)
        return "–" if number is None else f"{number:+.3g}"

    return [
        (
            str(row["id"]),
            str(row["name"]),
            margin(row, "margin_now"),
            margin(row, "margin_predicted"),
            margin(row, "margin_real"),
        )
        for row in f.summary.get("at_risk") or ()
    ]


def _forgetting(name: str, methods: Sequence[Forecasts]) -> Markup | None:
    """Predicted and real forgetting in percentage points, a point per method, task and seed; None for a single one."""
    dots = [
        Dot(100 * a, 100 * b, m.slot, f"{m.label}, task {f.task + 1}, seed {run.seed}")
        for m in methods
        for run in m.runs
        for f in run.made
        if (a := forgotten(f, "predicted")) is not None and (b := forgotten(f, "real")) is not None
    ]
    if len(dots) < 2:
        return None
    apart = max(dots, key=lambda d: abs(d.x - d.y))
    svg = figures.scatter(
        dots,
        x_name="predicted (points)",
        y_name="real (points)",
        heading="Old accuracy lost by a task",
        name=name,
        title="Real against predicted forgetting, percentage points",
        description=f"Furthest apart: {apart.hint}, {apart.x:.1f} points predicted, {apart.y:.1f} real.",
        size=4.0,
    )
    return Markup(svg)


def _gap(name: str, methods: Sequence[Forecasts]) -> Markup | None:
    """Relative error of each forecast against the gap that trust is measured by; None for fewer than two."""
    dots = [
        Dot(gap, error, m.slot, f"{m.label}, task {f.task + 1}, seed {run.seed}: trust {trust_level(f)}")
        for m in methods
        for run in m.runs
        for f in run.made
        if (gap := value(f, "trust", "gap")) and (error := value(f, "quality", "relative_error"))
    ]
    if len(dots) < 2:
        return None
    svg = figures.scatter(
        dots,
        x_name="trust gap, before training",
        y_name="relative error of the drift",
        heading="What trust foretold",
        name=name,
        title="Relative error of the forecast against its trust gap, both logarithmic",
        description=f"{len(dots)} forecasts. Errors from {min(d.y for d in dots):.2g} to {max(d.y for d in dots):.2g}.",
        log=True,
        size=4.0,
    )
    return Markup(svg)
