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
    parser.add_argument(
        "--published",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="experiment files, or folders of them, whose [[published]] numbers stand beside the records' own",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(options: argparse.Namespace) -> int:
    """Write the page and print the table; returns the exit code."""
    from tangentcl.records import find_records
    from tangentcl.reports.html import write_report
    from tangentcl.reports.published import known_published, published_table
    from tangentcl.reports.selection import select
    from tangentcl.reports.tables import aligned, markdown, rows, to_json, to_markdown, to_text

    given = _published(options.published)
    there = [path for path in options.paths if path.exists() or not given]
    selection = select(find_records(there) if there else [])
    found = rows(selection.done)
    others = {**known_published(found), **given}
    page = None
    if selection.done or not given:  # with nothing run there is still what others published
        first = options.paths[0]
        page = write_report(
            [*selection.done, *(folder for folder, _ in selection.excluded)],
            options.out or (first if first.is_dir() else Path(".")) / "report.html",
            given,
        )
    heading, body = published_table(found, others)
    if options.json:
        content = {"summary": json.loads(to_json(found)), "report": None if page is None else str(page)}
        if others:
            content["published"] = [dict(zip(heading, line)) for line in body]
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return 0
    text = options.format == "text"
    if found:
        print(to_text(found) if text else to_markdown(found), end="")
    if others:
        print(("\n" if found else "") + (aligned(heading, body) if text else markdown(heading, body) + "\n"), end="")
    for folder, reason in selection.excluded:
        print(f"left out: {folder}: {reason}")
    print(f"\nreport:  {page}" if page else "\nno finished record, so no page")
    return 0


def _published(paths: list[Path]) -> dict[str, list[Any]]:
    """What experiment files say was published, by experiment."""
    from tangentcl.errors import ConfigError
    from tangentcl.experiments.config import load_published

    files = [file for path in paths for file in (sorted(path.rglob("*.toml")) if path.is_dir() else [path])]
    if paths and not files:
        raise ConfigError(f"--published: there is no experiment file in {', '.join(map(str, paths))}")
    found: dict[str, list[Any]] = {}
    for file in files:
        name, results = load_published(file)
        if results:
            found.setdefault(name, []).extend(results)
    return found
