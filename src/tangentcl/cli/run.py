"""``tangentcl run``: an experiment file in, a record of each method and seed out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangentcl.experiments.run import Outcome


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl run``."""
    parser = commands.add_parser("run", help="run an experiment file; each method and seed leaves a record")
    parser.add_argument("file", type=Path, help="TOML file, see the folder experiments/")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="change settings: plan.epochs=5, method.LABEL.rank=4 (one method), method.rank=4 (every method)",
    )
    parser.add_argument("--seed", dest="seeds", nargs="+", type=int, metavar="N", help="seeds instead of the file's")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of all records (default: runs)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="run again, from the beginning, what is done, was stopped or has other settings",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=500,
        metavar="STEPS",
        help="steps between two states from which a stopped run goes on (default: 500; 0: ends of tasks only)",
    )
    parser.add_argument("--no-cache", action="store_true", help="compute features of frozen backbones in every run")
    parser.add_argument(
        "--engine",
        default="torch",
        metavar="NAME",
        help="what computes features of frozen backbones: torch (default), openvino or onnxruntime",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--no-report", action="store_true", help="do not write the HTML report")


def run(options: argparse.Namespace) -> int:
    """Run the experiment; returns the exit code."""
    from rich.console import Console

    from tangentcl.errors import ConfigError
    from tangentcl.experiments.config import load_experiment

    sys.path.append(os.getcwd())  # where a user's own method, "my_module:MyMethod", most often lies
    experiment = load_experiment(options.file, settings=options.settings, seeds=options.seeds)
    from tangentcl.experiments.progress import RunProgress
    from tangentcl.experiments.run import run_experiment
    from tangentcl.nn import FeatureStore
    from tangentcl.records import find_records
    from tangentcl.training.runtime import launched_rank, process_group

    if options.no_cache and options.engine != "torch":
        raise ConfigError(
            f"--engine {options.engine} computes features that are kept, --no-cache keeps none. Leave one of them out."
        )
    store = None if options.no_cache else FeatureStore(engine=options.engine)
    progress = RunProgress(Console(stderr=True), len(experiment.methods) * len(experiment.seeds))
    with process_group(), progress:
        outcomes = run_experiment(
            experiment,
            options.out,
            observe=progress,
            overwrite=options.overwrite,
            checkpoint_every=options.checkpoint_every,
            features=store,
        )
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
    from tangentcl.reports.forecast_text import side_by_side
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
        if record.forecasts:
            print(
                f"\nwhat each task would do to the old ones, forecast before it, in %\n{side_by_side(record.forecasts)}"
            )
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
