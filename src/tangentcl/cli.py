"""The command line: ``tangentcl run | list | report``. It parses before anything heavy is imported."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tangentcl import __version__
from tangentcl.errors import TangentclError, nearest

if TYPE_CHECKING:
    from tangentcl.experiments.run import Outcome
    from tangentcl.records import Record

EPILOG = """exit codes: 0 all done; 1 a run failed, its record says why; 2 the command or its input cannot be used;
130 interrupted, the record is closed and the command can be repeated."""

WHAT = ("methods", "streams", "sources", "runs")


class Parser(argparse.ArgumentParser):
    """Argparse that names the nearest option or command when one is mistyped, and exits with 2."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but a command complains about its own options, so that the nearest of them is named."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0]
            options = [option for action in self._actions for option in action.option_strings]
            message = f"unknown argument {wrong!r}.{nearest(wrong, options)}"
        elif "invalid choice: " in message:
            wrong = message.split("invalid choice: ")[1].split("'")[1]
            choices = [c for action in self._actions for c in (action.choices or [])]
            message = f"unknown command or value {wrong!r}.{nearest(wrong, choices)}"
        else:
            message = f"{message}. Try: {self.prog} --help"
        self.exit(2, f"tangentcl: error: {message}\n")


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="tangentcl",
        description="Parameter-efficient continual learning seen through the Neural Tangent Kernel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"tangentcl {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run an experiment file; each method and seed leaves a record")
    run.add_argument("file", type=Path, help="TOML file, see the folder experiments/")
    run.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="change settings: plan.epochs=5, method.LABEL.rank=4 (one method), method.rank=4 (every method)",
    )
    run.add_argument("--seed", dest="seeds", nargs="+", type=int, metavar="N", help="seeds instead of the file's")
    run.add_argument("--out", type=Path, default=Path("runs"), help="folder of all records (default: runs)")
    run.add_argument("--overwrite", action="store_true", help="run again what is done or was made with other settings")
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    run.add_argument("--no-report", action="store_true", help="do not write the HTML report")

    listing = commands.add_parser("list", help="list methods, streams, sources, or the runs below a folder")
    listing.add_argument("what", choices=WHAT)
    listing.add_argument("paths", nargs="*", type=Path, help="folders with records, for 'runs' (default: runs)")
    listing.add_argument("--json", action="store_true", help="print as JSON")

    report = commands.add_parser("report", help="tables, plots and one HTML page from records")
    report.add_argument("paths", nargs="+", type=Path, help="folders with records")
    report.add_argument("--out", type=Path, help="HTML file (default: report.html in the first folder)")
    report.add_argument("--format", choices=("text", "markdown"), default="text", help="of the printed table")
    report.add_argument("--json", action="store_true", help="print the table as JSON")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = {"run": _run, "list": _list, "report": _report}[options.command](options)
        sys.stdout.flush()  # here, where a reader that has gone is expected
        return code
    except TangentclError as error:
        print(f"tangentcl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tangentcl: interrupted; the record is closed, repeat the command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as in `tangentcl list runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tangentcl.experiments.config import load_experiment

    sys.path.append(os.getcwd())  # where a user's own method, "my_module:MyMethod", most often lies
    experiment = load_experiment(options.file, settings=options.settings, seeds=options.seeds)
    from tangentcl.experiments.progress import RunProgress
    from tangentcl.experiments.run import run_experiment
    from tangentcl.records import find_records
    from tangentcl.training.runtime import launched_rank, process_group

    progress = RunProgress(Console(stderr=True), len(experiment.methods) * len(experiment.seeds))
    with process_group(), progress:
        outcomes = run_experiment(experiment, options.out, observe=progress, overwrite=options.overwrite)
    if launched_rank() != 0:
        return 0
    folder = options.out / experiment.name
    page = None
    if not options.no_report and any(outcome.status != "failed" for outcome in outcomes):
        from tangentcl.reports.html import write_report

        page = write_report(find_records([folder]), folder / "report.html")  # with runs of earlier commands
    _print_results(outcomes, folder, page, as_json=options.json)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _print_results(outcomes: Sequence[Outcome], folder: Path, page: Path | None, *, as_json: bool) -> None:
    from tangentcl.metrics import matrix_text
    from tangentcl.records import Record
    from tangentcl.reports.selection import accuracies
    from tangentcl.reports.tables import rows, to_json, to_text

    finished = [Record.read(outcome.folder) for outcome in outcomes if outcome.status != "failed"]
    found = rows(finished)
    if as_json:
        runs = [{**dataclasses.asdict(outcome), "folder": str(outcome.folder)} for outcome in outcomes]
        summary = json.loads(to_json(found))
        print(json.dumps({"runs": runs, "summary": summary, "report": str(page) if page else None}, indent=1))
        return
    for record in finished:
        print(f"\n{record.label}, seed {record.seed}: accuracy in % on each task (columns) after each task (rows)")
        accuracy = accuracies(record)
        print(matrix_text(accuracy.matrix, accuracy.n_test))
    if finished:
        print(f"\n{to_text(found)}", end="")
    for outcome in outcomes:
        if outcome.status == "failed":
            print(f"\nFAILED {outcome.label}, seed {outcome.seed}: {outcome.reason}")
            print(f"       traceback in {outcome.folder / 'events.jsonl'}")
    skipped = sum(outcome.status == "skipped" for outcome in outcomes)
    if skipped:
        print(f"\n{skipped} of {len(outcomes)} runs were done before and not repeated")
    print(f"\nrecords: {folder}")
    if page:
        print(f"report:  {page}")


def _list(options: argparse.Namespace) -> int:
    if options.what == "runs":
        rows = _run_rows(options.paths or [Path("runs")])
    else:
        if options.paths:
            raise TangentclError(f"'tangentcl list {options.what}' takes no folder; only 'list runs' does")
        rows = _name_rows(options.what)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
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


def _report(options: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    raise SystemExit(main())
