"""``tangentcl export``: a run's learner as a folder that stands on its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ABOUT = """Make of a run's record a folder that stands on its own, without the data and the record.

It holds all that was learned (safetensors), what it is (export.json), a model card (README.md), and for LoRA on a
transformers model the adapter as peft writes it. Pre-trained weights are named with their checksum, not copied.
`tangentcl predict FOLDER` and `tangentcl.load_predictor` read it."""


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl export``."""
    parser = commands.add_parser(
        "export",
        help="make of a run's learner a folder that stands on its own",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", type=Path, metavar="RUN", help="folder of a run's record: .../<label>/seed-<seed>")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: exports/<experiment>/<label>/seed-<seed>")
    parser.add_argument(
        "--task",
        type=int,
        metavar="T",
        help='the learner as it was after this task, counted from 0; the run needs save = "tasks" (default: the last)',
    )
    parser.add_argument("--onnx", action="store_true", help="write backbone and head as model.onnx, too")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    parser.add_argument("--backbone", metavar="PLACE", help="where the pre-trained weights lie now")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a backbone")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(options: argparse.Namespace) -> int:
    """Write the folder; returns the exit code."""
    sys.path.append(os.getcwd())  # where a user's own method, "my_module:MyMethod", most often lies
    from tangentcl.experiments.config import slug
    from tangentcl.records import Record
    from tangentcl.reports.units import size
    from tangentcl.serving.export import export_run

    record = Record.read(options.record)
    default = Path("exports", record.experiment, slug(record.label), f"seed-{record.seed}")
    made = export_run(
        options.record,
        options.out or default,
        after_task=options.task,
        onnx=options.onnx,
        overwrite=options.overwrite,
        backbone=options.backbone,
        trust_remote_code=options.trust_remote_code,
    )
    about = made.description
    if options.json:
        print(json.dumps({"export": str(made.folder), "files": made.sizes, "onnx": about.onnx}, indent=1))
        return 0
    print(f"{about.label}: {len(about.class_names)} classes of {len(about.tasks)} tasks")
    for name, n_bytes in made.sizes.items():
        print(f"  {name:<26}{size(n_bytes):>10}")
    if about.onnx is not None:
        where, most = f"{about.onnx['checked']} {about.onnx['on']}", about.onnx["largest_difference"]
        print(f"model.onnx gives the scores of {about.method['name']} on {where}, up to {most:.1g}")
    print(f"export: {made.folder}")
    return 0
