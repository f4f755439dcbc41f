"""``tangentcl report``: tables and one HTML page from records."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl report``."""
    parser = commands.add_parser("report", help="tables, plots and one HTML page from records")
    parser.add_argument("paths", nargs="+", type=Path, help="folders with records")
    parser.add_argument("--out", type=Path, help="HTML file (default: report.html in the first folder)")
    parser.add_argument("--format", choices=("text", "markdown"), default="text", help="of the printed table")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(options: argparse.Namespace) -> int:
    """Write the page and print the table; returns the exit code."""
    from tangentcl.records import find_records
    from tangentcl.reports.html import write_report
    from tangentcl.reports.selection import select
    from tangentcl.reports.tables import rows, to_json, to_markdown, to_text

    selection = select(find_records(options.paths))
    first = options.paths[0]
    page = write_report(
        [*selection.done, *(folder for folder, _ in selection.excluded)],
        options.out or (first if first.is_dir() else Path(".")) / "report.html",
    )
    found = rows(selection.done)
    if options.json:
        print(json.dumps({"summary": json.loads(to_json(found)), "report": str(page)}, indent=1))
        return 0
    print(to_markdown(found) if options.format == "markdown" else to_text(found), end="")
    for folder, reason in selection.excluded:
        print(f"left out: {folder}: {reason}")
    print(f"\nreport:  {page}")
    return 0
