"""``tangentcl predict``: files in, a class and a score for each sample out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentcl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tangentcl.cli.predictions import Predictions

ABOUT = """What a run's learner says of samples without labels.

  tangentcl predict RUN --input photo.png photos/ more.zip       images: files, folders, zip and Parquet files
  tangentcl predict EXPORT --input texts.txt --out answers.csv   texts: one per line, or a column of a table
  tangentcl predict EXPORT --input new.csv --text-column question --top 3 --json

A score is the softmax of what the method gives for each class: a probability only where it was trained by
cross-entropy (finetune, joint, replay). Rows are in the order of the samples."""


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl predict``."""
    parser = commands.add_parser(
        "predict",
        help="what a run's learner, or an export, says of your files",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="RUN_OR_EXPORT", help="an export, or the folder of a run's record")
    parser.add_argument("--input", dest="inputs", nargs="+", type=Path, required=True, metavar="FILE_OR_FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".csv or .jsonl (default: CSV on standard output)")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="the K most likely classes (default: 1)")
    parser.add_argument("--task", metavar="T", help="choose among the classes of this task: its name, or number from 0")
    parser.add_argument("--text-column", metavar="NAME", help="column of the texts (default: by the usual names)")
    parser.add_argument("--image-column", metavar="NAME", help="column of the images (default: by the usual names)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out samples that cannot be used, and list them")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples at once (default: as in the run)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: as in the run")
    parser.add_argument("--backbone", metavar="PLACE", help="where the pre-trained weights lie now")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a backbone")
    parser.add_argument("--json", action="store_true", help="print the predictions, or where they are, as JSON")


def run(options: argparse.Namespace) -> int:
    """Predict, write and print; returns the exit code."""
    if options.top < 1:
        raise ConfigError(f"--top must be at least 1, got {options.top}")
    if options.out is not None and options.out.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"--out must end in .csv or .jsonl, got {options.out.name!r}")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out: there is no folder {options.out.parent}. Make it first.")
    sys.path.append(os.getcwd())  # where a user's own method, "my_module:MyMethod", most often lies
    from tangentcl.cli.predictions import predictions
    from tangentcl.serving.load import load_predictor

    predictor = load_predictor(
        options.model,
        backbone=options.backbone,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        trust_remote_code=options.trust_remote_code,
    )
    task = int(options.task) if options.task and options.task.isdigit() else options.task
    if options.task in predictor.task_names:
        task = options.task
    modality = predictor.description.modality
    wrong = {"text": options.image_column, "image": options.text_column}.get(modality)
    if wrong is not None:
        raise ConfigError(
            f"{options.model} takes {modality}s, and so no column of the other kind: leave out {wrong!r}."
        )
    column = options.text_column if modality == "text" else options.image_column
    found = predictions(predictor, options.inputs, column=column, task=task, top=options.top, skip=options.skip_bad)
    _hand_out(found, options)
    if found.error is not None:
        kept = f" {len(found.rows)} of {found.n} predictions were made before it and are kept." if found.rows else ""
        raise DataError(f"{found.error}{kept} To leave out such samples: --skip-bad")
    return 0


def _hand_out(found: Predictions, options: argparse.Namespace) -> None:
    """To the file and standard output; what was left out goes to standard error."""
    if found.rows and options.out is not None:
        found.write(options.out)
    for name, reason in found.skipped:
        print(f"left out {name}: {reason}", file=sys.stderr)
    if found.error is not None and not found.rows:
        return
    where = None if options.out is None else str(options.out)
    if options.json:
        print(found.to_json(where))
    elif where is None:
        print(found.to_csv(), end="")
    else:
        left_out = f", {len(found.skipped)} left out" if found.skipped else ""
        print(f"{len(found.rows)} predictions{left_out}: {where}")
