"""One self-contained HTML page from run records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from markupsafe import Markup

from ..errors import RecordError
from ..records import Published, Record
from . import aggregate, figures
from .forecast_section import Forecasts, section
from .forecasts import Run
from .pages import render, write_page
from .published import NAMES, known_published, published_table
from .selection import accuracies, select
from .svg import colour
from .tables import Cell, Row, percent, protocol_table, rows, run_costs, table, words
from .theory_section import Theories, theory_section
from .units import duration, size

ENVIRONMENT = (
    "tangentcl",
    "python",
    "torch",
    "packages",
    "platform",
    "device",
    "precision",
    "processes",
    "threads",
    "git_revision",
    "git_dirty",
    "backbone",
)


def write_report(
    records: Iterable[Record | str | Path], out: str | Path, published: Mapping[str, Sequence[Published]] | None = None
) -> Path:
    """Write the report of these records: one HTML file that needs no network, for a wide screen or a phone.

    Args:
        records: records, or folders of records. Those that are not done or cannot be read are listed with the reason.
        out: the file to write, replaced in one step; for a folder, ``report.html`` inside.
        published: what others reached, by experiment; in place of what its records say.

    Returns:
        Path of the written file.

    Raises:
        RecordError: none of the records is done, or the file cannot be written.
    """
    selection = select(records)
    if not selection.done:
        reasons = "".join(f"\n  {folder}: {reason}" for folder, reason in selection.excluded)
        raise RecordError(f"no finished record to report on.{reasons or ' Make one: tangentcl run'}")
    return write_page(page(rows(selection.done), selection.excluded, published), out, "report.html")


def page(
    found: Sequence[Row],
    excluded: Sequence[tuple[str, str]] = (),
    published: Mapping[str, Sequence[Published]] | None = None,
) -> str:
    """The report as text; everything that came from a user is escaped."""
    others = {**known_published(found), **(published or {})}
    streams: dict[str, list[Row]] = {}
    for row in found:
        streams.setdefault(row.stream, []).append(row)
    experiments = list(dict.fromkeys(row.experiment for row in found))
    values = {
        "title": ", ".join(experiments) if len(experiments) <= 3 else f"{len(experiments)} experiments",
        "summary": _summary(streams, excluded),
        "references": _references(found),
        "published": (*published_table(found, others), NAMES + (len(others) > 1)) if others else None,
        "streams": [_stream(i, title, part) for i, (title, part) in enumerate(streams.items())],
        "runs": [_run(record) for row in found for record in row.records],
        "protocol": protocol_table(found),
        "environment": _environment([record for row in found for record in row.records]),
        "settings": [_settings(row) for row in found],
        "excluded": excluded,
    }
    return render("report.html.j2", values)


def _summary(streams: dict[str, list[Row]], excluded: Sequence[tuple[str, str]]) -> list[str]:
    sentences = []
    for title, part in streams.items():
        runs, names = sum(len(r.seeds) for r in part), aggregate.labels(part)
        counts = sorted({len(r.seeds) for r in part})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        methods, plural = len(part), "" if counts == [1] else "s"
        text = f"{title}. {runs} finished run{'s' if runs > 1 else ''}: {methods} method"
        text += f"{'s' if methods > 1 else ''}, {seeds} seed{plural} each."
        last = [(r.metrics["last_accuracy"], n, r.method) for r, n in zip(part, names)]
        for kind, chosen in (
            ("Trained on all tasks at once", [x for x in last if x[2] == "joint"]),
            ("Trained task by task", [x for x in last if x[2] != "joint"]),
        ):
            best = max(((c, n) for c, n, _ in chosen if c is not None), key=lambda x: x[0].mean, default=None)
            if best is not None:
                text += f" {kind}, {best[1]} reaches {percent(best[0], digits=1)} % accuracy after the last task"
                text += ", the best." if len(chosen) > 1 else "."
        lost = [(c, n) for r, n in zip(part, names) if (c := r.metrics["ffm"]) is not None]
        most = max(lost, key=lambda x: x[0].mean, default=None)
        if most is not None and most[0].mean > 0:
            text += f" Most was forgotten by {most[1]}: {percent(most[0], digits=1)} points per task."
        sentences.append(text)
    if excluded:
        sentences.append(f"{len(excluded)} record{'s' if len(excluded) > 1 else ''} left out; see the end of the page.")
    return sentences


def _references(found: Sequence[Row]) -> list[str]:
    joint = list(dict.fromkeys(", ".join(r.joint) for r in found if r.joint))
    return joint if len(joint) < 2 else [f"{r.label} to {', '.join(r.joint)}" for r in found if r.joint]


def _stream(number: int, title: str, part: list[Row]) -> dict[str, Any]:
    names = aggregate.labels(part)
    lines = [aggregate.accuracy_series(r, n, i) for i, (r, n) in enumerate(zip(part, names))]
    drawn = [s for s in lines if np.isfinite(s.mean).any()]
    lost = [s for i, (r, n) in enumerate(zip(part, names)) if (s := aggregate.forgetting_series(r, n, i)) is not None]
    lost = [s for s in lost if np.isfinite(s.mean).any()]
    prefix = f"s{number}"
    return {
        "title": title,
        "table": table(part),
        "legend": [(s.label, colour(s.slot)) for s in drawn],
        "lines": Markup(figures.accuracy_lines(drawn, name=f"{prefix}-lines", title=f"Accuracy over tasks, {title}"))
        if drawn
        else None,
        "maps": [_heat_map(f"{prefix}-map{i}", row, n) for i, (row, n) in enumerate(zip(part, names))],
        "forgetting": Markup(
            figures.forgetting_bars(lost, name=f"{prefix}-forgetting", title=f"Forgetting per task, {title}")
        )
        if lost
        else None,
        "classes": [(n, worst) for r, n in zip(part, names) if (worst := aggregate.worst_classes(r))],
        "losses": [
            figure
            for i, (r, n) in enumerate(zip(part, names))
            if (figure := _losses(f"{prefix}-loss{i}", r, n)) is not None
        ],
        "forecasts": section(prefix, *_forecasts(part, names)),
        "theory": theory_section(prefix, *_theories(part, names)),
        **_costs(prefix, part, names),
    }


def _forecasts(part: Sequence[Row], names: Sequence[str]) -> tuple[list[Forecasts], list[tuple[str, str]]]:
    """The forecasts of each method, and (folder, reason) of records whose forecasts are damaged."""
    found, unreadable = [], []
    for slot, (row, name) in enumerate(zip(part, names)):
        runs = []
        for record in row.records:
            try:
                runs.append(Run(record.seed, record.forecasts))
            except RecordError as error:
                unreadable.append((str(record.folder), str(error)))
        found.append(Forecasts(name, slot, runs))
    return found, unreadable


def _theories(part: Sequence[Row], names: Sequence[str]) -> tuple[list[Theories], list[tuple[str, str]]]:
    """The theory report of each method, and (folder, reason) of records whose report is damaged."""
    found, unreadable = [], []
    for slot, (row, name) in enumerate(zip(part, names)):
        runs = []
        for record in row.records:
            try:
                runs.append((record.seed, record.theory))
            except RecordError as error:
                unreadable.append((str(record.folder), str(error)))
        found.append(Theories(name, slot, runs))
    return found, unreadable


def _heat_map(name: str, row: Row, label: str) -> tuple[str, Markup, str]:
    title = f"Accuracy matrix, {label}"
    svg = figures.heat_map(aggregate.mean_matrix(row), aggregate.task_names(row), name=name, title=title)
    return label, Markup(svg), _seeds(row.seeds)


def _losses(name: str, row: Row, label: str) -> tuple[str, Markup, str] | None:
    curves = aggregate.losses(row)
    if curves is None or not any(np.isfinite(s.mean).any() for s in curves.terms):
        return None
    known = [s for s in curves.terms if np.isfinite(s.mean).any()]
    svg = figures.loss_lines(known, curves.steps, curves.starts, name=name, title=f"Loss terms, {label}")
    return label, Markup(svg), _seeds(curves.seeds)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"mean over seeds {', '.join(map(str, seeds))}"


def _costs(prefix: str, part: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    def column(name: str) -> Any:
        return np.array([c.mean if (c := r.costs[name]) is not None else np.nan for r in part])

    time = [("training", column("training_seconds")), ("evaluation", column("evaluation_seconds"))]
    memory = column("peak_memory_bytes")
    timed = any(np.isfinite(values).any() for _, values in time)
    return {
        "time": Markup(figures.bars(names, time, duration, name=f"{prefix}-time", title="Time per run"))
        if timed
        else None,
        "memory": Markup(
            figures.bars(names, [("peak", memory)], size, name=f"{prefix}-memory", title="Peak memory while training")
        )
        if np.isfinite(memory).any()
        else None,
        "costs": [
            (
                name,
                _written(row.costs["seconds"], duration),
                _written(row.costs["peak_memory_bytes"], size),
                _written(row.costs["trainable_parameters"], lambda v: f"{v:,.0f}"),
                _written(row.costs["stored_samples"], lambda v: f"{v:,.0f}"),
                _written(row.costs["state_bytes"], size),
            )
            for name, row in zip(names, part)
        ],
    }


def _written(cell: Cell | None, text: Any) -> str:
    return "–" if cell is None else str(text(cell.mean))


def _run(record: Record) -> list[str]:
    m, costs = accuracies(record).metrics, run_costs(record)
    events = f"{len(record.events)}" + (", last line cut off" if record.truncated_events else "")
    return [
        record.experiment,
        record.label,
        str(record.seed),
        *(percent(Cell.of([m[name]])) for name in ("average_accuracy", "last_accuracy", "ffm")),
        "–" if costs["seconds"] is None else duration(costs["seconds"]),
        words(record.environment.get("device")) or "–",
        record.status.started or "–",
        events,
        str(record.folder),
    ]


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    found = []
    for name in ENVIRONMENT:
        values = dict.fromkeys(words(r.environment.get(name)) for r in records)
        text = "; ".join(v for v in values if v)
        if text:
            found.append((name.replace("_", " "), text))
    return found


def _settings(row: Row) -> dict[str, Any]:
    flat = [_flat(r.config) for r in row.records]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    differing = [k for k in keys if k != "seed" and len({repr(settings.get(k)) for settings in flat}) > 1]
    return {
        "name": f"{row.experiment} / {row.label}",
        "seed": row.seeds[0],
        "toml": tomli_w.dumps(dict(row.records[0].config)),
        "differing": [(k, "; ".join(words(settings.get(k)) or "not set" for settings in flat)) for k in differing],
    }


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
