"""Summary tables: one row per experiment and label, mean and spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import summary
from ..records import Record
from .selection import accuracies, same_problem, select, stream_key, stream_title

# name in `metrics.summary`, heading, in the table even when no row has it
METRICS = (
    ("average_accuracy", "Ā ↑", True),
    ("last_accuracy", "A_T ↑", True),
    ("ffm", "FFM ↓", True),
    ("regret_to_joint", "regret to joint ↓", False),
    ("backward_transfer", "BWT ↑", False),
    ("intransigence", "intransigence ↓", False),
    ("caa", "Ā task mean (CAA) ↑", False),
    ("faa", "A_T task mean (FAA) ↑", False),
    ("regret_to_joint_task_mean", "regret task mean ↓", False),
    ("performance_drop", "PD ↓", False),
    ("harmonic_accuracy", "harmonic ↑", False),
)
IN_TEXT = ("average_accuracy", "last_accuracy", "ffm", "regret_to_joint", "performance_drop", "harmonic_accuracy")
PROTOCOL = ("checkpoint", "split", "class_order", "averaging", "normalisation", "batch", "selection", "seeds")


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (None for a single value) over the ``n`` seeds that have a number."""

    mean: float
    std: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Cell | None:
        """Of the values that are known; None when there is none.

        >>> Cell.of([0.5, 0.5, None])
        Cell(mean=0.5, std=0.0, n=2)
        """
        known = [v for v in values if v is not None]
        if not known:
            return None
        return Cell(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Row:
    """The runs of one label of one experiment on one stream.

    Attributes:
        stream: the stream in words; streams that differ have different rows.
        metrics: fractions by name, None where no seed has a number.
        costs: "seconds", "training_seconds", "evaluation_seconds", "peak_memory_bytes", "trainable_parameters",
            "stored_samples", "state_bytes"; None where not recorded.
        protocol: the eight protocol fields in words; several values are separated by semicolons.
        joint: labels of the joint runs that regret and intransigence refer to.
        records: the runs, by seed.
    """

    experiment: str
    label: str
    method: str
    stream: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Cell | None]
    costs: Mapping[str, Cell | None]
    protocol: Mapping[str, str]
    joint: tuple[str, ...]
    records: tuple[Record, ...]


def rows(records: Iterable[Record]) -> list[Row]:
    """Aggregate finished records (others are left out, see `select`) into rows, in order of first appearance.

    Regret and intransigence need a joint run on the same stream, class order, backbone and seed among the records: that
    of the same method and settings with ``joint = true`` for a closed-form head, or else one of the method "joint"; of
    several, the one with the best last accuracy is the reference.
    """
    done = select(records).done
    joint = _joint_runs(done)
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in done:
        groups.setdefault((stream_key(record), record.experiment, record.label), []).append(record)
    order = list(dict.fromkeys(key[0] for key in groups))
    return [_row(groups[key], joint) for key in sorted(groups, key=lambda key: order.index(key[0]))]


def _is_joint(record: Record) -> bool:
    return record.method == "joint" or _settings(record).get("joint") is True


def _settings(record: Record) -> dict[str, Any]:
    found = record.config.get("method")
    return dict(found) if isinstance(found, dict) else {}


def _reference_key(record: Record) -> tuple[Any, ...] | None:
    """Equal for a closed-form run and its joint run; the problem alone for runs of the method "joint"."""
    problem = same_problem(record)
    if problem is None or record.method == "joint":
        return problem
    return (*problem, json.dumps({**_settings(record), "joint": None}, sort_keys=True))


def _joint_runs(records: Sequence[Record]) -> dict[tuple[Any, ...], Record]:
    best: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = _reference_key(record)
        if not _is_joint(record) or key is None or _last(record) is None:
            continue
        if key not in best or _last(record) > _last(best[key]):
            best[key] = record
    return best


def _reference(record: Record, joint: Mapping[tuple[Any, ...], Record]) -> Record | None:
    own, problem = _reference_key(record), same_problem(record)
    if _is_joint(record) or own is None or problem is None:
        return None
    return joint.get(own) or joint.get(problem)


def _last(record: Record) -> Any:
    return accuracies(record).metrics["last_accuracy"]


def _row(runs: list[Record], joint: Mapping[tuple[Any, ...], Record]) -> Row:
    runs = sorted(runs, key=lambda r: r.seed)
    found, references = [], []
    for run in runs:
        a, reference = accuracies(run), _reference(run, joint)
        last_row = None if reference is None else accuracies(reference).matrix[-1]
        found.append(summary(a.matrix, a.n_test, a.class_correct, a.class_total, a.scenario, joint_row=last_row))
        if reference is not None:
            references.append(reference.label)
    costs = [run_costs(run) for run in runs]
    return Row(
        experiment=runs[0].experiment,
        label=runs[0].label,
        method=runs[0].method,
        stream=stream_title(runs[0]),
        seeds=tuple(r.seed for r in runs),
        metrics={name: Cell.of(f[name] for f in found) for name, _, _ in METRICS},
        costs={name: Cell.of(c[name] for c in costs) for name in costs[0]},
        protocol={name: _protocol(runs, name) for name in PROTOCOL},
        joint=tuple(dict.fromkeys(references)),
        records=tuple(runs),
    )


