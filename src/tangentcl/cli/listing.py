"""``tangentcl list``: methods, streams, data sets, sources and runs by name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentcl.errors import TangentclError

if TYPE_CHECKING:
    from tangentcl.records import Record

WHAT = ("methods", "streams", "data", "sources", "runs")


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl list``."""
    parser = commands.add_parser("list", help="list methods, streams, data sets, or the runs below a folder")
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("paths", nargs="*", type=Path, help="folders with records, for 'runs' (default: runs)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the list; returns the exit code."""
    if options.what == "runs":
        rows = _run_rows(options.paths or [Path("runs")])
    else:
        if options.paths:
            raise TangentclError(f"'tangentcl list {options.what}' takes no folder; only 'list runs' does")
        rows = _data_rows() if options.what == "data" else _name_rows(options.what)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    if options.what == "data":
        rows = [_short(row) for row in rows]
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    with console.capture() as captured:  # printed below: rich would exit with 1 when the reader of a pipe has gone
        console.print(table)
    print(captured.get(), end="")
    return 0


def _name_rows(what: str) -> list[dict[str, Any]]:
    if what == "sources":
        from tangentcl.data import SOURCES

        return [
            {"name": name, "where": " or ".join(f"$TANGENTCL_DATA/{folder}" for folder in folders) or "embedded"}
            for name, folders in SOURCES.items()
        ]
    found: dict[str, Any]
    if what == "methods":
        from tangentcl.methods import METHODS

        found = dict(METHODS)
    else:
        from tangentcl.data import STREAMS

        found = dict(STREAMS)
    return [{"name": name, "what": (item.__doc__ or "").strip().splitlines()[0]} for name, item in found.items()]


def _data_rows() -> list[dict[str, Any]]:
    """All that the presets say, and where their data lie on this machine."""
    from tangentcl.data import PRESETS
    from tangentcl.data.preset_source import preset_folder

    rows = []
    for preset in PRESETS.values():
        usual, folder = preset.splits[0], preset_folder(preset)
        rows.append(
            {
                "name": preset.name,
                "title": preset.title,
                "modality": preset.modality,
                "n_classes": usual.n_classes,
                "n_train": usual.train,
                "n_test": usual.test,
                "n_total": usual.total,
                "licence": preset.licence,
                "source": preset.source,
                "hub": preset.hub or None,
                "protocol": preset.protocol,
                "folders": list(preset.folders),
                "layout": preset.layout,
                "notes": list(preset.notes),
                "found": None if folder is None else str(folder),
                "embedded": not preset.folders,
            }
        )
    return rows


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """What a line of the table has room for."""
    return {
        "name": row["name"],
        "modality": row["modality"],
        "classes": row["n_classes"],
        "train": row["n_train"] if row["n_total"] is None else f"{row['n_total']} in all",
        "test": row["n_test"],
        "licence": row["licence"],
        "here": "embedded" if row["embedded"] else "yes" if row["found"] else "no",
    }


def _run_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    from tangentcl.errors import RecordError
    from tangentcl.records import Record, find_records

    rows = []
    for folder in find_records(paths):
        try:
            rows.append(_run_row(Record.read(folder)))
        except RecordError as error:
            rows.append(_row(folder, status="damaged", reason=str(error)))
    return rows


def _run_row(record: Record) -> dict[str, Any]:
    from tangentcl.records import is_abandoned

    metrics = record.accuracy.metrics if record.accuracy is not None else {}
    last = metrics.get("last_accuracy")
    status, reason = record.status.status, record.status.reason
    if is_abandoned(record.folder):
        status, reason = "abandoned", "its process is gone; repeat the command"
    return _row(
        record.folder,
        experiment=record.experiment,
        label=record.label,
        seed=record.seed,
        status=status,
        last_accuracy=None if last is None else round(100 * last, 2),
        reason=reason,
    )


def _row(
    folder: Path,
    *,
    status: str,
    reason: str | None,
    experiment: str | None = None,
    label: str | None = None,
    seed: int | None = None,
    last_accuracy: float | None = None,
) -> dict[str, Any]:
    return {
        "experiment": experiment,
        "label": label,
        "seed": seed,
        "status": status,
        "last_accuracy": last_accuracy,
        "reason": reason,
        "record": str(folder),
    }
