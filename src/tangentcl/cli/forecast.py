"""``tangentcl forecast``: what training on new samples will do to old ones, before a gradient step is taken."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentcl.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from tangentcl.cli.forecast_subject import Made

ABOUT = """What training on new samples will do to the answers on old ones, before a gradient step is taken.

  tangentcl forecast RUN --task 2                           a task of a run, with the truth where it is known
  tangentcl forecast RUN --task 2 --from-moments            the same without old data, from what the run kept
  tangentcl forecast RUN --old OLD.csv --new NEW.csv        the run's final learner and files of yours
  tangentcl forecast --model FOLDER --old OLD.csv --new NEW.csv --lr 2e-5
                                                            a transformers classifier, or a peft adapter"""


NEEDED = {
    "replay": "task",
    "from_moments": "task",
    "tune": "model",
    "class_names": "model",
    "text_column": "old",
    "label_column": "old",
}


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl forecast``."""
    parser = commands.add_parser(
        "forecast",
        help="what training on new samples will do to old ones, before it is done",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", nargs="?", type=Path, metavar="RUN", help="folder of a run's record")
    parser.add_argument("--task", type=int, metavar="T", help="the task that is about to be learned, counted from 0")
    parser.add_argument(
        "--replay", action="store_true", help="with --task: train the tasks before T again where they were not stored"
    )
    parser.add_argument(
        "--from-moments",
        action="store_true",
        help="with --task: without old samples, from the moments of their features that the run kept",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="most old samples to forecast (default: 2000)")
    files = parser.add_argument_group("files")
    files.add_argument("--old", type=Path, metavar="FILE", help="labelled samples whose answers are forecast")
    files.add_argument("--new", type=Path, metavar="FILE", help="labelled samples that will be trained on")
    files.add_argument("--text-column", metavar="NAME", help="column of the texts (default: by the usual names)")
    files.add_argument("--label-column", metavar="NAME", help="column of the labels (default: by the usual names)")
    files.add_argument("--model", type=Path, metavar="FOLDER", help="local transformers classifier or peft adapter")
    files.add_argument("--tune", choices=("full", "head"), help="what of --model trains (default: all, or its adapter)")
    files.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="of --model's outputs, where its folder has none"
    )
    recipe = parser.add_argument_group("recipe (default: the run's)")
    recipe.add_argument("--lr", type=float, metavar="X", help="learning rate")
    recipe.add_argument("--head-lr", type=float, metavar="X", help="of what trains outside the backbone")
    recipe.add_argument("--epochs", type=int, metavar="N", help="passes over the new samples")
    recipe.add_argument("--batch-size", type=int, metavar="N", help="samples of a step")
    recipe.add_argument("--weight-decay", type=float, metavar="X")
    recipe.add_argument("--seed", type=int, metavar="N", help="of the order of samples, and of new rows")
    recipe.add_argument("--optimizer", choices=("sgd", "adamw"))
    recipe.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="plan.KEY=VALUE",
        help="any other setting of the plan, for example plan.schedule=constant",
    )
    parser.add_argument("--json", action="store_true", help="print the forecast as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the plots")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write the forecast as records hold it")


def run(options: argparse.Namespace) -> int:
    """Find or make the forecast and print it; returns the exit code."""
    check(options)
    sys.path.append(os.getcwd())  # where a user's own method, "my_module:MyMethod", most often lies
    if options.from_moments:
        return _without_old_data(options)
    from tangentcl.cli.forecast_subject import from_model, from_run, of_task

    if options.task is not None:
        made = of_task(options)
    else:
        made = from_model(options) if options.model is not None else from_run(options)
    written = _write(made, options)
    if options.json:
        print(
            json.dumps(
                {"title": made.title, "made": list(made.notes), **made.shown, **written},
                indent=1,
                allow_nan=False,
            )
        )
    else:
        from tangentcl.cli.forecast_text import forecast_text, recipe_lines

        print(made.title)
        print(recipe_lines(made.shown["recipe"]))
        print("".join(f"{note}\n" for note in made.notes))
        print(forecast_text(made.shown, texts=made.texts), end="")
        for what, path in written.items():
            print(f"{what}: {path}")
    return 0


def _without_old_data(options: argparse.Namespace) -> int:
    from tangentcl.cli.forecast_moments import moments_text, of_task_from_moments
    from tangentcl.cli.forecast_text import recipe_lines

    made = of_task_from_moments(options)
    if options.json:
        print(json.dumps({"title": made.title, "made": list(made.notes), **made.shown}, indent=1, allow_nan=False))
    else:
        print(made.title)
        print(recipe_lines(made.shown["recipe"]))
        print("".join(f"{note}\n" for note in made.notes))
        print(moments_text(made.shown), end="")
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: names them and what to give.
    """
    files = options.old is not None or options.new is not None
    if options.task is not None:
        if options.record is None:
            raise ConfigError("--task needs the folder of a run: tangentcl forecast RUN --task T")
        if files or options.model is not None:
            raise ConfigError("--task forecasts a task of the run itself; leave out --old, --new and --model")
    elif not files:
        raise ConfigError("give --task T for a task of a run, or --old FILE --new FILE for samples of your own")
    elif options.old is None or options.new is None:
        missing = "--old" if options.old is None else "--new"
        raise ConfigError(f"{missing} is missing: a forecast needs old samples and new ones, --old FILE --new FILE")
    elif (options.record is None) == (options.model is None):
        raise ConfigError("give the model once: either the folder of a RUN or --model FOLDER")
    for option, needed in NEEDED.items():
        if getattr(options, option) and getattr(options, needed) is None:
            raise ConfigError(f"--{option.replace('_', '-')} goes with --{needed} only")
    if options.from_moments:
        for option in ("samples", "html", "save"):
            if getattr(options, option) is not None:
                raise ConfigError(f"--{option} does not go with --from-moments, which knows no old sample")
    if options.model is not None and options.lr is None and not any(s.startswith("plan.lr=") for s in options.settings):
        raise ConfigError("what is forgotten depends on the recipe: give at least --lr, for example --lr 2e-5")


def _write(made: Made, options: argparse.Namespace) -> dict[str, str]:
    """Write the files that were asked for; their paths by what they are."""
    written = {}
    if options.html is not None:
        from tangentcl.reports.forecast_page import write_forecast_report

        written["page"] = str(write_forecast_report(made.title, [made.forecast], options.html))
    if options.save is not None:
        from tangentcl.records.forecasts import write_forecast

        try:
            options.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"cannot make the folder {options.save}: {error.strerror or error}") from error
        write_forecast(options.save, made.forecast)
        written["saved"] = str(options.save)
    return written