def run_costs(record: Record) -> dict[str, float | None]:
    """Time, memory and size of one run from its events; None where it was not recorded."""
    trained, evaluated = record.events_named("task_trained"), record.events_named("evaluated")
    finished = record.events_named("run_finished")
    stored, state = _numbers(trained, "stored_samples"), _numbers(trained, "state_bytes")
    return {
        "seconds": next(iter(_numbers(finished, "seconds")), None),
        "training_seconds": sum(_numbers(trained, "seconds")) if trained else None,
        "evaluation_seconds": sum(_numbers(evaluated, "seconds")) if evaluated else None,
        "peak_memory_bytes": max(_numbers(trained, "peak_memory_bytes"), default=None),
        "trainable_parameters": max(_numbers(trained, "trainable_parameters"), default=None),
        "stored_samples": stored[-1] if stored else None,
        "state_bytes": state[-1] if state else None,
    }


def _numbers(events: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = (e.get(name) for e in events)
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _protocol(runs: Sequence[Record], name: str) -> str:
    if name == "seeds":
        return ", ".join(str(r.seed) for r in runs)
    tables = [r.environment.get("protocol") for r in runs]
    values = [words(t.get(name)) for t in tables if isinstance(t, dict)]
    return "; ".join(dict.fromkeys(v for v in values if v)) or "not recorded"


def words(value: Any) -> str:
    """A setting as short text: long lists are cut, with their length.

    >>> words({"epochs": 2, "order": list(range(100))})
    'epochs 2, order 0 1 2 3 4 5 6 7 … (100 in all)'
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {words(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        shown = " ".join(words(v) for v in value[:8])
        return f"{shown} … ({len(value)} in all)" if len(value) > 8 else shown
    return str(value)


def percent(cell: Cell | None, n_seeds: int = 0, digits: int = 2) -> str:
    """A fraction and its spread in percent; says so when not all ``n_seeds`` have a number.

    >>> percent(Cell(0.91666, 0.0031, 3)), percent(Cell(0.5, None, 1), n_seeds=3), percent(None)
    ('91.67 ± 0.31', '50.00 (1 of 3 seeds)', '–')
    """
    if cell is None:
        return "–"
    spread = "" if cell.std is None else f" ± {100 * cell.std:.{digits}f}"
    part = f" ({cell.n} of {n_seeds} seeds)" if cell.n < n_seeds else ""
    return f"{round(100 * cell.mean, digits) + 0.0:.{digits}f}{spread}{part}"


def table(rows: Sequence[Row], names: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Heading and body of the summary in percent; metrics that no row has are left out, but for the first three.

    ``names`` restricts it to some of the metrics. Stream and experiment have a column where rows differ in them.
    """
    shown = [
        (name, head)
        for name, head, always in METRICS
        if (names is None or name in names) and (always or any(r.metrics[name] for r in rows))
    ]
    streams, experiments = ({getattr(r, what) for r in rows} for what in ("stream", "experiment"))
    heading = ["label", "seeds", *(head for _, head in shown)]
    heading = [*(["stream"] if len(streams) > 1 else []), *(["experiment"] if len(experiments) > 1 else []), *heading]
    body = [
        [
            *([r.stream] if len(streams) > 1 else []),
            *([r.experiment] if len(experiments) > 1 else []),
            r.label,
            str(len(r.seeds)),
            *(percent(r.metrics[name], len(r.seeds)) for name, _ in shown),
        ]
        for r in rows
    ]
    return heading, body


def protocol_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and body of the eight protocol fields, without which numbers cannot be compared."""
    heading = ["experiment", "label", *PROTOCOL]
    return heading, [[r.experiment, r.label, *(r.protocol[name] for name in PROTOCOL)] for r in rows]


def to_markdown(rows: Sequence[Row]) -> str:
    """Summary and protocol as two Markdown tables."""
    return "\n\n".join(markdown(*part) for part in (table(rows), protocol_table(rows))) + "\n"


def markdown(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """One Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(heading), line(["---"] * len(heading)), *map(line, body)])


def to_text(rows: Sequence[Row]) -> str:
    """The summary as aligned plain text, with the metrics that fit a terminal."""
    heading, body = table(rows, IN_TEXT)
    return aligned(heading, body, heading.index("seeds"))


def aligned(heading: Sequence[str], body: Sequence[Sequence[str]], n_names: int = 2) -> str:
    """A table as plain text; the first ``n_names`` columns are words.

    >>> print(aligned(["label", "Ā"], [["NCM", "91.4"]], 1), end="")
    label     Ā
    NCM    91.4
    """
    lines = [heading, *([" ".join(c.split()) for c in line] for line in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    return "".join(
        "  ".join(c.ljust(w) if i < n_names else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        + "\n"
        for line in lines
    )


def to_json(rows: Sequence[Row]) -> str:
    """Everything in the rows as JSON; fractions, not percentages; null where unknown."""

    def cells(named: Mapping[str, Cell | None]) -> dict[str, Any]:
        return {k: None if c is None else {"mean": c.mean, "std": c.std, "n": c.n} for k, c in named.items()}

    content = [
        {
            "experiment": r.experiment,
            "label": r.label,
            "method": r.method,
            "stream": r.stream,
            "seeds": list(r.seeds),
            "metrics": cells(r.metrics),
            "costs": cells(r.costs),
            "joint": list(r.joint),
            "protocol": dict(r.protocol),
            "records": [str(record.folder) for record in r.records],
            "matrix_mean": _mean_matrix(r),
        }
        for r in rows
    ]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def _mean_matrix(row: Row) -> list[list[float | None]]:
    mean = np.mean([accuracies(r).matrix for r in row.records], axis=0)
    return [[float(v) if np.isfinite(v) else None for v in line] for line in mean]
