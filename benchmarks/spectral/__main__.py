"""Heads that are protected, against heads that are not, at equal memory and with strengths chosen alike.

    python -m benchmarks.spectral [digits rotated clinc150] [--seeds 5] [--rows LABEL ...] [--out FILE.json]

A linear head learns a stream of frozen features, computed once. For every row as many values are tried on the samples
held out of the first seed's stream, and the one with the best average accuracy after the last task is run on every
seed. A value at the edge of its grid is marked by an asterisk. Average accuracy is the mean over tasks after the last
one, forgetting the mean fall from each task's best, new-task accuracy that on each task right after it was learned;
beside them stand figures that were measured beforehand, with another program and another recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.spectral.rows import ROWS, Row
from benchmarks.spectral.settings import SETTINGS, Setting, Streams, identity
from tangentcl import metrics
from tangentcl.data import TaskStream
from tangentcl.training import run_stream

NAMES = ("average", "forgetting", "new")


def measure(
    row: Row, k: int | None, value: float, seed: int, stream: TaskStream, setting: Setting, width: int
) -> dict[str, float]:
    """Average accuracy, forgetting and new-task accuracy of one run, and its CPU seconds; NaN where unknown."""
    began = time.process_time()
    torch.manual_seed(seed)
    method = row.make(identity(width), setting.k if k is None else k, value, seed)
    plan = dataclasses.replace(setting.plan, seed=seed, lr=setting.plan.lr * (value if row.grid == "rate" else 1))
    matrix = run_stream(method, stream, plan).matrix
    whole = bool(np.isfinite(np.tril(matrix)).all())
    return {
        "average": 100 * metrics.final_average_accuracy(matrix),
        "forgetting": 100 * metrics.final_forgetting(matrix) if whole else float("nan"),
        "new": 100 * float(np.diag(matrix).mean()) if whole else float("nan"),
        "cpu_seconds": time.process_time() - began,
    }


def tune(row: Row, k: int | None, stream: TaskStream, setting: Setting, width: int) -> dict[float, float]:
    """Average accuracy of every value of the row's grid on held-out samples."""
    return {v: measure(row, k, v, 0, stream, setting, width)["average"] for v in setting.grids[row.grid]}


def compare(setting: Setting, rows: Sequence[Row], n_seeds: int) -> list[dict[str, Any]]:
    """One entry for each row and amount of memory."""
    streams = Streams(setting)
    tuning, tests = streams.tuning(0), [streams.test(seed) for seed in range(n_seeds)]
    width, found = streams.backbone.width, []
    gc.freeze()  # a run collects garbage at every task, and would look through all that was imported
    for row in rows:
        for k in row.keys(setting.name, setting.k, setting.fewer):
            tried = tune(row, k, tuning, setting, width)
            value = max(tried, key=lambda v: tried[v])
            runs = [measure(row, k, value, seed, stream, setting, width) for seed, stream in enumerate(tests)]
            entry = {"setting": setting.name, "row": row.label, "k": k, "value": value, "tried": tried, "runs": runs}
            entry["edge"] = value in (min(tried), max(tried))
            entry["measured"] = row.measured.get((setting.name, k))
            found.append(entry)
            print(line(entry), flush=True)
    return found


def line(entry: Mapping[str, Any]) -> str:
    """A row of the table."""
    ours = " / ".join(_written([run[name] for run in entry["runs"]], name == "average") for name in NAMES)
    known = entry["measured"] or (None, None, None)
    theirs = " / ".join("–" if v is None else f"{v:.1f}" for v in known)
    value = f"{entry['value']:g}{'*' if entry['edge'] else ''}"
    seconds = statistics.fmean(run["cpu_seconds"] for run in entry["runs"])
    return f"| {entry['row']} | {entry['k'] or '–'} | {ours} | {theirs} | {value} | {seconds:.1f} |"


def _written(values: Sequence[float], spread: bool) -> str:
    if not np.isfinite(values).all():
        return "–"
    deviation = f" ± {statistics.stdev(values):.1f}" if spread and len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def main(arguments: Sequence[str] | None = None, settings: Mapping[str, Setting] = SETTINGS) -> None:
    """Measure and print one table for each setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", nargs="*", choices=[*settings, []], help="all by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=[""], help="parts of labels; all rows by default")
    parser.add_argument("--out", type=Path, help="everything that was measured, as JSON")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if any(part in row.label for part in options.rows)]
    found: list[dict[str, Any]] = []
    for name in options.setting or settings:
        print(f"\n{name}, {options.seeds} seeds: average / forgetting / new-task accuracy\n")
        print("| method | k | here | beforehand | value | CPU s |\n| --- | --- | --- | --- | --- | --- |", flush=True)
        found += compare(settings[name], rows, options.seeds)
        if options.out is not None:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
